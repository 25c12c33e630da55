import { moment } from "../format.ts";
import type { JobState } from "../gen/crescendo/v1/job_pb.ts";
import { href } from "../route.ts";
import { useSession } from "../session.ts";
import { Problem, useAsked } from "./basics.tsx";

/** jobs/JOB/… names another job's file. */
const jobIn = (from: string) => /(?:^|\/)jobs\/([a-z0-9.-]+)\//.exec(from)?.[1];

export function Lineage({ jobId, state }: { jobId: string; state: JobState }) {
  const { api } = useSession();
  const { value, failed } = useAsked(`${jobId} ${state}`, (signal) => api.jobs.getLineage({ jobId }, { signal }));
  const lineage = value?.lineage;
  return (
    <section aria-label="Lineage">
      {failed && <Problem>{failed}</Problem>}
      {lineage && (
        <>
          <dl class="rows">
            <dt>Made from</dt>
            <dd>
              {lineage.from.length === 0 && "nothing that its spec names"}
              <ul class="plain">
                {lineage.from.map((from) => {
                  const job = jobIn(from);
                  return <li key={from}>{job && job !== jobId ? <a href={href(["jobs", job])}>{from}</a> : <code>{from}</code>}</li>;
                })}
              </ul>
            </dd>
            <dt>Request</dt>
            <dd>
              <code>{lineage.requestId}</code>
            </dd>
            <dt>Spec</dt>
            <dd>
              SHA-256 <code>{lineage.specSha256}</code>
            </dd>
            <dt>State</dt>
            <dd>
              {lineage.state}
              {lineage.finishedAt && `, ${moment(lineage.finishedAt)}`}
            </dd>
          </dl>
          <h3>Final checkpoints</h3>
          {lineage.finalCheckpoints.length === 0 && <p class="empty">None yet.</p>}
          {lineage.finalCheckpoints.map(({ stage, step, path, files }) => (
            <div key={path} class="final">
              <p>
                <b>{stage}</b>, step {String(step)}: <code>{path}</code>
              </p>
              <ul class="plain">
                {files.map((file) => (
                  <li key={file.name}>
                    <code>
                      {file.name} {file.sha256}
                    </code>
                  </li>
                ))}
              </ul>
            </div>
          ))}
        </>
      )}
    </section>
  );
}
