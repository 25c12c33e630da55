// Real clusters for the tests: one as `crescendo up` starts it, and a controller with TLS and tokens.
import { execFileSync, spawn } from "node:child_process";
import { createHash, createSign, generateKeyPairSync, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const BIN = resolve(ROOT, process.env.CRESCENDO_BIN ?? "target/debug");
const LIMIT_MILLIS = 120_000;

const program = (name) => join(BIN, name);

/** Only what the test itself gives counts. */
function environment(folder) {
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith("CRESCENDO_"));
  return { ...Object.fromEntries(own), XDG_STATE_HOME: folder, XDG_CONFIG_HOME: folder };
}

export async function eventually(what, check, limitMillis = LIMIT_MILLIS) {
  const end = Date.now() + limitMillis;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${limitMillis / 1000} s`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

export function spec(name, { steps = 50_000, subjects = join(ROOT, "helm/crescendo/files/test-job/subjects"), stages = 1, rate = "1e-3", pairs = 24, similarity, samples } = {}) {
  const encoder = join(ROOT, "assets/nano/dinov2-nano.safetensors");
  const filter = similarity ? `, filter: {similarity: {min: ${similarity[0]}, max: ${similarity[1]}, encoder: ${encoder}}}` : "";
  const stage = (at) => `
    - name: stage-${at}
      references: ${at}
      data: {source: compose, subjects: ${JSON.stringify(subjects)}, panel: 16, pairs: ${pairs}, unitSize: 8, minPairs: 8${samples ? ", holdOutOneIn: 4" : ""}${filter}}
      train: {adapter: {rank: 4}, steps: ${steps}, globalBatch: 2, learningRate: ${rate}}`;
  return `apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: ${name}, labels: {of: page}}
spec:
  model: {preset: nano, weights: ${join(ROOT, "assets/nano/base.safetensors")}}
  resources: {gpus: 1}
  checkpoints: {every: 40, keepLast: 2}
${samples ? `  samples: {${samples}}\n` : ""}  stages:${Array.from({ length: stages }, (_, at) => stage(at + 1)).join("")}
`;
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

/** A cluster with a curator and two trainers; `stop` ends it. */
export async function up(folder) {
  mkdirSync(folder, { recursive: true });
  const dir = join(folder, "cluster");
  const log = openSync(join(folder, "up.log"), "w");
  const flags = ["up", "--dir", dir, "--device", "cpu", "--stop-on-stdin-close", "--save-within", "0s"];
  const child = spawn(program("crescendo"), flags, { cwd: folder, env: environment(folder), stdio: ["pipe", log, log] });
  const stop = () =>
    new Promise((done) => {
      if (child.exitCode !== null) return done();
      child.once("exit", done);
      child.stdin.end();
    });
  const state = await eventually("the cluster", () => {
    if (child.exitCode !== null) throw new Error(readFileSync(join(folder, "up.log"), "utf8"));
    const found = readJson(join(dir, "up.json"));
    return found?.processes.length === 4 && found.processes.every(({ grpc }) => grpc) && found;
  });
  const cli = (...args) =>
    execFileSync(program("crescendo"), ["--dir", dir, ...args], { env: environment(folder), encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  return {
    url: `http://${state.controller}`,
    cli,
    submit: (text) => {
      const file = join(folder, "spec.yaml");
      writeFileSync(file, text);
      return cli("submit", file).trim();
    },
    get: (id) => JSON.parse(cli("get", id, "-o", "json")),
    stop,
  };
}

const sha256 = (text) => createHash("sha256").update(text).digest("hex");

/** An identity provider that lets everybody in, as a submitter. What it checks is what a provider has to: the code's verifier. */
export async function issuer() {
  const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const codes = new Map();
  const base64url = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");
  const token = () => {
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: url, aud: "crescendo", sub: "olga", iat: now, exp: now + 600, crescendo_role: "submitter", crescendo_tenant: "default" };
    const signed = `${base64url({ alg: "RS256", kid: "k", typ: "JWT" })}.${base64url(claims)}`;
    return `${signed}.${createSign("RSA-SHA256").update(signed).sign(privateKey).toString("base64url")}`;
  };
  const answers = {
    "/.well-known/openid-configuration": () => ({
      issuer: url,
      jwks_uri: `${url}/keys`,
      authorization_endpoint: `${url}/authorize`,
      token_endpoint: `${url}/token`,
    }),
    "/keys": () => ({ keys: [{ ...publicKey.export({ format: "jwk" }), kid: "k", alg: "RS256", use: "sig" }] }),
    "/token": (form) => {
      const asked = codes.get(form.get("code"));
      codes.delete(form.get("code"));
      const challenge = createHash("sha256").update(form.get("code_verifier") ?? "").digest("base64url");
      const isGood = asked && asked.challenge === challenge && asked.to === form.get("redirect_uri") && form.get("client_id") === "page";
      return isGood ? { access_token: token(), token_type: "Bearer" } : undefined;
    },
  };
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://here");
    if (pathname === "/authorize") {
      const code = randomUUID();
      codes.set(code, { challenge: searchParams.get("code_challenge"), to: searchParams.get("redirect_uri") });
      const to = new URL(searchParams.get("redirect_uri"));
      to.searchParams.set("code", code);
      to.searchParams.set("state", searchParams.get("state"));
      return response.writeHead(302, { location: to.href }).end();
    }
    let body = "";
    for await (const piece of request) body += piece;
    const answer = answers[pathname]?.(new URLSearchParams(body));
    response.writeHead(answer ? 200 : 400, { "content-type": "application/json" }).end(JSON.stringify(answer ?? { error: "invalid_grant" }));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const url = `http://127.0.0.1:${server.address().port}`;
  return { url, host: new URL(url).host, stop: () => server.close() };
}

/** A controller alone, with TLS, tokens of a viewer and of an admin, and a login at an issuer. */
export async function guarded(folder, provider) {
  mkdirSync(folder, { recursive: true });
  const at = (name) => join(folder, name);
  const openssl = (...args) => execFileSync("openssl", args, { stdio: "ignore" });
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  openssl("req", "-x509", ...curve, "-days", "2", "-subj", "/CN=root", "-keyout", at("ca.key"), "-out", at("ca.pem"));
  openssl("req", "-new", ...curve, "-subj", "/CN=controller", "-keyout", at("key.pem"), "-out", at("csr.pem"));
  writeFileSync(at("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n");
  openssl("x509", "-req", "-in", at("csr.pem"), "-CA", at("ca.pem"), "-CAkey", at("ca.key"), "-CAcreateserial", "-days", "2", "-extfile", at("ext"), "-out", at("cert.pem"));
  const tokens = { viewer: "a-viewers-token-of-the-page", admin: "an-admins-token-of-the-page" };
  writeFileSync(
    at("tokens.yaml"),
    `- {name: vera, role: viewer, tenant: default, sha256: "${sha256(tokens.viewer)}", expires: never}
- {name: ada, role: admin, sha256: "${sha256(tokens.admin)}", expires: never}
`,
  );
  const flags = [
    "--store", `embedded:${at("store")}`, "--object-store", `file://${at("objects")}`, "--listen", "127.0.0.1:0",
    "--metrics-listen", "127.0.0.1:0", "--port-file", at("ports.json"), "--auth-tokens", at("tokens.yaml"),
    "--oidc-issuer", provider.url, "--oidc-audience", "crescendo", "--oidc-page-client-id", "page",
    "--tls-cert", at("cert.pem"), "--tls-key", at("key.pem"), "--tls-ca", at("ca.pem"),
  ];
  const log = openSync(at("controller.log"), "w");
  const child = spawn(program("crescendo-controller"), flags, { env: environment(folder), stdio: ["ignore", log, log] });
  // Whatever becomes of the tests, it does not outlive them.
  process.on("exit", () => child.kill("SIGKILL"));
  const ports = await eventually("the controller", () => {
    if (child.exitCode !== null) throw new Error(readFileSync(at("controller.log"), "utf8"));
    return existsSync(at("ports.json")) && readJson(at("ports.json"));
  });
  const cli = (...args) =>
    execFileSync(program("crescendo"), ["--controller", ports.grpc, "--tls-ca", at("ca.pem"), ...args], {
      env: { ...environment(folder), CRESCENDO_TOKEN: tokens.admin },
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
  return {
    url: `https://${ports.grpc}`,
    tokens,
    submit: (text) => {
      writeFileSync(at("spec.yaml"), text);
      return cli("submit", at("spec.yaml")).trim();
    },
    stop: () =>
      new Promise((done) => {
        if (child.exitCode !== null) return done();
        child.once("exit", done);
        child.kill("SIGTERM");
      }),
  };
}
