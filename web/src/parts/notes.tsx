import { useState } from "preact/hooks";
import type { Job } from "../gen/crescendo/v1/job_pb.ts";
import { useMay, useSession } from "../session.ts";
import { Ago, Problem, said } from "./basics.tsx";

export function Notes({ job }: { job: Job }) {
  const { api } = useSession();
  const mayWrite = useMay("submitter");
  const [text, setText] = useState("");
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const add = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setFailed("");
    try {
      await api.jobs.noteJob({ jobId: job.jobId, text });
      setText("");
    } catch (thrown) {
      setFailed(said(thrown));
    }
    setBusy(false);
  };
  return (
    <section aria-label="Notes">
      {job.notes.length === 0 && <p class="empty">Nobody has noted anything.</p>}
      <ol class="notes">
        {job.notes.map((note, at) => (
          <li key={at}>
            <p>{note.text}</p>
            <p class="faint">
              {note.by} · <Ago at={note.at} />
            </p>
          </li>
        ))}
      </ol>
      {mayWrite && (
        <form class="note" onSubmit={add}>
          <label for="note">Add a note</label>
          <textarea id="note" rows={2} maxLength={1000} required value={text} onInput={(event) => setText(event.currentTarget.value)} />
          {failed && <Problem>{failed}</Problem>}
          <button type="submit" disabled={busy || text.trim() === ""}>
            Add
          </button>
        </form>
      )}
    </section>
  );
}
