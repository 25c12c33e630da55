import { figure } from "../format.ts";
import type { Job } from "../gen/crescendo/v1/job_pb.ts";
import type { ReviewedPair } from "../gen/crescendo/v1/review_pb.ts";
import { pairName, reasonWords } from "../pairs.ts";
import { useSession } from "../session.ts";
import { Dialog, Problem, useAsked } from "./basics.tsx";
import { MarkPair, type Marks } from "./pairs-marks.tsx";
import { Picture } from "./picture.tsx";

interface Step {
  back: (() => void) | undefined;
  on: (() => void) | undefined;
}

/** One pair, as large as a screen takes it. */
export function PairDialog(props: { job: Job; stage: string; pair: ReviewedPair; marks: Marks; close: () => void; step: Step }) {
  const { job, stage, pair, marks, close, step } = props;
  const { api } = useSession();
  const name = pairName(pair);
  const from = pair.place;
  const { value, failed } = useAsked(`${stage} ${name}`, (signal) =>
    api.review.readPairs({ jobId: job.jobId, stage, rejected: pair.index === undefined, limit: 1, picturePixels: 1024, ...(from && { from }) }, { signal }),
  );
  const large = value?.pairs[0] ?? pair;
  return (
    <Dialog title={`${stage}, ${name}`} close={close} wide>
      {failed && <Problem>{failed}</Problem>}
      <div class="large">
        <figure>
          <Picture bytes={large.target} alt={`Target: ${pair.prompt}`} />
          <figcaption>target</figcaption>
        </figure>
        {large.references.map((bytes, at) => (
          <figure key={at}>
            <Picture bytes={bytes} alt={`Reference ${at + 1}: ${pair.referenceWords[at] ?? ""}`} />
            <figcaption>
              reference {at + 1}
              {pair.referenceWords[at] && `: ${pair.referenceWords[at]}`}
            </figcaption>
          </figure>
        ))}
      </div>
      <dl class="rows">
        <dt>Prompt</dt>
        <dd>{pair.prompt}</dd>
        {pair.reason && (
          <>
            <dt>Turned down for</dt>
            <dd>{reasonWords(pair.reason)}</dd>
          </>
        )}
        {Object.entries(pair.scores).map(([score, value]) => (
          <>
            <dt>{score}</dt>
            <dd>{figure(value)}</dd>
          </>
        ))}
      </dl>
      {pair.parts.length > 0 && <Parts pair={pair} />}
      {pair.index !== undefined && <MarkPair key={`${pair.index}`} index={pair.index} marks={marks} />}
      {pair.provenanceJson && (
        <details>
          <summary>What it was made of</summary>
          <pre class="yaml" tabIndex={0} role="region" aria-label="Provenance, JSON">
            {indented(pair.provenanceJson)}
          </pre>
        </details>
      )}
      <div class="buttons">
        <button type="button" disabled={!step.back} onClick={step.back}>
          Previous
        </button>
        <button type="button" disabled={!step.on} onClick={step.on}>
          Next
        </button>
        <button type="button" class="primary" onClick={close}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

function Parts({ pair }: { pair: ReviewedPair }) {
  const hasReferences = pair.parts.some(({ reference }) => reference !== undefined);
  return (
    <table class="parts">
      <caption class="sr">The judge's score by part</caption>
      <thead>
        <tr>
          <th scope="col">Part</th>
          {hasReferences && <th scope="col">Reference</th>}
          <th scope="col" class="num">
            Score, of 4
          </th>
        </tr>
      </thead>
      <tbody>
        {pair.parts.map(({ part, reference, score }, at) => (
          <tr key={at}>
            <th scope="row">{part}</th>
            {hasReferences && <td>{reference === undefined ? "all" : reference + 1}</td>}
            <td class="num">{figure(score)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), undefined, 2);
  } catch {
    return json;
  }
}
