// Points of curves as they come, and as they are drawn.
import type { Curve, Series } from "./gen/crescendo/v1/view_pb.ts";

export const SERIES = [
  { name: "loss", title: "Loss", unit: "" },
  { name: "gradNorm", title: "Gradient norm", unit: "" },
  { name: "learningRate", title: "Learning rate", unit: "" },
  { name: "stepsPerSec", title: "Steps a second", unit: "" },
  { name: "dataWait", title: "Waiting for data", unit: "share of a step" },
] as const;
export type SeriesName = (typeof SERIES)[number]["name"];

export interface Line {
  mean: number[];
  least: number[];
  most: number[];
}

export interface Points {
  jobId: string;
  stage: string;
  stepsTotal: number;
  incomplete: string;
  steps: number[];
  lines: Record<SeriesName, Line>;
}

const lineOf = (series: Series | undefined): Line => {
  const mean = series?.mean ?? [];
  return {
    mean: [...mean],
    least: series?.least.length ? [...series.least] : [...mean],
    most: series?.most.length ? [...series.most] : [...mean],
  };
};

const after = (line: Line, kept: number, next: Line): Line => ({
  mean: [...line.mean.slice(0, kept), ...next.mean],
  least: [...line.least.slice(0, kept), ...next.least],
  most: [...line.most.slice(0, kept), ...next.most],
});

/** The points with what has come: it takes the place of all after its `after_step`. */
export function grown(before: Points | undefined, curve: Curve): Points {
  const from = Number(curve.afterStep);
  const had = before && from > 0 ? before : undefined;
  // Steps ascend.
  let kept = had ? had.steps.length : 0;
  while (had && kept > 0 && (had.steps[kept - 1] ?? 0) > from) kept -= 1;
  const lines = {} as Record<SeriesName, Line>;
  for (const { name } of SERIES) {
    const next = lineOf(curve[name]);
    lines[name] = had ? after(had.lines[name], kept, next) : next;
  }
  return {
    jobId: curve.jobId,
    stage: curve.stage,
    stepsTotal: Number(curve.stepsTotal),
    incomplete: curve.incomplete,
    steps: [...(had?.steps.slice(0, kept) ?? []), ...curve.steps.map(Number)],
    lines,
  };
}

/** An exponential mean; its first values are not held down by a beginning at 0. What is not finite is passed over. */
export function smoothed(values: number[], weight: number): number[] {
  if (weight <= 0) return values;
  let sum = 0;
  let bias = 1;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = sum * weight + value * (1 - weight);
    bias *= weight;
    return sum / (1 - bias);
  });
}

export const hasValues = (line: Line) => line.mean.some((value) => Number.isFinite(value));

/** As uPlot wants them: what is not known is null. */
export const drawable = (values: number[]) => values.map((value) => (Number.isFinite(value) ? value : null));

/** Rows for a table of at most so many, the first and the last among them. */
export function sampledRows(length: number, most: number): number[] {
  if (length <= most) return Array.from({ length }, (_, at) => at);
  return Array.from({ length: most }, (_, at) => Math.round((at * (length - 1)) / (most - 1)));
}
