import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { grown, sampledRows, smoothed } from "../../src/curves.ts";
import { CurveSchema } from "../../src/gen/crescendo/v1/view_pb.ts";

const curve = (afterStep: number, steps: number[], bounds?: [number[], number[]]) =>
  create(CurveSchema, {
    jobId: "a-b",
    stage: "stage-1",
    afterStep: BigInt(afterStep),
    steps: steps.map(BigInt),
    loss: { mean: steps.map((step) => step / 10), least: bounds?.[0] ?? [], most: bounds?.[1] ?? [] },
  });

test("points follow those before, or take their place", () => {
  const first = grown(undefined, curve(0, [1, 2, 3]));
  assert.deepEqual(first.steps, [1, 2, 3]);
  const second = grown(first, curve(2, [4, 5]));
  assert.deepEqual(second.steps, [1, 2, 4, 5]);
  assert.deepEqual(
    second.lines.loss.mean.map((value) => Math.round(value * 10)),
    [1, 2, 4, 5],
  );
  const anew = grown(second, curve(0, [8]));
  assert.deepEqual(anew.steps, [8]);
  assert.deepEqual(first.steps, [1, 2, 3], "what was drawn is not changed");
});

test("bounds are the mean where none were sent", () => {
  const first = grown(undefined, curve(0, [1, 2]));
  assert.deepEqual(first.lines.loss.least, first.lines.loss.mean);
  const next = grown(first, curve(2, [4], [[-1], [9]]));
  assert.deepEqual([next.lines.loss.least.length, next.lines.loss.most.at(-1)], [3, 9]);
  assert.deepEqual(next.lines.gradNorm.mean, [], "a curve that nobody knows has no points");
});

test("smoothing begins at the first value and passes over what is not finite", () => {
  assert.deepEqual(smoothed([4, 4, 4], 0.9).map((value) => Math.round(value * 1e6) / 1e6), [4, 4, 4]);
  const [first, gap, last] = smoothed([1, Number.NaN, 3], 0.5);
  assert.equal(first, 1);
  assert.ok(Number.isNaN(gap));
  assert.ok(last !== undefined && last > 1 && last < 3);
  assert.deepEqual(smoothed([5, 1], 0), [5, 1]);
});

test("a table has the first and the last row", () => {
  assert.deepEqual(sampledRows(3, 10), [0, 1, 2]);
  const rows = sampledRows(1000, 10);
  assert.deepEqual([rows.length, rows[0], rows.at(-1)], [10, 0, 999]);
  assert.deepEqual(sampledRows(0, 10), []);
});
