import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ago, isoTime, moment, percent } from "../format.ts";
import { JobState, StagePhase } from "../gen/crescendo/v1/job_pb.ts";

export const STATES: Record<JobState, { text: string; tone: string }> = {
  [JobState.UNSPECIFIED]: { text: "unknown", tone: "idle" },
  [JobState.QUEUED]: { text: "queued", tone: "wait" },
  [JobState.PLACING]: { text: "placing", tone: "wait" },
  [JobState.RUNNING]: { text: "running", tone: "run" },
  [JobState.PAUSED]: { text: "paused", tone: "idle" },
  [JobState.PREEMPTING]: { text: "preempting", tone: "wait" },
  [JobState.SUCCEEDED]: { text: "succeeded", tone: "good" },
  [JobState.FAILED]: { text: "failed", tone: "bad" },
  [JobState.CANCELLED]: { text: "cancelled", tone: "idle" },
};

export const PHASES: Record<StagePhase, { text: string; tone: string }> = {
  [StagePhase.UNSPECIFIED]: { text: "unknown", tone: "idle" },
  [StagePhase.PENDING]: { text: "pending", tone: "idle" },
  [StagePhase.CURATING]: { text: "curating", tone: "run" },
  [StagePhase.TRAINING]: { text: "training", tone: "run" },
  [StagePhase.DONE]: { text: "done", tone: "good" },
  [StagePhase.WAITING]: { text: "waiting", tone: "wait" },
  [StagePhase.STOPPED]: { text: "stopped", tone: "idle" },
};

export const hasEnded = (state: JobState) =>
  state === JobState.SUCCEEDED || state === JobState.FAILED || state === JobState.CANCELLED;

export function Badge({ text, tone }: { text: string; tone: string }) {
  return <span class={`badge ${tone}`}>{text}</span>;
}

export function Bar({ part, label }: { part: number; label: string }) {
  const whole = Math.max(0, Math.min(1, Number.isFinite(part) ? part : 0));
  return (
    <svg class="meter" role="img" aria-label={`${label}: ${percent(whole)}`} viewBox="0 0 100 6" preserveAspectRatio="none">
      <rect class="rest" width="100" height="6" />
      <rect class="done" width={whole * 100} height="6" />
    </svg>
  );
}

/** The present, at a pace that words need. */
export function useNow(everyMillis = 5000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMillis);
    return () => clearInterval(timer);
  }, [everyMillis]);
  return now;
}

export function Ago({ at }: { at: Timestamp | undefined }) {
  const now = useNow();
  return (
    <time dateTime={isoTime(at)} title={moment(at)}>
      {ago(at, now)}
    </time>
  );
}

export function Problem({ children }: { children: ComponentChildren }) {
  return (
    <p class="problem" role="alert">
      {children}
    </p>
  );
}

export const said = (thrown: unknown) => ConnectError.from(thrown).rawMessage;

/** A dialog of the browser's own: it keeps the focus inside, and Escape closes it. */
export function Dialog(props: { title: string; close: () => void; wide?: boolean; children: ComponentChildren }) {
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    ref.current?.showModal();
  }, []);
  return (
    <dialog ref={ref} class={props.wide ? "wide" : ""} aria-labelledby="dialog-title" onClose={props.close}>
      <h2 id="dialog-title">{props.title}</h2>
      {props.children}
    </dialog>
  );
}

/** Reads something once, and again when `identity` changes. */
export function useAsked<T>(identity: string, ask: (signal: AbortSignal) => Promise<T>) {
  const [asked, setAsked] = useState<{ identity: string; value?: T; failed?: string }>({ identity });
  useEffect(() => {
    const abort = new AbortController();
    setAsked({ identity });
    ask(abort.signal).then(
      (value) => !abort.signal.aborted && setAsked({ identity, value }),
      (thrown) => !abort.signal.aborted && setAsked({ identity, failed: said(thrown) }),
    );
    return () => abort.abort();
  }, [identity]);
  return asked.identity === identity ? asked : { identity };
}
