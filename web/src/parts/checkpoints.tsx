import { useState } from "preact/hooks";
import { download } from "../download.ts";
import { bytes, count, percent } from "../format.ts";
import type { Checkpoint, CheckpointFile } from "../gen/crescendo/v1/checkpoint_pb.ts";
import { useMay, useSession } from "../session.ts";
import { Ago, Badge, Problem, said } from "./basics.tsx";

export function Checkpoints({ checkpoints, jobId }: { checkpoints: Checkpoint[]; jobId: string }) {
  const [failed, setFailed] = useState("");
  const newest = [...checkpoints].reverse();
  return (
    <section>
      {failed && <Problem>{failed}</Problem>}
      {newest.length === 0 ? (
        <p class="empty">None yet.</p>
      ) : (
        <div class="scroll" role="region" aria-label="Checkpoints" tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Stage</th>
                <th scope="col" class="num">
                  Step
                </th>
                <th scope="col">Committed</th>
                <th scope="col">Marks</th>
                <th scope="col">Files</th>
              </tr>
            </thead>
            <tbody>
              {newest.map((checkpoint) => (
                <tr key={checkpoint.path}>
                  <td>{checkpoint.stage}</td>
                  <td class="num">{count(checkpoint.step)}</td>
                  <td>
                    <Ago at={checkpoint.committedAt} />
                  </td>
                  <td>
                    {checkpoint.final && <Badge text="final" tone="good" />}
                    {checkpoint.damaged && (
                      <span title={checkpoint.damaged}>
                        <Badge text="damaged" tone="bad" />
                      </span>
                    )}
                    <Keep checkpoint={checkpoint} fail={setFailed} />
                  </td>
                  <td>
                    <ul class="files">
                      {checkpoint.files.map((file) => (
                        <li key={file.name}>
                          <File file={file} jobId={jobId} path={checkpoint.path} fail={setFailed} />
                        </li>
                      ))}
                    </ul>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Keep({ checkpoint, fail }: { checkpoint: Checkpoint; fail: (why: string) => void }) {
  const { api } = useSession();
  const may = useMay("submitter");
  if (!may) return checkpoint.kept ? <Badge text="kept" tone="idle" /> : null;
  const set = async (release: boolean) => {
    fail("");
    const { jobId, stage, step } = checkpoint;
    await api.checkpoints.keepCheckpoint({ jobId, stage, step, release }).catch((thrown) => fail(said(thrown)));
  };
  return (
    <label class="keep">
      <input
        type="checkbox"
        checked={checkpoint.kept}
        aria-label={`Keep step ${checkpoint.step} of ${checkpoint.stage}`}
        onChange={(event) => void set(!event.currentTarget.checked)}
      />
      keep
    </label>
  );
}

function File(props: { file: CheckpointFile; jobId: string; path: string; fail: (why: string) => void }) {
  const { file, jobId, path, fail } = props;
  const { api } = useSession();
  const [part, setPart] = useState<number | undefined>();
  const [abort, setAbort] = useState<AbortController | undefined>();
  const begin = async () => {
    const control = new AbortController();
    setAbort(control);
    setPart(0);
    fail("");
    try {
      await download(api, { jobId, path, name: file.name, sizeBytes: file.sizeBytes }, setPart, control.signal);
    } catch (thrown) {
      if (!control.signal.aborted && (thrown as Error).name !== "AbortError") fail(`${file.name}: ${said(thrown)}`);
    }
    setPart(undefined);
  };
  return (
    <>
      <button type="button" class="link" title={`SHA-256 ${file.sha256}`} disabled={part !== undefined} onClick={() => void begin()}>
        {file.name}
      </button>{" "}
      <span class="faint">{bytes(file.sizeBytes)}</span>
      {part !== undefined && (
        <>
          {" "}
          {percent(part)}{" "}
          <button type="button" class="quiet" onClick={() => abort?.abort()}>
            Stop
          </button>
        </>
      )}
    </>
  );
}
