import { create } from "@bufbuild/protobuf";
import { useEffect, useMemo, useState } from "preact/hooks";
import { SERIES, hasValues } from "../curves.ts";
import { count, figure } from "../format.ts";
import { CurvesViewSchema, JobViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { type Difference, differences, leaves } from "../leaves.ts";
import { Badge, Problem, STATES, useAsked } from "../parts/basics.tsx";
import { ComparedSamples } from "../parts/compared-samples.tsx";
import { type Look, LookPicker, Plot, type PlotLine } from "../parts/plot.tsx";
import { StagePicker } from "../parts/stage-picker.tsx";
import { href } from "../route.ts";
import { useSession } from "../session.ts";
import { type Curves, type JobWhole, curves, jobWhole } from "../shown.ts";
import { type Watched, tab } from "../watch/watch.ts";
import { currentStage } from "./jobs.tsx";

/** Lines that can be told apart. */
const MOST = 8;

type Of<T> = Record<string, Watched<T>>;

/** Watches the same of several jobs. */
function useJobs(ids: string[]): { jobs: Of<JobWhole>; lines: Of<Curves> } {
  const [jobs, setJobs] = useState<Of<JobWhole>>({});
  const [lines, setLines] = useState<Of<Curves>>({});
  const key = ids.join(",");
  useEffect(() => {
    setJobs({});
    setLines({});
    const ends = ids.flatMap((jobId) => [
      tab.watch({ case: "job", value: create(JobViewSchema, { jobId }) }, (shown, first) =>
        setJobs((before) => ({
          ...before,
          [jobId]:
            shown.case === "failed"
              ? { value: undefined, failed: shown.value }
              : { value: jobWhole(first ? undefined : before[jobId]?.value, shown), failed: undefined },
        })),
      ),
      tab.watch({ case: "curves", value: create(CurvesViewSchema, { jobId, maxPoints: 600 }) }, (shown, first) =>
        setLines((before) => ({
          ...before,
          [jobId]: { value: curves(first ? undefined : before[jobId]?.value, shown), failed: undefined },
        })),
      ),
    ]);
    return () => ends.forEach((end) => end());
  }, [key]);
  return { jobs, lines };
}

export function ComparePage({ query }: { query: URLSearchParams }) {
  const ids = (query.get("jobs") ?? "").split(",").filter(Boolean).slice(0, MOST);
  const { jobs, lines } = useJobs(ids);
  const stages = [...new Set(ids.flatMap((id) => Object.keys(lines[id]?.value ?? {})))];
  const [picked, setPicked] = useState<string | undefined>();
  const [look, setLook] = useState<Look>({ smooth: 0.6, log: false });
  const stage = picked && stages.includes(picked) ? picked : stages.at(-1);
  const plots = useMemo(
    () =>
      SERIES.map(({ name, title, unit }) => {
        const drawn = ids.flatMap((id, colour): PlotLine[] => {
          const points = stage === undefined ? undefined : lines[id]?.value?.[stage];
          const line = points?.lines[name];
          return points && line && hasValues(line) ? [{ label: id, colour, steps: points.steps, mean: line.mean }] : [];
        });
        return { name, title, unit, lines: drawn };
      }),
    [lines, stage],
  );
  return (
    <section class="page">
      <div class="head">
        <h1>Compare</h1>
        <span class="grow" />
        <a class="button" href={href(["jobs"])}>
          To the jobs
        </a>
      </div>
      {ids.length < 2 && <p class="empty">Mark two jobs or more in the list of jobs, then compare them.</p>}
      {ids.length > 0 && (
        <div class="scroll" role="region" aria-label="Compared jobs" tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Job</th>
                <th scope="col">State</th>
                <th scope="col">Stage</th>
                <th scope="col" class="num">
                  Steps
                </th>
                <th scope="col" class="num">
                  Loss
                </th>
                <th scope="col" class="num">
                  Mean of the last points
                </th>
                <th scope="col" class="num">
                  Gradient norm
                </th>
                <th scope="col" class="num">
                  Steps/s
                </th>
                <th scope="col" class="num">
                  Pairs
                </th>
              </tr>
            </thead>
            <tbody>
              {ids.map((id, colour) => (
                <Row key={id} id={id} colour={colour} job={jobs[id]} curves={lines[id]?.value} stage={stage} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {ids.length > 1 && <Specs ids={ids} />}
      <div class="controls">
        <StagePicker stages={stages} shown={stage} pick={setPicked} />
        <LookPicker look={look} set={setLook} />
      </div>
      <div class="plots">
        {plots.map(({ name, title, unit, lines: drawn }) => (
          <Plot key={name} title={title} unit={unit} lines={drawn.length ? drawn : [{ label: title, steps: [], mean: [] }]} look={look} />
        ))}
      </div>
      {ids.length > 1 && stage !== undefined && <ComparedSamples ids={ids} stage={stage} look={look} />}
    </section>
  );
}

/** The fields in which the resolved specs differ. */
function Specs({ ids }: { ids: string[] }) {
  const { api } = useSession();
  const { value, failed } = useAsked(ids.join(), async (signal): Promise<Difference[]> => {
    const answers = await Promise.all(ids.map((jobId) => api.jobs.getJob({ jobId }, { signal })));
    return differences(answers.map(({ job }) => leaves(job?.resolvedSpecYaml ?? "")));
  });
  if (failed) return <Problem>{failed}</Problem>;
  return (
    <details class="differences" open>
      <summary>{!value ? "Fields that differ" : value.length === 0 ? "The specs do not differ" : value.length === 1 ? "One field differs" : `${value.length} fields differ`}</summary>
      {value && value.length > 0 && (
        <div class="scroll" role="region" aria-label="Fields that differ" tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Field</th>
                {ids.map((id) => (
                  <th key={id} scope="col">
                    {id}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {value.map(({ path, values }) => (
                <tr key={path}>
                  <th scope="row">
                    <code>{path}</code>
                  </th>
                  {values.map((text, at) => (
                    <td key={ids[at]}>{text ?? "–"}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}

const LAST = 20;

function Row(props: { id: string; colour: number; job: Watched<JobWhole> | undefined; curves: Curves | undefined; stage: string | undefined }) {
  const { id, job, stage } = props;
  const known = job?.value?.job;
  const of = known?.stages.find(({ name }) => name === stage) ?? (known && currentStage(known));
  const points = stage === undefined ? undefined : props.curves?.[stage];
  const loss = points?.lines.loss.mean.filter(Number.isFinite) ?? [];
  const last = loss.slice(-LAST);
  const mean = last.reduce((sum, value) => sum + value, 0) / last.length;
  const lastOf = (values: number[] | undefined) => values?.filter(Number.isFinite).at(-1);
  return (
    <tr>
      <th scope="row">
        <span class={`key line-${props.colour}`} aria-hidden="true" /> <a href={href(["jobs", id])}>{id}</a>
      </th>
      <td>{known ? <Badge {...STATES[known.state]} /> : (job?.failed?.message ?? "")}</td>
      <td>{of?.name}</td>
      <td class="num">
        {count(of?.step ?? 0)} / {count(of?.stepsTotal ?? 0)}
      </td>
      <td class="num">{figure(loss.at(-1))}</td>
      <td class="num">{figure(mean)}</td>
      <td class="num">{figure(lastOf(points?.lines.gradNorm.mean))}</td>
      <td class="num">{figure(lastOf(points?.lines.stepsPerSec.mean))}</td>
      <td class="num">{count(of?.pairsCommitted ?? 0)}</td>
    </tr>
  );
}
