import assert from "node:assert/strict";
import { test } from "node:test";
import type { Sampling } from "../../src/gen/crescendo/v1/sample_pb.ts";
import { compared, drawnOf, rowsOf, spread, untar } from "../../src/samples.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

/** A tar as our shards are: ustar headers, contents in blocks of 512. */
function tar(files: [string, string][]): Uint8Array {
  const parts = files.flatMap(([name, content]) => {
    const header = new Uint8Array(512);
    header.set(bytes(name), 0);
    header.set(bytes(`${content.length.toString(8).padStart(11, "0")}\0`), 124);
    const body = new Uint8Array(Math.ceil(content.length / 512) * 512);
    body.set(bytes(content));
    return [header, body];
  });
  const end = new Uint8Array(1024);
  return new Uint8Array([...parts, end].flatMap((part) => [...part]));
}

const facts = (prompt: string, picture: number) => JSON.stringify({ prompt, reference_words: ["a cup"], provenance: { picture } });

test("a tar is read, and one that is cut is refused", () => {
  const whole = tar([["a.txt", "x".repeat(600)], ["b.txt", "y"]]);
  assert.deepEqual([...untar(whole)].map(([name, content]) => [name, content.length]), [["a.txt", 600], ["b.txt", 1]]);
  assert.throws(() => untar(whole.subarray(0, 700)), /end too early/);
});

test("pictures come in their order with their references, and rows hold the same at every step", () => {
  const step = (...prompts: string[]) =>
    drawnOf(
      tar(
        prompts.flatMap((prompt, at): [string, string][] => {
          const number = String(at).padStart(6, "0");
          return [
            [`${number}.target.png`, `target of ${prompt}`],
            [`${number}.ref0.png`, "reference"],
            [`${number}.json`, facts(prompt, 0)],
          ];
        }),
      ),
    );
  const [before, after] = [step("a cup", "a dog"), step("a dog")];
  assert.deepEqual(before.map(({ prompt, references }) => [prompt, references.length]), [["a cup", 1], ["a dog", 1]]);
  const rows = rowsOf([["0", before], ["40", after]]);
  assert.deepEqual(rows.map(({ first, bySteps }) => [first.prompt, [...bySteps.keys()]]), [["a cup", ["0"]], ["a dog", ["0", "40"]]]);
});

test("of several jobs the last step that most of them have is shown", () => {
  const of = (...steps: number[]) => steps.map((step) => ({ step: BigInt(step), file: step === 90 ? undefined : {} }) as unknown as Sampling);
  assert.deepEqual(compared([of(0, 40, 80), of(0, 40, 90)]), { steps: [0n, 40n, 80n], best: 40n });
  assert.deepEqual(compared([of(10), of(20)]), { steps: [10n, 20n], best: 20n });
  assert.deepEqual(compared([[], []]), { steps: [], best: undefined });
});

test("of many steps some are shown, the first and the last among them", () => {
  assert.deepEqual(spread([1, 2, 3], 12), [1, 2, 3]);
  assert.deepEqual(spread(Array.from({ length: 101 }, (_, at) => at), 5), [0, 25, 50, 75, 100]);
});
