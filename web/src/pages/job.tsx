import { create } from "@bufbuild/protobuf";
import { useEffect, useState } from "preact/hooks";
import { duration } from "../format.ts";
import { type ExplainJobResponse, type Job, JobState } from "../gen/crescendo/v1/job_pb.ts";
import { JobViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { Actions } from "../parts/actions.tsx";
import { Ago, Badge, Problem, STATES, hasEnded } from "../parts/basics.tsx";
import { Checkpoints } from "../parts/checkpoints.tsx";
import { JobCurves } from "../parts/job-curves.tsx";
import { Lineage } from "../parts/lineage.tsx";
import { Logs } from "../parts/logs.tsx";
import { Notes } from "../parts/notes.tsx";
import { Pairs } from "../parts/pairs.tsx";
import { Samples } from "../parts/samples.tsx";
import { Spec } from "../parts/spec.tsx";
import { Stages } from "../parts/stages.tsx";
import { href } from "../route.ts";
import { jobWhole } from "../shown.ts";
import { useView } from "../watch/watch.ts";

const TABS = {
  curves: "Curves",
  pairs: "Pairs",
  samples: "Samples",
  log: "Log",
  checkpoints: "Checkpoints",
  spec: "Spec",
  lineage: "Lineage",
  notes: "Notes",
} as const;
type TabName = keyof typeof TABS;

export function JobPage({ id, query }: { id: string; query: URLSearchParams }) {
  const { value, failed } = useView(
    id,
    () => ({ case: "job", value: create(JobViewSchema, { jobId: id }) }),
    jobWhole,
  );
  const asked = query.get("tab") ?? "curves";
  const tab: TabName = asked in TABS ? (asked as TabName) : "curves";
  const job = value?.job;
  useEffect(() => {
    document.title = job ? `${job.jobId}: ${STATES[job.state].text} – Crescendo` : "Crescendo";
    return () => {
      document.title = "Crescendo";
    };
  }, [job?.jobId, job?.state]);
  return (
    <section class="page">
      <div class="head">
        <h1 class="id">{id}</h1>
        {job && <Badge {...STATES[job.state]} />}
        <span class="grow" />
        {job && <Actions job={job} />}
      </div>
      {failed && <Problem>{failed.message}</Problem>}
      {job && value && (
        <>
          <Facts job={job} />
          <Why job={job} explanation={value.explanation} />
          <Stages job={job} />
          <nav class="tabs" aria-label="Parts of the job">
            {Object.entries(TABS).map(([name, text]) => (
              <a key={name} href={href(["jobs", id], name === "curves" ? {} : { tab: name })} aria-current={tab === name ? "page" : undefined}>
                {text}
                {name === "notes" && job.notes.length > 0 && <span class="count">{job.notes.length}</span>}
                {name === "checkpoints" && (value.checkpoints?.checkpoints.length ?? 0) > 0 && (
                  <span class="count">{value.checkpoints?.checkpoints.length}</span>
                )}
              </a>
            ))}
          </nav>
          {tab === "curves" && <JobCurves job={job} />}
          {tab === "pairs" && <Pairs job={job} />}
          {tab === "samples" && <Samples job={job} />}
          {tab === "log" && <Logs jobId={id} />}
          {tab === "checkpoints" && <Checkpoints checkpoints={value.checkpoints?.checkpoints ?? []} jobId={id} />}
          {tab === "spec" && <Spec jobId={id} />}
          {tab === "lineage" && <Lineage jobId={id} state={job.state} />}
          {tab === "notes" && <Notes job={job} />}
        </>
      )}
    </section>
  );
}

function Facts({ job }: { job: Job }) {
  const labels = Object.entries(job.labels);
  return (
    <dl class="facts">
      <div>
        <dt>Name</dt>
        <dd>{job.name}</dd>
      </div>
      <div>
        <dt>Tenant</dt>
        <dd>{job.tenant}</dd>
      </div>
      <div>
        <dt>Priority</dt>
        <dd>{job.priority}</dd>
      </div>
      <div>
        <dt>Slots held</dt>
        <dd>{job.slotsHeld}</dd>
      </div>
      <div>
        <dt>Submitted</dt>
        <dd>
          <Ago at={job.submittedAt} />
        </dd>
      </div>
      {job.finishedAt && (
        <div>
          <dt>Ended</dt>
          <dd>
            <Ago at={job.finishedAt} />
          </dd>
        </div>
      )}
      {labels.length > 0 && (
        <div>
          <dt>Labels</dt>
          <dd class="labels">
            {labels.map(([key, label]) => (
              <span key={key} class="label">
                {label ? `${key}=${label}` : key}
              </span>
            ))}
          </dd>
        </div>
      )}
    </dl>
  );
}

/** Why the job is where it is, and what it would take. */
function Why({ job, explanation }: { job: Job; explanation: ExplainJobResponse | undefined }) {
  const [open, setOpen] = useState(false);
  const summary = explanation?.summary || job.reason;
  const isTrouble = job.state === JobState.FAILED;
  if (!summary) return <div class="why" />;
  const { findings = [], remedies = [], goesOnInSeconds = 0 } = explanation ?? {};
  return (
    <div class={`why ${isTrouble ? "bad" : ""}`}>
      <p>
        {summary}
        {goesOnInSeconds > 0 && !hasEnded(job.state) && <span class="faint"> · about {duration(goesOnInSeconds)}</span>}
      </p>
      {findings.length + remedies.length > 0 && (
        <details open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
          <summary>Why, and what to do</summary>
          {findings.length > 0 && (
            <ul>
              {findings.map((finding) => (
                <li key={finding}>{finding}</li>
              ))}
            </ul>
          )}
          {remedies.length > 0 && (
            <>
              <p class="faint">What a person can do</p>
              <ul>
                {remedies.map((remedy) => (
                  <li key={remedy}>{remedy}</li>
                ))}
              </ul>
            </>
          )}
        </details>
      )}
    </div>
  );
}
