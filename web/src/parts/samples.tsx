import { create } from "@bufbuild/protobuf";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Job } from "../gen/crescendo/v1/job_pb.ts";
import { type Sampling, SamplingState } from "../gen/crescendo/v1/sample_pb.ts";
import { SamplesViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { type Drawn, fetchSamples, rowsOf, spread, stepWords } from "../samples.ts";
import { useSession } from "../session.ts";
import { samplings } from "../shown.ts";
import { useView } from "../watch/watch.ts";
import { Problem, said } from "./basics.tsx";
import { Plot } from "./plot.tsx";
import { SampleGrid } from "./sample-grid.tsx";
import { StagePicker } from "./stage-picker.tsx";

/** Steps of a grid. */
const MOST_COLUMNS = 12;
/** Steps whose pictures are kept. */
const MOST_KEPT = 24;
const LOOK = { smooth: 0, log: false };

/** What is drawn with a job's checkpoints, and the loss on pairs that training never sees. */
export function Samples({ job }: { job: Job }) {
  const { value, failed } = useView(
    job.jobId,
    () => ({ case: "samples", value: create(SamplesViewSchema, { jobId: job.jobId }) }),
    samplings,
  );
  const [picked, setPicked] = useState<string | undefined>();
  const stages = job.stages.map(({ name }) => name).filter((name) => value?.some(({ stage }) => stage === name));
  const stage = picked ?? stages.at(-1);
  const own = useMemo(() => (value ?? []).filter((one) => one.stage === stage), [value, stage]);
  if (failed) return <Problem>{failed.message}</Problem>;
  if (!value) return <p class="empty">…</p>;
  if (value.length === 0) {
    return (
      <p class="empty">
        Nothing was drawn yet. What is drawn with checkpoints is said in the spec, under <code>samples</code>.
      </p>
    );
  }
  return (
    <section aria-label="Samples">
      {stages.length > 1 && (
        <div class="controls">
          <StagePicker stages={stages} shown={stage} pick={setPicked} />
        </div>
      )}
      <UnderWay own={own} />
      <Pictures key={stage} own={own} />
      <Validation own={own} />
    </section>
  );
}

/** What is still to come, and what does not. */
function UnderWay({ own }: { own: Sampling[] }) {
  const words = own.flatMap(({ step, state, reason, progress }) => {
    if (state === SamplingState.DRAWN) return [];
    const name = stepWords(step);
    if (state === SamplingState.GIVEN_UP) return [`${name} is not drawn: ${reason}`];
    if (progress) return [`${name}: ${progress.of ? `${progress.done} of ${progress.of}` : "begun"} by ${progress.nodeId}`];
    return [`${name} waits for a curator${reason && `: ${reason}`}`];
  });
  return (
    <ul class="faint plain" aria-live="polite">
      {words.map((line) => (
        <li key={line}>{line}</li>
      ))}
    </ul>
  );
}

function Validation({ own }: { own: Sampling[] }) {
  const lines = useMemo(() => {
    const known = own.filter(({ validation }) => validation !== undefined);
    const steps = known.map(({ step }) => Number(step));
    const mean = known.map(({ validation }) => validation?.mean ?? Number.NaN);
    const least = known.map(({ validation }) => Math.min(...(validation?.losses ?? [])));
    const most = known.map(({ validation }) => Math.max(...(validation?.losses ?? [])));
    return [{ label: "Validation loss", steps, mean, least, most }];
  }, [own]);
  if (lines[0]?.steps.length === 0) return null;
  const pairs = own.find(({ validation }) => validation)?.validation?.pairs ?? 0;
  const note = `On ${pairs} pairs of subjects that training never sees, at five fixed times with fixed noise; the band goes from the easiest time to the hardest.`;
  return (
    <div class="plots">
      <Plot title="Validation loss" unit="" lines={lines} look={LOOK} note={note} />
    </div>
  );
}

/** The pictures of those that are wanted; what was fetched stays for a while. */
function useDrawn(wanted: Sampling[]) {
  const { api } = useSession();
  const [kept, setKept] = useState<Map<string, Drawn[]>>(new Map());
  const [failed, setFailed] = useState("");
  const missing = wanted.find((one) => !kept.has(nameOf(one)));
  const name = missing && nameOf(missing);
  useEffect(() => {
    if (!missing || !name) return;
    const abort = new AbortController();
    fetchSamples(api, missing, abort.signal).then(
      (drawn) => {
        setFailed("");
        setKept((before) => new Map([...before, [name, drawn] as const].slice(-MOST_KEPT)));
      },
      (thrown) => abort.signal.aborted || setFailed(said(thrown)),
    );
    return () => abort.abort();
  }, [name]);
  return { kept, failed };
}

/** A step that is drawn again has other pictures. */
const nameOf = ({ step, file }: Sampling) => `${step} ${file?.sha256}`;

function Pictures({ own }: { own: Sampling[] }) {
  const drawn = useMemo(() => own.filter(({ file }) => file !== undefined), [own]);
  const [all, setAll] = useState(false);
  const [chosen, setChosen] = useState<number | undefined>();
  const last = drawn.length - 1;
  const at = Math.min(chosen ?? last, last);
  const base = drawn[0]?.step === 0n ? drawn[0] : undefined;
  const now = drawn[at];
  const columns = useMemo(() => {
    if (all) return spread(drawn, MOST_COLUMNS);
    return [...(base && base !== now ? [base] : []), ...(now ? [now] : [])];
  }, [drawn, all, base, now]);
  const { kept, failed } = useDrawn(columns);
  const rows = rowsOf(columns.map((one) => [nameOf(one), kept.get(nameOf(one)) ?? []]));
  if (drawn.length === 0) return <p class="empty">No pictures yet.</p>;
  const step = (one: Sampling | undefined) => stepWords(one?.step ?? 0n);
  return (
    <>
      <div class="controls">
        <label>
          <input type="checkbox" checked={all} onChange={(event) => setAll(event.currentTarget.checked)} />
          All steps{drawn.length > MOST_COLUMNS && all ? `, ${MOST_COLUMNS} of ${drawn.length}` : ""}
        </label>
        {!all && drawn.length > 1 && (
          <label class="grow">
            Step
            <input
              type="range"
              aria-label="Step"
              min={0}
              max={last}
              value={at}
              aria-valuetext={step(now)}
              onInput={(event) => setChosen(Number(event.currentTarget.value))}
            />
            <span class="num">{step(now)}</span>
          </label>
        )}
      </div>
      {failed && <Problem>{failed}</Problem>}
      <SampleGrid
        label="Pictures by step"
        rows={rows}
        columns={columns.map((one) => ({ name: nameOf(one), heading: step(one), loss: one.validation?.mean }))}
      />
    </>
  );
}
