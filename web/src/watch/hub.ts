// One stream for all that is watched: browsers open six connections to a host without HTTP/2, and a person opens more tabs.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type View, ViewSchema, type WatchViewsResponse } from "../gen/crescendo/v1/view_pb.ts";

/** What a view shows; its id is the hub's own matter. */
export type Shows = View["shows"];
export type Shown = WatchViewsResponse["shown"];

export interface Wanted {
  /** Chosen by the watcher; what comes carries it. */
  key: string;
  shows: Shows;
}

export type LinkState =
  | { at: "connecting" }
  | { at: "live" }
  | { at: "waiting"; why: string; code: Code };

export interface Watcher {
  /** `first`: it takes the place of all that this view has shown before. */
  shown(key: string, shown: Shown, first: boolean): void;
  state(state: LinkState): void;
}

/** Opens the stream. */
export type Open = (
  token: string,
  views: View[],
  signal: AbortSignal,
) => AsyncIterable<WatchViewsResponse>;

/** What is watched changes in bursts: a page is left, another is opened. */
const SETTLE_MILLIS = 20;
const FIRST_PAUSE_MILLIS = 500;
const LAST_PAUSE_MILLIS = 10_000;
/** A stream that lasted so long has not broken: the controller ends each now and then, to be asked again. */
const LASTED_MILLIS = 30_000;

/** All that is watched with one token. */
class Link {
  readonly watchers = new Map<Watcher, Wanted[]>();
  #abort: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pause = FIRST_PAUSE_MILLIS;
  #state: LinkState = { at: "connecting" };

  constructor(
    readonly token: string,
    readonly open: Open,
  ) {}

  set(watcher: Watcher, wanted: Wanted[]) {
    const isNew = !this.watchers.has(watcher);
    this.watchers.set(watcher, wanted);
    if (isNew) watcher.state(this.#state);
    this.#restart(SETTLE_MILLIS);
  }

  remove(watcher: Watcher) {
    if (this.watchers.delete(watcher)) this.#restart(SETTLE_MILLIS);
  }

  #restart(afterMillis: number) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#run(), afterMillis);
  }

  #tell(state: LinkState) {
    this.#state = state;
    for (const watcher of this.watchers.keys()) watcher.state(state);
  }

  async #run() {
    this.#abort?.abort();
    const abort = new AbortController();
    this.#abort = abort;
    const seen = new Set<number>();
    const to = new Map<number, { watcher: Watcher; key: string }>();
    const views: View[] = [];
    for (const [watcher, wanted] of this.watchers) {
      for (const { key, shows } of wanted) {
        const viewId = views.length + 1;
        to.set(viewId, { watcher, key });
        views.push(create(ViewSchema, { viewId, shows }));
      }
    }
    if (views.length === 0) return;
    const began = Date.now();
    try {
      for await (const { viewId, shown } of this.open(this.token, views, abort.signal)) {
        if (abort.signal.aborted) return;
        if (this.#state.at !== "live") this.#tell({ at: "live" });
        this.#pause = FIRST_PAUSE_MILLIS;
        const target = to.get(viewId);
        if (!target || shown.case === undefined) continue;
        target.watcher.shown(target.key, shown, !seen.has(viewId));
        seen.add(viewId);
      }
      if (Date.now() - began > LASTED_MILLIS) return this.#restart(0);
      throw new ConnectError("the controller has ended the stream", Code.Unavailable);
    } catch (thrown) {
      if (abort.signal.aborted) return;
      const error = ConnectError.from(thrown);
      this.#tell({ at: "waiting", why: error.rawMessage, code: error.code });
      this.#restart(this.#pause);
      this.#pause = Math.min(this.#pause * 2, LAST_PAUSE_MILLIS);
    }
  }
}

export class Hub {
  #links = new Map<string, Link>();

  constructor(readonly open: Open) {}

  set(watcher: Watcher, token: string, wanted: Wanted[]) {
    for (const link of this.#links.values()) if (link.token !== token) link.remove(watcher);
    let link = this.#links.get(token);
    if (!link) {
      link = new Link(token, this.open);
      this.#links.set(token, link);
    }
    link.set(watcher, wanted);
  }

  remove(watcher: Watcher) {
    for (const [token, link] of this.#links) {
      link.remove(watcher);
      if (link.watchers.size === 0) this.#links.delete(token);
    }
  }
}
