import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { HistogramSchema, StageStatusSchema } from "../../src/gen/crescendo/v1/job_pb.ts";
import { buckets, pictureType, range, scoreNames } from "../../src/pairs.ts";

const histogram = (counts: number[]) => create(HistogramSchema, { least: -1, most: 1, counts: counts.map(BigInt) });

test("a histogram begins and ends where something is", () => {
  assert.equal(buckets(histogram([0, 0, 0, 0])), undefined);
  assert.deepEqual(buckets(histogram([0, 2, 0, 5])), { counts: [2, 0, 5], limits: [-0.5, 0, 0.5, 1], isFirst: false, isLast: true });
});

test("a range is that of the buckets, and open where the scale ends", () => {
  const shown = buckets(histogram([0, 2, 3, 5]));
  assert.ok(shown);
  assert.equal(range(shown, { from: 0, to: 2 }), undefined, "all of it");
  assert.deepEqual(range(shown, { from: 1, to: 1 }), { least: 0, most: 0.5 });
  assert.deepEqual(range(shown, { from: 2, to: 2 }), { least: 0.5, most: Infinity });
  assert.deepEqual(range(shown, { from: 0, to: 0 }), { least: -0.5, most: 0 });
});

test("the score that decided last comes first", () => {
  const scores = { similarity: histogram([1]), score: histogram([1]), judge: histogram([1]) };
  assert.deepEqual(scoreNames(create(StageStatusSchema, { scores })), ["judge", "similarity", "score"]);
  assert.deepEqual(scoreNames(undefined), []);
});

test("a picture's type is told by its first byte", () => {
  assert.deepEqual([new Uint8Array([0xff, 0xd8]), new Uint8Array([0x89, 0x50])].map(pictureType), ["image/jpeg", "image/png"]);
});
