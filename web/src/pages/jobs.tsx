import { useEffect, useState } from "preact/hooks";
import { count, duration, figure } from "../format.ts";
import { type Job, JobState, StagePhase, type StageStatus } from "../gen/crescendo/v1/job_pb.ts";
import { JobOrder } from "../gen/crescendo/v1/view_pb.ts";
import { Ago, Badge, Bar, Problem, STATES, hasEnded } from "../parts/basics.tsx";
import { href, rewrite } from "../route.ts";
import { useSession } from "../session.ts";
import { jobsPart } from "../shown.ts";
import { useView } from "../watch/watch.ts";
import { create } from "@bufbuild/protobuf";
import { JobsViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { labelsOf } from "../labels.ts";

const PAGE = 100;
const OPEN = [JobState.QUEUED, JobState.PLACING, JobState.RUNNING, JobState.PAUSED, JobState.PREEMPTING];
const CHOICES: Record<string, { text: string; states: JobState[] }> = {
  "": { text: "All", states: [] },
  open: { text: "Open", states: OPEN },
  running: { text: "Running", states: [JobState.RUNNING] },
  waiting: { text: "Queued", states: [JobState.QUEUED, JobState.PLACING, JobState.PREEMPTING] },
  paused: { text: "Paused", states: [JobState.PAUSED] },
  succeeded: { text: "Succeeded", states: [JobState.SUCCEEDED] },
  failed: { text: "Failed", states: [JobState.FAILED] },
  cancelled: { text: "Cancelled", states: [JobState.CANCELLED] },
};
const ORDERS: Record<string, JobOrder> = {
  submitted: JobOrder.SUBMITTED,
  name: JobOrder.NAME,
  priority: JobOrder.PRIORITY,
  state: JobOrder.STATE,
  progress: JobOrder.PROGRESS,
};

/** What is typed, once it has rested. */
function useRested(value: string, millis: number): string {
  const [rested, setRested] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setRested(value), millis);
    return () => clearTimeout(timer);
  }, [value]);
  return rested;
}

export function JobsPage({ query }: { query: URLSearchParams }) {
  const { who } = useSession();
  const state = query.get("state") ?? "";
  const sort = query.get("sort") ?? "submitted";
  const reversed = query.get("reversed") === "1";
  const offset = Number(query.get("from") ?? "0") || 0;
  const [text, setText] = useState(query.get("text") ?? "");
  const [labels, setLabels] = useState(query.get("labels") ?? "");
  const [picked, setPicked] = useState<Set<string>>(new Set());
  const restedText = useRested(text, 250);
  const restedLabels = useRested(labels, 250);

  const go = (change: Record<string, string>) => {
    const now = { state, sort: sort === "submitted" ? "" : sort, reversed: reversed ? "1" : "", text, labels, from: "" };
    rewrite(["jobs"], { ...now, ...change });
  };
  useEffect(() => {
    if ((query.get("text") ?? "") !== restedText || (query.get("labels") ?? "") !== restedLabels) {
      go({ text: restedText, labels: restedLabels });
    }
  }, [restedText, restedLabels]);

  const identity = JSON.stringify([state, sort, reversed, offset, restedText, restedLabels]);
  const { value, failed } = useView(
    identity,
    () => ({
      case: "jobs",
      value: create(JobsViewSchema, {
        states: CHOICES[state]?.states ?? [],
        text: restedText,
        labels: labelsOf(restedLabels),
        order: ORDERS[sort] ?? JobOrder.SUBMITTED,
        reversed,
        offset,
        limit: PAGE,
      }),
    }),
    jobsPart,
  );
  const pick = (id: string) => {
    const next = new Set(picked);
    if (!next.delete(id)) next.add(id);
    setPicked(next);
  };
  // The newest, the most important and the furthest come first unless they are turned round.
  const rises = (by: string) => (by === "name" || by === "state") !== reversed;
  const sorter = (by: string, title: string) => (
    <th scope="col" aria-sort={sort === by ? (rises(by) ? "ascending" : "descending") : "none"}>
      <button
        type="button"
        class="sort"
        onClick={() => go({ sort: by === "submitted" ? "" : by, reversed: sort === by && !reversed ? "1" : "" })}
      >
        {title}
      </button>
    </th>
  );
  return (
    <section class="page">
      <div class="head">
        <h1>Jobs</h1>
        <span class="faint" role="status">
          {value ? `${count(value.total)} ${value.total === 1 ? "job" : "jobs"}` : ""}
        </span>
        <span class="grow" />
        {picked.size < 2 ? (
          <button type="button" disabled title="Mark two jobs or more">
            Compare
          </button>
        ) : (
          <a class="button" href={href(["compare"], { jobs: [...picked].join(",") })}>
            Compare {picked.size}
          </a>
        )}
      </div>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <label>
          State
          <select value={state} onChange={(event) => go({ state: event.currentTarget.value })}>
            {Object.entries(CHOICES).map(([key, { text }]) => (
              <option key={key} value={key}>
                {text}
              </option>
            ))}
          </select>
        </label>
        <label>
          Name
          <input type="search" value={text} placeholder="part of a name or id" onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <label>
          Labels
          <input type="search" value={labels} placeholder="key=value, key" onInput={(event) => setLabels(event.currentTarget.value)} />
        </label>
      </form>
      {failed && <Problem>{failed.message}</Problem>}
      <div class="scroll" role="region" aria-label="Jobs" tabIndex={0}>
        <table class="jobs">
          <thead>
            <tr>
              <th scope="col">
                <span class="sr">Compare</span>
              </th>
              {sorter("name", "Name")}
              {sorter("state", "State")}
              {sorter("progress", "Progress")}
              <th scope="col" class="num">
                Loss
              </th>
              <th scope="col" class="num">
                Samples/s
              </th>
              <th scope="col" class="num">
                Left
              </th>
              <th scope="col">Reason</th>
              {!who.tenant && <th scope="col">Tenant</th>}
              {sorter("priority", "Priority")}
              {sorter("submitted", "Submitted")}
            </tr>
          </thead>
          <tbody>
            {value?.jobs.map((job) => (
              <Row key={job.jobId} job={job} picked={picked.has(job.jobId)} pick={() => pick(job.jobId)} tenants={!who.tenant} />
            ))}
          </tbody>
        </table>
      </div>
      {value && value.jobs.length === 0 && (
        <p class="empty">
          {restedText || restedLabels || state ? "No job matches." : "No job was submitted yet: crescendo submit FILE"}
        </p>
      )}
      {value && value.total > PAGE && (
        <nav class="pages" aria-label="Pages">
          <button type="button" disabled={offset === 0} onClick={() => go({ from: String(Math.max(0, offset - PAGE)) })}>
            Earlier
          </button>
          <span>
            {count(offset + 1)} to {count(Math.min(offset + PAGE, value.total))} of {count(value.total)}
          </span>
          <button type="button" disabled={offset + PAGE >= value.total} onClick={() => go({ from: String(offset + PAGE) })}>
            Later
          </button>
        </nav>
      )}
    </section>
  );
}

/** The stage that a job is at: the first that is not done, or its last. */
export function currentStage(job: Job): StageStatus | undefined {
  return job.stages.find((stage) => stage.phase !== StagePhase.DONE) ?? job.stages.at(-1);
}

function Row(props: { job: Job; picked: boolean; pick: () => void; tenants: boolean }) {
  const { job } = props;
  const stage = currentStage(job);
  const steps = job.stages.reduce((sum, { step }) => sum + Number(step), 0);
  const total = job.stages.reduce((sum, { stepsTotal }) => sum + Number(stepsTotal), 0);
  const trains = stage?.phase === StagePhase.TRAINING;
  const reason = job.reason || (hasEnded(job.state) ? "" : (stage?.waitingFor ?? ""));
  return (
    <tr>
      <td>
        <input type="checkbox" aria-label={`Compare ${job.jobId}`} checked={props.picked} onChange={props.pick} />
      </td>
      <th scope="row">
        <a href={href(["jobs", job.jobId])}>{job.jobId}</a>
        {Object.keys(job.labels).length > 0 && (
          <span class="labels">
            {Object.entries(job.labels).map(([key, label]) => (
              <span key={key} class="label">
                {label ? `${key}=${label}` : key}
              </span>
            ))}
          </span>
        )}
      </th>
      <td>
        <Badge {...STATES[job.state]} />
      </td>
      <td class="progress">
        <Bar part={total ? steps / total : 0} label={`Progress of ${job.jobId}`} />
        <span class="faint">
          {stage?.name} {count(stage?.step ?? 0)}/{count(stage?.stepsTotal ?? 0)}
        </span>
      </td>
      <td class="num">{figure(stage?.loss || undefined)}</td>
      <td class="num">{trains ? figure(stage?.samplesPerSec) : "–"}</td>
      <td class="num">{trains && stage?.etaSeconds ? duration(stage.etaSeconds) : "–"}</td>
      <td class="reason" title={reason}>
        {reason}
      </td>
      {props.tenants && <td>{job.tenant}</td>}
      <td class="num">{job.priority}</td>
      <td>
        <Ago at={job.submittedAt} />
      </td>
    </tr>
  );
}
