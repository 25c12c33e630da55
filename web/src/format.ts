// Numbers and times as people read them.
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Timestamp } from "@bufbuild/protobuf/wkt";

const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value: bigint | number) => counts.format(value);

/** Four digits that count; a dash where nothing is known. */
export function figure(value: number | undefined | null): string {
  if (value === undefined || value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  if (size >= 1000) return counts.format(value);
  return String(Number(value.toPrecision(4)));
}

export const percent = (part: number) => (Number.isFinite(part) ? `${Math.round(part * 100)} %` : "–");

export function bytes(value: bigint | number): string {
  let size = Number(value);
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return `${unit === "B" ? size : size.toPrecision(3)} ${unit}`;
    size /= 1000;
  }
  return `${size.toPrecision(3)} TB`;
}

/** The two largest units of a length of time. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  if (seconds < 1) return "0 s";
  const units: [string, number][] = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const at = units.findIndex(([, size]) => seconds >= size);
  const [unit, size] = units[at] ?? ["s", 1];
  const whole = Math.floor(seconds / size);
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds - whole * size) / next[1]) : 0;
  return next && rest > 0 ? `${whole} ${unit} ${rest} ${next[0]}` : `${whole} ${unit}`;
}

export const millis = (at: Timestamp | undefined) => (at ? timestampMs(at) : undefined);

export function ago(at: Timestamp | undefined, now: number): string {
  const then = millis(at);
  if (then === undefined) return "–";
  const seconds = (now - then) / 1000;
  return seconds < 5 ? "now" : `${duration(seconds)} ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const clockOfDay = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

export function moment(at: Timestamp | undefined): string {
  const then = millis(at);
  return then === undefined ? "–" : clock.format(then);
}

export function timeOfDay(at: Timestamp | undefined): string {
  const then = millis(at);
  return then === undefined ? "" : clockOfDay.format(then);
}

export function isoTime(at: Timestamp | undefined): string | undefined {
  const then = millis(at);
  return then === undefined ? undefined : new Date(then).toISOString();
}
