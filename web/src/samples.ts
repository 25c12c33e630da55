// Pictures that were drawn with checkpoints: a WebDataset tar a step, as it comes from the controller.
import type { Clients } from "./client.ts";
import { count } from "./format.ts";
import type { Sampling } from "./gen/crescendo/v1/sample_pb.ts";

const BLOCK = 512;
/** Largest tar that is taken into memory. */
export const MOST_BYTES = 256 * 1024 ** 2;

/** The files of a tar, by name. */
export function untar(tar: Uint8Array): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  const text = (from: number, length: number) => {
    const bytes = tar.subarray(from, from + length);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  };
  for (let at = 0; at + BLOCK <= tar.length && tar[at] !== 0; ) {
    const size = Number.parseInt(text(at + 124, 12).trim() || "0", 8);
    if (!Number.isFinite(size) || at + BLOCK + size > tar.length) throw new Error("the pictures end too early");
    files.set(text(at, 100), tar.subarray(at + BLOCK, at + BLOCK + size));
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
  return files;
}

/** One picture that was drawn. */
export interface Drawn {
  /** The same at every step. */
  key: string;
  prompt: string;
  words: string[];
  target: Uint8Array;
  references: Uint8Array[];
}

interface Facts {
  prompt?: string;
  reference_words?: string[];
  provenance?: { picture?: number } | null;
}

/** The pictures of a step, in the order in which they were drawn. */
export function drawnOf(tar: Uint8Array): Drawn[] {
  const files = untar(tar);
  const numbers = [...files.keys()].filter((name) => name.endsWith(".json")).map((name) => name.slice(0, -".json".length));
  return numbers.flatMap((number) => {
    const target = files.get(`${number}.target.png`);
    const facts = JSON.parse(new TextDecoder().decode(files.get(`${number}.json`))) as Facts;
    if (!target) return [];
    const references: Uint8Array[] = [];
    for (let at = 0; ; at += 1) {
      const reference = files.get(`${number}.ref${at}.png`);
      if (!reference) break;
      references.push(reference);
    }
    const [prompt, words] = [facts.prompt ?? "", facts.reference_words ?? []];
    return [{ key: JSON.stringify([prompt, words, facts.provenance?.picture ?? 0]), prompt, words, target, references }];
  });
}

/** What is drawn, with the picture of each step that is here. */
export interface Row {
  first: Drawn;
  bySteps: Map<string, Drawn>;
}

export function rowsOf(steps: Iterable<[string, Drawn[]]>): Row[] {
  const rows = new Map<string, Row>();
  for (const [step, pictures] of steps) {
    for (const drawn of pictures) {
      const row = rows.get(drawn.key) ?? { first: drawn, bySteps: new Map() };
      row.bySteps.set(step, drawn);
      rows.set(drawn.key, row);
    }
  }
  return [...rows.values()];
}

/** "step 1,200"; what a stage begins with is before training. */
export const stepWords = (step: bigint) => (step === 0n ? "before training" : `step ${count(Number(step))}`);

/** What several jobs have drawn of a stage. */
export interface Compared {
  /** Steps at which any of them has pictures, ascending. */
  steps: bigint[];
  /** The last one that as many of them have as any. */
  best: bigint | undefined;
}

/** Of each job its samplings of one stage. */
export function compared(jobs: Sampling[][]): Compared {
  const having = new Map<bigint, number>();
  for (const own of jobs) {
    for (const { step, file } of own) if (file) having.set(step, (having.get(step) ?? 0) + 1);
  }
  const steps = [...having.keys()].sort((a, b) => (a < b ? -1 : 1));
  const most = Math.max(0, ...having.values());
  return { steps, best: steps.filter((step) => having.get(step) === most).at(-1) };
}

/** At most `most` of the items, evenly spread, the first and the last among them. */
export function spread<T>(items: T[], most: number): T[] {
  if (items.length <= most) return items;
  return Array.from({ length: most }, (_, at) => items[Math.round((at * (items.length - 1)) / (most - 1))] as T);
}

/** The pictures of a step, held to what is registered. */
export async function fetchSamples(api: Clients, sampling: Sampling, signal: AbortSignal): Promise<Drawn[]> {
  const { jobId, stage, step, file } = sampling;
  if (!file) return [];
  const size = Number(file.sizeBytes);
  if (size > MOST_BYTES) throw new Error("they are too many for a page; crescendo samples fetches them");
  const tar = new Uint8Array(size);
  let got = 0;
  for await (const { message } of api.samples.readSamples({ jobId, stage, step }, { signal })) {
    if (message.case !== "chunk") continue;
    if (got + message.value.length > size) throw new Error("more came than was registered");
    tar.set(message.value, got);
    got += message.value.length;
  }
  if (got !== size) throw new Error(`only ${got} of ${size} bytes came`);
  // Without TLS, but for this machine's own names, browsers have no digests.
  if (globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", tar));
    const sha256 = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (sha256 !== file.sha256) throw new Error("they are not what was registered");
  }
  return drawnOf(tar);
}
