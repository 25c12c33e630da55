import { useMemo, useState } from "preact/hooks";
import { compared, fetchSamples, rowsOf, stepWords } from "../samples.ts";
import { useSession } from "../session.ts";
import { Problem, useAsked } from "./basics.tsx";
import { type Look, Plot } from "./plot.tsx";
import { SampleGrid } from "./sample-grid.tsx";

/** What several jobs have drawn of a stage at one step, side by side, and their losses on held-out pairs. */
export function ComparedSamples({ ids, stage, look }: { ids: string[]; stage: string; look: Look }) {
  const { api } = useSession();
  const { value, failed } = useAsked(`${stage} ${ids.join()}`, (signal) =>
    Promise.all(ids.map(async (jobId) => (await api.samples.listSamples({ jobId, stage }, { signal })).samplings)),
  );
  const { steps, best } = useMemo(() => compared(value ?? []), [value]);
  const [picked, setPicked] = useState<bigint | undefined>();
  const step = picked !== undefined && steps.includes(picked) ? picked : best;
  const shown = useMemo(() => (value ?? []).map((own) => own.find((one) => one.step === step && one.file)), [value, step]);
  const pictures = useAsked(`${stage} ${step} ${ids.join()} ${value !== undefined}`, async (signal) =>
    Promise.all(shown.map((one) => (one ? fetchSamples(api, one, signal) : []))),
  );
  const losses = useMemo(
    () =>
      ids.flatMap((label, colour) => {
        const known = (value?.[colour] ?? []).filter(({ validation }) => validation !== undefined);
        const mean = known.map(({ validation }) => validation?.mean ?? Number.NaN);
        return known.length ? [{ label, colour, steps: known.map((one) => Number(one.step)), mean }] : [];
      }),
    [ids.join(), value],
  );
  if (failed) return <Problem>{failed}</Problem>;
  if (step === undefined && losses.length === 0) return null;
  const columns = ids.map((id, at) => ({ name: id, heading: id, loss: shown[at]?.validation?.mean }));
  return (
    <section aria-label="Samples">
      {step !== undefined && (
        <>
          <div class="controls">
            <label>
              Drawn at
              <select value={String(step)} onChange={(event) => setPicked(BigInt(event.currentTarget.value))}>
                {steps.map((one) => (
                  <option key={String(one)} value={String(one)}>
                    {stepWords(one)}
                  </option>
                ))}
              </select>
            </label>
          </div>
          {pictures.failed && <Problem>{pictures.failed}</Problem>}
          <SampleGrid label="Pictures by job" columns={columns} rows={rowsOf((pictures.value ?? []).map((drawn, at) => [ids[at] ?? "", drawn]))} />
        </>
      )}
      {losses.length > 0 && (
        <div class="plots">
          <Plot title="Validation loss" unit="" lines={losses} look={{ ...look, smooth: 0 }} note="They compare between jobs with the same library and the same seed of samples." />
        </div>
      )}
    </section>
  );
}
