// What this tab watches: all its views together go to the worker that the tabs share, or to a hub of its own without one.
import { useEffect, useRef, useState } from "preact/hooks";
import { Code } from "@connectrpc/connect";
import { Hub, type LinkState, type Shown, type Shows, type Watcher } from "./hub.ts";
import { HERE_EVERY_MILLIS, type ToTab, type ToWorker } from "./messages.ts";
import { open } from "./open.ts";

type Handler = (shown: Shown, first: boolean) => void;

/** A tab that nobody looks at stops watching after this. */
const HIDDEN_MILLIS = 60_000;

class Tab implements Watcher {
  #views = new Map<string, { shows: Shows; handler: Handler }>();
  #next = 1;
  #token: string | undefined;
  #queued = false;
  #hidden = false;
  #hiddenTimer: ReturnType<typeof setTimeout> | undefined;
  #tellWorker: ((message: ToWorker) => void) | undefined;
  #hub: Hub | undefined;
  #listeners = new Set<(state: LinkState) => void>();
  link: LinkState = { at: "connecting" };

  start() {
    if (typeof SharedWorker === "undefined") {
      this.#hub = new Hub(open);
    } else {
      const worker = new SharedWorker(new URL("./worker.ts", import.meta.url), { type: "module", name: "crescendo" });
      worker.port.onmessage = ({ data }: MessageEvent<ToTab>) => {
        if (data.say === "shown") this.shown(data.key, data.shown, data.first);
        else this.state(data.state);
      };
      this.#tellWorker = (message) => worker.port.postMessage(message);
      setInterval(() => this.#tellWorker?.({ say: "here" }), HERE_EVERY_MILLIS);
      addEventListener("pagehide", (event) => {
        if (!event.persisted) this.#tellWorker?.({ say: "bye" });
      });
    }
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.#hiddenTimer);
      if (document.visibilityState === "hidden") {
        this.#hiddenTimer = setTimeout(() => this.#hide(true), HIDDEN_MILLIS);
      } else {
        this.#hide(false);
      }
    });
  }

  #hide(hidden: boolean) {
    if (this.#hidden === hidden) return;
    this.#hidden = hidden;
    this.#send();
  }

  setToken(token: string | undefined) {
    this.#token = token;
    this.#send();
  }

  watch(shows: Shows, handler: Handler): () => void {
    const key = String(this.#next++);
    this.#views.set(key, { shows, handler });
    this.#send();
    return () => {
      this.#views.delete(key);
      this.#send();
    };
  }

  /** Once for all that a page changes at a time. */
  #send() {
    if (this.#queued) return;
    this.#queued = true;
    queueMicrotask(() => {
      this.#queued = false;
      const token = this.#token;
      const views = token === undefined || this.#hidden ? [] : [...this.#views];
      const wanted = views.map(([key, { shows }]) => ({ key, shows }));
      if (this.#tellWorker) this.#tellWorker({ say: "watch", token: token ?? "", wanted });
      else this.#hub?.set(this, token ?? "", wanted);
    });
  }

  shown(key: string, shown: Shown, first: boolean) {
    this.#views.get(key)?.handler(shown, first);
  }

  state(state: LinkState) {
    this.link = state;
    for (const listener of this.#listeners) listener(state);
  }

  onLink(listener: (state: LinkState) => void): () => void {
    this.#listeners.add(listener);
    listener(this.link);
    return () => this.#listeners.delete(listener);
  }
}

export const tab = new Tab();

export function useLink(): LinkState {
  const [state, setState] = useState<LinkState>(tab.link);
  useEffect(() => tab.onLink(setState), []);
  return state;
}

export interface Watched<T> {
  value: T | undefined;
  /** Why there is nothing to see, or nothing more. */
  failed: { code: Code; message: string } | undefined;
}

/** Watches a view; `identity` says which, since what it shows is a new object at each drawing. */
export function useView<T>(
  identity: string,
  shows: () => Shows,
  apply: (value: T | undefined, shown: Shown) => T | undefined,
): Watched<T> {
  const [watched, setWatched] = useState<Watched<T> & { identity: string }>({
    identity,
    value: undefined,
    failed: undefined,
  });
  const latest = useRef(apply);
  latest.current = apply;
  useEffect(() => {
    setWatched({ identity, value: undefined, failed: undefined });
    return tab.watch(shows(), (shown, first) => {
      setWatched((before) => {
        const had = first || before.identity !== identity ? undefined : before.value;
        if (shown.case === "failed") {
          const { code, message } = shown.value;
          return { identity, value: before.value, failed: { code, message } };
        }
        return { identity, value: latest.current(had, shown), failed: undefined };
      });
    });
  }, [identity]);
  return watched.identity === identity ? watched : { value: undefined, failed: undefined };
}
