import { useEffect, useState } from "preact/hooks";
import type { PairMark, PairMarkList } from "../gen/crescendo/v1/review_pb.ts";
import { useMay, useSession } from "../session.ts";
import { Ago, Problem, said } from "./basics.tsx";

/** What is marked in a log, and how that is changed. */
export interface Marks {
  byIndex: Map<bigint, PairMark>;
  failed: string;
  set: (index: bigint, undo: boolean, reason: string) => Promise<void>;
}

export function useMarks(jobId: string, stage: string): Marks {
  const { api } = useSession();
  const [byIndex, setByIndex] = useState(new Map<bigint, PairMark>());
  const [failed, setFailed] = useState("");
  const take = (list: PairMarkList | undefined) => {
    setByIndex(new Map(list?.marks.map((mark) => [mark.index, mark])));
    setFailed("");
  };
  useEffect(() => {
    const abort = new AbortController();
    take(undefined);
    api.review.listPairMarks({ jobId, stage }, { signal: abort.signal }).then(
      ({ marks }) => take(marks),
      (thrown) => !abort.signal.aborted && setFailed(said(thrown)),
    );
    return () => abort.abort();
  }, [jobId, stage]);
  const set = async (index: bigint, undo: boolean, reason: string) => {
    const { marks } = await api.review.markPairs({ jobId, stage, indices: [index], undo, reason });
    take(marks);
  };
  return { byIndex, failed, set };
}

/** Whether a pair is marked bad, and the way to change that for who may. */
export function MarkPair({ index, marks }: { index: bigint; marks: Marks }) {
  const may = useMay("submitter");
  const mark = marks.byIndex.get(index);
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState("");
  const change = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setFailed("");
    try {
      await marks.set(index, mark !== undefined, mark ? "" : reason);
      setReason("");
    } catch (thrown) {
      setFailed(said(thrown));
    }
    setBusy(false);
  };
  if (!may && !mark) return null;
  return (
    <form class="mark" onSubmit={change}>
      {mark && (
        <p>
          Marked bad by {mark.by}, <Ago at={mark.at} />
          {mark.reason && `: ${mark.reason}`}
        </p>
      )}
      {may && !mark && (
        <label>
          Why it is bad
          <input value={reason} maxLength={120} onInput={(event) => setReason(event.currentTarget.value)} />
        </label>
      )}
      {may && (
        <button type="submit" class={mark ? "" : "danger"} disabled={busy}>
          {mark ? "Take the mark back" : "Mark bad"}
        </button>
      )}
      <p class="faint">Training leaves marked pairs out from its next epoch on.</p>
      {failed && <Problem>{failed}</Problem>}
    </form>
  );
}
