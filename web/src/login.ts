// Login at an identity provider: authorization code with PKCE. The browser goes there and comes back with a code; the controller
// exchanges it, so that the page reaches no other address by script.
import { clients } from "./client.ts";

/** What a login that is under way needs when it comes back; of this tab alone. */
const KEPT_AS = "crescendo.login";

interface Begun {
  verifier: string;
  state: string;
  /** Where the page was. */
  hash: string;
}

export interface Provider {
  /** For people: the host that they are sent to. */
  name: string;
  authorizationEndpoint: string;
  clientId: string;
  scope: string;
}

export const redirectUri = () => `${location.origin}/`;

/** The provider of this cluster; none where there is none for the page, or where a browser has no means for a login. */
export async function provider(): Promise<Provider | undefined> {
  if (!globalThis.crypto?.subtle) return undefined;
  const { authorizationEndpoint, clientId, scope } = await clients("").access.getLogin({}, { timeoutMs: 15_000 });
  const url = safeUrl(authorizationEndpoint);
  return url && { name: url.host, authorizationEndpoint, clientId, scope };
}

/** Only what a browser may be sent to: no `javascript:`. */
function safeUrl(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const here = url && ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
  return url && (url.protocol === "https:" || (url.protocol === "http:" && here)) ? url : undefined;
}

export function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

/** What the provider is shown first of a verifier. */
export async function challenge(verifier: string): Promise<string> {
  return base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier))));
}

/** Leaves for the provider. */
export async function begin(to: Provider) {
  const begun: Begun = { verifier: random(), state: random(), hash: location.hash };
  sessionStorage.setItem(KEPT_AS, JSON.stringify(begun));
  const url = new URL(to.authorizationEndpoint);
  for (const [name, value] of Object.entries({
    response_type: "code",
    client_id: to.clientId,
    redirect_uri: redirectUri(),
    scope: to.scope,
    state: begun.state,
    code_challenge: await challenge(begun.verifier),
    code_challenge_method: "S256",
  })) {
    url.searchParams.set(name, value);
  }
  location.assign(url);
}

/** The token that a login has brought, if the page comes back from one. Nothing of it stays in the address. */
export async function finish(): Promise<string | undefined> {
  const came = new URLSearchParams(location.search);
  if (!came.has("state")) return undefined;
  const kept = sessionStorage.getItem(KEPT_AS);
  sessionStorage.removeItem(KEPT_AS);
  const begun = kept === null ? undefined : (JSON.parse(kept) as Begun);
  history.replaceState(null, "", `/${begun?.hash ?? ""}`);
  if (!begun || came.get("state") !== begun.state) throw new Error("this login was not begun in this tab; sign in again");
  const code = came.get("code");
  if (!code) throw new Error(`the identity provider says: ${came.get("error_description") ?? came.get("error") ?? "no"}`);
  const request = { code, codeVerifier: begun.verifier, redirectUri: redirectUri() };
  return (await clients("").access.exchangeCode(request, { timeoutMs: 30_000 })).token;
}
