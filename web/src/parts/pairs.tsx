import { useEffect, useState } from "preact/hooks";
import { count, figure } from "../format.ts";
import type { Job, StageStatus } from "../gen/crescendo/v1/job_pb.ts";
import type { PairPlace, ReviewedPair } from "../gen/crescendo/v1/review_pb.ts";
import { type Picked, buckets, pairName, range, reasonWords, scoreNames } from "../pairs.ts";
import { useSession } from "../session.ts";
import { Problem, said } from "./basics.tsx";
import { ScoreHistogram } from "./pairs-histogram.tsx";
import { type Marks, useMarks } from "./pairs-marks.tsx";
import { PairDialog } from "./pairs-pair.tsx";
import { Picture } from "./picture.tsx";
import { StagePicker } from "./stage-picker.tsx";

/** Pairs that are asked for at a time, and calls that are made for them: a filter may leave nothing of many units. */
const AT_ONCE = 24;
const MOST_CALLS = 6;

interface Wanted {
  rejected: boolean;
  reason: string;
  score: string;
  picked: Picked | undefined;
}

export function Pairs({ job }: { job: Job }) {
  const begun = job.stages.filter((stage) => stage.pairsCommitted > 0n || Object.keys(stage.pairsRejected).length > 0);
  const [stageName, setStageName] = useState<string | undefined>();
  const stage = begun.find(({ name }) => name === stageName) ?? begun.at(-1) ?? job.stages[0];
  const [wanted, setWanted] = useState<Wanted>({ rejected: false, reason: "", score: "", picked: undefined });
  if (!stage) return <p class="empty">There are no stages.</p>;
  const names = scoreNames(stage);
  const score = names.includes(wanted.score) ? wanted.score : (names[0] ?? "");
  const histogram = stage.scores[score];
  const shown = histogram && buckets(histogram);
  const limits = shown && wanted.picked && range(shown, wanted.picked);
  const reasons = Object.entries(stage.pairsRejected).sort(([, left], [, right]) => Number(right - left));
  const pick = (change: Partial<Wanted>) => setWanted((before) => ({ ...before, ...change }));
  return (
    <section aria-label="Pairs">
      <div class="controls">
        <StagePicker
          stages={begun.map(({ name }) => name)}
          shown={stage.name}
          pick={(name) => {
            setStageName(name);
            pick({ reason: "", picked: undefined });
          }}
        />
        <label>
          Show
          <select value={wanted.rejected ? "rejected" : "accepted"} onChange={(event) => pick({ rejected: event.currentTarget.value === "rejected", reason: "" })}>
            <option value="accepted">accepted ({count(stage.pairsCommitted)})</option>
            <option value="rejected">turned down ({count(reasons.reduce((sum, [, number]) => sum + number, 0n))})</option>
          </select>
        </label>
        {wanted.rejected && (
          <label>
            Reason
            <select value={wanted.reason} onChange={(event) => pick({ reason: event.currentTarget.value })}>
              <option value="">any</option>
              {reasons.map(([reason, number]) => (
                <option key={reason} value={reason}>
                  {reasonWords(reason)} ({count(number)})
                </option>
              ))}
            </select>
          </label>
        )}
        {names.length > 1 && (
          <label>
            Score
            <select value={score} onChange={(event) => pick({ score: event.currentTarget.value, picked: undefined })}>
              {names.map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          </label>
        )}
      </div>
      {shown && <ScoreHistogram key={`${stage.name} ${score}`} name={score} shown={shown} picked={wanted.picked} pick={(picked) => pick({ picked })} />}
      <Found job={job} stage={stage} rejected={wanted.rejected} reason={wanted.reason} score={score} least={limits?.least} most={limits?.most} />
    </section>
  );
}

interface FoundProps {
  job: Job;
  stage: StageStatus;
  rejected: boolean;
  reason: string;
  score: string;
  least: number | undefined;
  most: number | undefined;
}

interface Read {
  pairs: ReviewedPair[];
  next: PairPlace | undefined;
  units: bigint;
}

const NOTHING: Read = { pairs: [], next: undefined, units: 0n };

function Found({ job, stage, rejected, reason, score, least, most }: FoundProps) {
  const { api } = useSession();
  const [read, setRead] = useState(NOTHING);
  const [busy, setBusy] = useState(true);
  const [failed, setFailed] = useState("");
  const [open, setOpen] = useState<number | undefined>();
  const marks = useMarks(job.jobId, stage.name);
  const [abort, setAbort] = useState<AbortController | undefined>();
  const filter = {
    reasons: rejected && reason ? [reason] : [],
    ...(least !== undefined && most !== undefined && { score, least, most }),
  };
  const more = async (before: Read, from: PairPlace | undefined, control: AbortController) => {
    setBusy(true);
    setFailed("");
    let [all, next] = [before, from];
    try {
      for (let call = 0; call < MOST_CALLS; call += 1) {
        const limit = before.pairs.length + AT_ONCE - all.pairs.length;
        const asked = { jobId: job.jobId, stage: stage.name, rejected, filter, limit, ...(next && { from: next }) };
        const answer = await api.review.readPairs(asked, { signal: control.signal });
        all = { pairs: [...all.pairs, ...answer.pairs], next: answer.next, units: answer.units };
        setRead(all);
        next = answer.next;
        if (!next || all.pairs.length >= before.pairs.length + AT_ONCE) break;
      }
    } catch (thrown) {
      if (!control.signal.aborted) setFailed(said(thrown));
    }
    if (!control.signal.aborted) setBusy(false);
  };
  // What has been shown stays as it is; a log that has its first pairs is looked at again.
  const hasSome = rejected ? Object.keys(stage.pairsRejected).length > 0 : stage.pairsCommitted > 0n;
  useEffect(() => {
    const control = new AbortController();
    setAbort(control);
    setRead(NOTHING);
    setOpen(undefined);
    void more(NOTHING, undefined, control);
    return () => control.abort();
  }, [job.jobId, stage.name, rejected, reason, score, least, most, hasSome]);
  const last = read.pairs.at(-1)?.place;
  const onwards = read.next ?? (!stage.pairsSealed && last ? { unit: last.unit, number: last.number + 1 } : undefined);
  return (
    <>
      <p class="line faint" role="status">
        {busy ? "Reading …" : `${count(read.pairs.length)} shown${read.next ? `, of the first ${count(read.next.unit)} of ${count(read.units)} units` : ""}`}
        {!rejected && marks.byIndex.size > 0 && ` · ${count(marks.byIndex.size)} marked bad: left out of training from the next epoch on`}
        {rejected && " · of each unit up to two of each reason are kept, small"}
      </p>
      {failed && <Problem>{failed}</Problem>}
      {marks.failed && <Problem>{marks.failed}</Problem>}
      {!busy && !failed && read.pairs.length === 0 && <p class="empty">{read.next ? "None in the units so far." : "None."}</p>}
      <ul class="pairs">
        {read.pairs.map((pair, at) => (
          <li key={`${pair.place?.unit}.${pair.place?.number}`}>
            <Card pair={pair} marks={marks} open={() => setOpen(at)} />
          </li>
        ))}
      </ul>
      {onwards && (
        <div class="pages">
          <button type="button" disabled={busy || !abort} onClick={() => abort && void more(read, onwards as PairPlace, abort)}>
            {read.next ? "More" : "Look for more"}
          </button>
        </div>
      )}
      {open !== undefined && read.pairs[open] && (
        <PairDialog
          job={job}
          stage={stage.name}
          pair={read.pairs[open]}
          marks={marks}
          close={() => setOpen(undefined)}
          step={{ back: open > 0 ? () => setOpen(open - 1) : undefined, on: open + 1 < read.pairs.length ? () => setOpen(open + 1) : undefined }}
        />
      )}
    </>
  );
}

function Card({ pair, marks, open }: { pair: ReviewedPair; marks: Marks; open: () => void }) {
  const name = pairName(pair);
  const scores = Object.entries(pair.scores);
  const mark = pair.index === undefined ? undefined : marks.byIndex.get(pair.index);
  return (
    <article class={`pair ${pair.reason || mark ? "down" : ""}`}>
      <button type="button" class="pictures" aria-label={`Look at ${name}`} onClick={open}>
        <Picture bytes={pair.target} alt="" />
        <span class="references">
          {pair.references.slice(0, 4).map((bytes, at) => (
            <Picture key={at} bytes={bytes} alt="" />
          ))}
        </span>
      </button>
      <p class="prompt" title={pair.prompt}>
        {pair.prompt}
      </p>
      <p class="line faint">
        {name}
        {scores.map(([score, value]) => ` · ${score} ${figure(value)}`)}
      </p>
      {pair.reason && <p class="line reason">{reasonWords(pair.reason)}</p>}
      {mark && <p class="line reason">marked bad{mark.reason && `: ${mark.reason}`}</p>}
    </article>
  );
}
