// What views have shown so far, with what has come.
import type { ListCheckpointsResponse } from "./gen/crescendo/v1/checkpoint_pb.ts";
import type { ExplainJobResponse, Job, LogLine } from "./gen/crescendo/v1/job_pb.ts";
import type { Sampling } from "./gen/crescendo/v1/sample_pb.ts";
import type { Node } from "./gen/crescendo/v1/node_pb.ts";
import { type Points, grown } from "./curves.ts";
import type { Shown } from "./watch/hub.ts";

export interface JobsPart {
  jobs: Job[];
  total: number;
}

export function jobsPart(before: JobsPart | undefined, shown: Shown): JobsPart | undefined {
  if (shown.case !== "jobs") return before;
  const { jobIds, changed, total } = shown.value;
  const known = new Map([...(before?.jobs ?? []), ...changed].map((job) => [job.jobId, job]));
  return { jobs: jobIds.flatMap((id) => known.get(id) ?? []), total };
}

export interface JobWhole {
  job?: Job;
  explanation?: ExplainJobResponse;
  checkpoints?: ListCheckpointsResponse;
}

export function jobWhole(before: JobWhole | undefined, shown: Shown): JobWhole | undefined {
  if (shown.case !== "job") return before;
  const { job, explanation, checkpoints } = shown.value;
  return {
    ...before,
    ...(job && { job }),
    ...(explanation && { explanation }),
    ...(checkpoints && { checkpoints }),
  };
}

export function nodeList(before: Node[] | undefined, shown: Shown): Node[] | undefined {
  if (shown.case !== "nodes") return before;
  const { changed, gone } = shown.value;
  const known = new Map([...(before ?? []), ...changed].map((node) => [node.nodeId, node]));
  for (const id of gone) known.delete(id);
  return [...known.values()].sort((left, right) => (left.nodeId < right.nodeId ? -1 : 1));
}

/** What is drawn of a job's stages, by stage and step. */
export function samplings(before: Sampling[] | undefined, shown: Shown): Sampling[] | undefined {
  if (shown.case !== "samples") return before;
  const of = ({ stage, step }: Sampling) => `${stage} ${step}`;
  const known = new Map([...(before ?? []), ...shown.value.samplings].map((one) => [of(one), one]));
  return [...known.values()].sort((left, right) => left.stage.localeCompare(right.stage) || Number(left.step - right.step));
}

/** Lines of a log that stay in sight. */
export const MAX_LINES = 2000;

export interface Log {
  /** Number of the first line that is here. */
  first: number;
  lines: LogLine[];
}

export function logLines(before: Log | undefined, shown: Shown): Log | undefined {
  if (shown.case !== "log") return before;
  const all = [...(before?.lines ?? []), ...shown.value.lines];
  const over = Math.max(0, all.length - MAX_LINES);
  return { first: (before?.first ?? 0) + over, lines: all.slice(over) };
}

/** By stage. */
export type Curves = Record<string, Points>;

export function curves(before: Curves | undefined, shown: Shown): Curves | undefined {
  if (shown.case !== "curves") return before;
  const now = { ...before };
  for (const curve of shown.value.curves) now[curve.stage] = grown(now[curve.stage], curve);
  return now;
}
