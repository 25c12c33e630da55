import { create } from "@bufbuild/protobuf";
import { useMemo, useState } from "preact/hooks";
import { SERIES, hasValues } from "../curves.ts";
import type { Job } from "../gen/crescendo/v1/job_pb.ts";
import { CurvesViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { currentStage } from "../pages/jobs.tsx";
import { curves } from "../shown.ts";
import { useView } from "../watch/watch.ts";
import { Problem } from "./basics.tsx";
import { type Look, LookPicker, Plot, type PlotLine } from "./plot.tsx";
import { StagePicker } from "./stage-picker.tsx";

export function JobCurves({ job }: { job: Job }) {
  const { value, failed } = useView(
    job.jobId,
    () => ({ case: "curves", value: create(CurvesViewSchema, { jobId: job.jobId }) }),
    curves,
  );
  const [picked, setPicked] = useState<string | undefined>();
  const [look, setLook] = useState<Look>({ smooth: 0, log: false });
  const known = job.stages.map(({ name }) => name).filter((name) => value?.[name]);
  const current = currentStage(job)?.name;
  const shown = picked ?? (current && value?.[current] ? current : known.at(-1));
  const points = shown === undefined ? undefined : value?.[shown];
  const plots = useMemo(
    () =>
      SERIES.map(({ name, title, unit }): { name: string; title: string; unit: string; lines: PlotLine[] } => {
        const line = points?.lines[name];
        const lines = line && hasValues(line) && points ? [{ label: title, steps: points.steps, ...line }] : [];
        return { name, title, unit, lines: lines.length ? lines : [{ label: title, steps: [], mean: [] }] };
      }),
    [points],
  );
  return (
    <section aria-label="Curves">
      <div class="controls">
        <StagePicker stages={known} shown={shown} pick={setPicked} />
        <LookPicker look={look} set={setLook} />
        <span class="faint">{points?.incomplete}</span>
      </div>
      {failed && <Problem>{failed.message}</Problem>}
      <div class="plots">
        {plots.map(({ name, title, unit, lines }) => (
          <Plot key={name} title={title} unit={unit} lines={lines} look={look} />
        ))}
      </div>
    </section>
  );
}
