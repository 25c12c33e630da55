import { useState } from "preact/hooks";
import { bytes, count } from "../format.ts";
import { type Job, JobState } from "../gen/crescendo/v1/job_pb.ts";
import { useMay, useSession } from "../session.ts";
import { Dialog, Problem, hasEnded, said, useAsked } from "./basics.tsx";

type Asked = "pause" | "cancel" | "delete";

/** What a person may do with a job as it is now; nothing for those who may only look. */
export function Actions({ job }: { job: Job }) {
  const { api } = useSession();
  const may = useMay("submitter");
  const [asked, setAsked] = useState<Asked | undefined>();
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  if (!may) return null;
  const jobId = job.jobId;
  const act = async (work: () => Promise<unknown>) => {
    setBusy(true);
    setFailed("");
    try {
      await work();
      setAsked(undefined);
    } catch (thrown) {
      setFailed(said(thrown));
    }
    setBusy(false);
  };
  const close = () => {
    setAsked(undefined);
    setFailed("");
  };
  const deleting = job.deletion !== undefined;
  const isPaused = job.state === JobState.PAUSED;
  const isOpen = !hasEnded(job.state);
  return (
    <div class="actions">
      {failed && asked === undefined && <Problem>{failed}</Problem>}
      {isOpen && !isPaused && (
        <button type="button" disabled={busy} onClick={() => setAsked("pause")}>
          Pause
        </button>
      )}
      {isPaused && (
        <button type="button" class="primary" disabled={busy} onClick={() => void act(() => api.jobs.resumeJob({ jobId }))}>
          Resume
        </button>
      )}
      {job.state === JobState.FAILED && !deleting && (
        <button type="button" class="primary" disabled={busy} onClick={() => void act(() => api.jobs.retryJob({ jobId }))}>
          Retry
        </button>
      )}
      {isOpen && (
        <button type="button" class="danger" disabled={busy} onClick={() => setAsked("cancel")}>
          Cancel
        </button>
      )}
      {!isOpen && !deleting && (
        <button type="button" class="danger" disabled={busy} onClick={() => setAsked("delete")}>
          Delete
        </button>
      )}
      {asked === "pause" && (
        <WithReason
          title={`Pause ${jobId}?`}
          text="Its ranks save a checkpoint and leave. It holds no slot until it is resumed."
          verb="Pause"
          busy={busy}
          failed={failed}
          close={close}
          go={(reason) => void act(() => api.jobs.pauseJob({ jobId, reason }))}
        />
      )}
      {asked === "cancel" && (
        <WithReason
          title={`Cancel ${jobId}?`}
          text="It stops for good. Its checkpoints and pairs stay until it is deleted."
          verb="Cancel the job"
          danger
          busy={busy}
          failed={failed}
          close={close}
          go={(reason) => void act(() => api.jobs.cancelJob({ jobId, reason }))}
        />
      )}
      {asked === "delete" && (
        <Delete jobId={jobId} busy={busy} failed={failed} close={close} go={() => void act(() => api.jobs.deleteJob({ jobId }))} />
      )}
    </div>
  );
}

function WithReason(props: {
  title: string;
  text: string;
  verb: string;
  danger?: boolean;
  busy: boolean;
  failed: string;
  close: () => void;
  go: (reason: string) => void;
}) {
  const [reason, setReason] = useState("");
  return (
    <Dialog title={props.title} close={props.close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          props.go(reason);
        }}
      >
        <p>{props.text}</p>
        <label for="reason">Reason</label>
        <input id="reason" type="text" maxLength={200} value={reason} placeholder="may be empty" onInput={(event) => setReason(event.currentTarget.value)} />
        {props.failed && <Problem>{props.failed}</Problem>}
        <div class="buttons">
          <button type="button" onClick={props.close}>
            Back
          </button>
          <button type="submit" class={props.danger ? "danger" : "primary"} disabled={props.busy}>
            {props.verb}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** Its name has to be typed: what is deleted is gone. */
function Delete(props: { jobId: string; busy: boolean; failed: string; close: () => void; go: () => void }) {
  const { api } = useSession();
  const [typed, setTyped] = useState("");
  const { value } = useAsked(props.jobId, (signal) => api.jobs.deleteJob({ jobId: props.jobId, dryRun: true }, { signal }));
  return (
    <Dialog title={`Delete ${props.jobId}?`} close={props.close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (typed === props.jobId) props.go();
        }}
      >
        <p>Its files go, then its records. What stays is its lineage.</p>
        {value && (
          <ul>
            {value.parts.map(({ part, objects, bytes: size }) => (
              <li key={part}>
                {part}: {count(objects)} objects, {bytes(size)}
              </li>
            ))}
          </ul>
        )}
        <label for="typed">
          Type <code>{props.jobId}</code> to delete it
        </label>
        <input id="typed" type="text" autocomplete="off" spellcheck={false} value={typed} onInput={(event) => setTyped(event.currentTarget.value)} />
        {props.failed && <Problem>{props.failed}</Problem>}
        <div class="buttons">
          <button type="button" onClick={props.close}>
            Back
          </button>
          <button type="submit" class="danger" disabled={props.busy || typed !== props.jobId}>
            Delete for good
          </button>
        </div>
      </form>
    </Dialog>
  );
}
