import { create } from "@bufbuild/protobuf";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { isoTime, timeOfDay } from "../format.ts";
import type { LogLine } from "../gen/crescendo/v1/job_pb.ts";
import { LogViewSchema } from "../gen/crescendo/v1/view_pb.ts";
import { MAX_LINES, logLines } from "../shown.ts";
import { useView } from "../watch/watch.ts";
import { Problem } from "./basics.tsx";

const LEVELS = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
const TAIL = 1000;

const sourceOf = (line: LogLine) => (line.rank >= 0 ? `${line.nodeId} rank ${line.rank}` : line.nodeId);

export function Logs({ jobId }: { jobId: string }) {
  const { value, failed } = useView(
    jobId,
    () => ({ case: "log", value: create(LogViewSchema, { jobId, tailLines: TAIL }) }),
    logLines,
  );
  const [level, setLevel] = useState("INFO");
  const [text, setText] = useState("");
  const [follows, setFollows] = useState(true);
  const box = useRef<HTMLDivElement>(null);
  const shown = useMemo(() => {
    const most = LEVELS.indexOf(level);
    const wanted = text.toLowerCase();
    return (value?.lines ?? [])
      .map((line, at) => ({ line, key: (value?.first ?? 0) + at }))
      .filter(({ line }) => LEVELS.indexOf(line.level) <= most && (!wanted || `${sourceOf(line)} ${line.message}`.toLowerCase().includes(wanted)));
  }, [value, level, text]);
  useEffect(() => {
    if (follows && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown, follows]);
  const onScroll = () => {
    const element = box.current;
    if (element) setFollows(element.scrollHeight - element.scrollTop - element.clientHeight < 40);
  };
  return (
    <section aria-label="Log">
      <div class="controls">
        <label>
          Level
          <select value={level} onChange={(event) => setLevel(event.currentTarget.value)}>
            {LEVELS.map((name) => (
              <option key={name} value={name}>
                {name === "ERROR" ? "errors" : `${name.toLowerCase()} and above`}
              </option>
            ))}
          </select>
        </label>
        <label>
          Text
          <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <label>
          <input type="checkbox" checked={follows} onChange={(event) => setFollows(event.currentTarget.checked)} />
          Follow
        </label>
        <span class="faint">
          {shown.length} lines{value && value.first > 0 ? `, the last ${MAX_LINES} are kept here` : ""}
        </span>
      </div>
      {failed && <Problem>{failed.message}</Problem>}
      <div class="log" ref={box} onScroll={onScroll} tabIndex={0} role="log" aria-label="Log lines" aria-live="off">
        {shown.length === 0 && <p class="empty">{value ? "No line matches." : "No lines yet."}</p>}
        {shown.map(({ line, key }) => (
          <div key={key} class={`entry ${line.level.toLowerCase()}`}>
            <time dateTime={isoTime(line.at)}>{timeOfDay(line.at)}</time> <b>{line.level}</b>{" "}
            <span class="source">{sourceOf(line)}</span> <span class="message">{line.message}</span>
            {line.droppedBefore > 0n && <span class="faint"> ({String(line.droppedBefore)} lines before this one were dropped)</span>}
          </div>
        ))}
      </div>
    </section>
  );
}
