// What the view of pairs works out: which score, which range of it, and what a picture's file is. Pure.
import type { Histogram, StageStatus } from "./gen/crescendo/v1/job_pb.ts";
import type { ReviewedPair } from "./gen/crescendo/v1/review_pb.ts";

/** The score that decided last: a judge sees only what passed the similarity filter. */
const ORDER = ["judge", "similarity", "score"];

export const scoreNames = (stage: StageStatus | undefined): string[] =>
  Object.keys(stage?.scores ?? {}).sort((left, right) => place(left) - place(right));

function place(name: string): number {
  const at = ORDER.indexOf(name);
  return at < 0 ? ORDER.length : at;
}

/** Buckets of a histogram, from the first to the last that anything is in. */
export interface Buckets {
  counts: number[];
  /** Their limits, one more than there are buckets. */
  limits: number[];
  /** Whether the scale ends there: what lies beyond is in that bucket too. */
  isFirst: boolean;
  isLast: boolean;
}

export function buckets({ least, most, counts }: Histogram): Buckets | undefined {
  const first = counts.findIndex((count) => count > 0n);
  if (first < 0) return undefined;
  const last = counts.length - 1 - [...counts].reverse().findIndex((count) => count > 0n);
  const width = (most - least) / counts.length;
  const limit = (at: number) => Number((least + at * width).toFixed(6));
  return {
    counts: counts.slice(first, last + 1).map(Number),
    limits: Array.from({ length: last - first + 2 }, (_, at) => limit(first + at)),
    isFirst: first === 0,
    isLast: last === counts.length - 1,
  };
}

/** Buckets from one to another, both of them in it. */
export interface Picked {
  from: number;
  to: number;
}

/** The scores that picked buckets hold; nothing where that is all. */
export function range({ counts, limits, isFirst, isLast }: Buckets, { from, to }: Picked) {
  if (from <= 0 && to >= counts.length - 1) return undefined;
  return {
    least: from === 0 && isFirst ? -Infinity : (limits[from] ?? -Infinity),
    most: to === counts.length - 1 && isLast ? Infinity : (limits[to + 1] ?? Infinity),
  };
}

/** What people call a pair, or a candidate that was turned down. */
export const pairName = ({ index, place }: ReviewedPair) =>
  index === undefined ? `unit ${place?.unit ?? 0}, ${(place?.number ?? 0) + 1}` : `pair ${index}`;

/** The type of a picture's file, by its first bytes. */
export const pictureType = (bytes: Uint8Array) => (bytes[0] === 0xff ? "image/jpeg" : "image/png");

/** A reason as words. */
export const reasonWords = (reason: string) => reason.replaceAll("_", " ");
