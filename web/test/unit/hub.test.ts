import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { JobsViewSchema, type View, WatchViewsResponseSchema } from "../../src/gen/crescendo/v1/view_pb.ts";
import { Hub, type LinkState, type Open, type Shown, type Watcher } from "../../src/watch/hub.ts";

const jobs = { case: "jobs" as const, value: create(JobsViewSchema) };

/** Waits for what is to come, a little at a time. */
async function until(what: string, check: () => boolean) {
  const end = Date.now() + 10_000;
  while (!check()) {
    if (Date.now() > end) throw new Error(`${what}: it never came`);
    await new Promise((done) => setTimeout(done, 5));
  }
}

/** A stream that the test feeds. */
function played() {
  const opened: { token: string; views: View[]; signal: AbortSignal; say: (viewId: number, total: number) => void; fail: (code: Code) => void }[] = [];
  const open: Open = (token, views, signal) => {
    const waiting: (() => void)[] = [];
    const said: (ReturnType<typeof answer> | ConnectError)[] = [];
    const wake = () => waiting.splice(0).forEach((go) => go());
    signal.addEventListener("abort", wake);
    opened.push({
      token,
      views,
      signal,
      say: (viewId, total) => (said.push(answer(viewId, total)), wake()),
      fail: (code) => (said.push(new ConnectError("no", code)), wake()),
    });
    return (async function* () {
      while (!signal.aborted) {
        const next = said.shift();
        if (next instanceof ConnectError) throw next;
        if (next) yield next;
        else await new Promise<void>((go) => waiting.push(go));
      }
    })();
  };
  return { open, opened };
}

const answer = (viewId: number, total: number) => create(WatchViewsResponseSchema, { viewId, shown: { case: "jobs", value: { total } } });

function listener() {
  const heard: string[] = [];
  const states: LinkState[] = [];
  const watcher: Watcher = {
    shown: (key: string, shown: Shown, first: boolean) => heard.push(`${key} ${shown.case === "jobs" ? shown.value.total : "?"}${first ? " first" : ""}`),
    state: (state) => states.push(state),
  };
  return { watcher, heard, states };
}

test("all watchers of one token share a stream", async () => {
  const { open, opened } = played();
  const hub = new Hub(open);
  const [one, two] = [listener(), listener()];
  hub.set(one.watcher, "t", [{ key: "a", shows: jobs }]);
  hub.set(two.watcher, "t", [{ key: "a", shows: jobs }, { key: "b", shows: jobs }]);
  await until("a stream", () => opened.length === 1);
  const stream = opened[0];
  assert.deepEqual(stream?.views.map(({ viewId }) => viewId), [1, 2, 3]);
  stream?.say(1, 5);
  stream?.say(3, 6);
  stream?.say(3, 7);
  await until("the last word", () => two.heard.length === 2);
  assert.deepEqual([one.heard, two.heard], [["a 5 first"], ["b 6 first", "b 7"]]);
  assert.deepEqual(one.states.map(({ at }) => at), ["connecting", "live"]);
  hub.remove(one.watcher);
  await until("the next stream", () => opened.length === 2);
  assert.ok(stream?.signal.aborted);
  assert.deepEqual(opened[1]?.views.map(({ viewId }) => viewId), [1, 2]);
  hub.remove(two.watcher);
  await until("its end", () => opened[1]?.signal.aborted === true);
  assert.equal(opened.length, 2, "nobody watches, and nothing is asked");
});

test("another token has a stream of its own", async () => {
  const { open, opened } = played();
  const hub = new Hub(open);
  const [one, two] = [listener(), listener()];
  hub.set(one.watcher, "t", [{ key: "a", shows: jobs }]);
  hub.set(two.watcher, "u", [{ key: "a", shows: jobs }]);
  await until("two streams", () => opened.length === 2);
  assert.deepEqual(opened.map(({ token }) => token).sort(), ["t", "u"]);
  hub.remove(one.watcher);
  hub.remove(two.watcher);
});

test("a stream that breaks is opened again, and says why meanwhile", async () => {
  const { open, opened } = played();
  const hub = new Hub(open);
  const one = listener();
  hub.set(one.watcher, "t", [{ key: "a", shows: jobs }]);
  await until("a stream", () => opened.length === 1);
  opened[0]?.fail(Code.Unavailable);
  await until("the trouble", () => one.states.at(-1)?.at === "waiting");
  assert.deepEqual(one.states.at(-1), { at: "waiting", why: "no", code: Code.Unavailable });
  await until("another stream", () => opened.length === 2);
  opened[1]?.say(1, 4);
  await until("a word", () => one.heard.length === 1);
  assert.deepEqual(one.heard, ["a 4 first"]);
  assert.equal(one.states.at(-1)?.at, "live");
  hub.remove(one.watcher);
});
