// What tabs and the worker that they share tell each other.
import type { LinkState, Shown, Wanted } from "./hub.ts";

export type ToWorker =
  | { say: "watch"; token: string; wanted: Wanted[] }
  /** Said now and then: a tab that crashed says nothing more. */
  | { say: "here" }
  | { say: "bye" };

export type ToTab =
  | { say: "shown"; key: string; shown: Shown; first: boolean }
  | { say: "state"; state: LinkState };

export const HERE_EVERY_MILLIS = 20_000;
/** Browsers slow the timers of hidden tabs down to one a minute. */
export const GONE_AFTER_MILLIS = 180_000;
