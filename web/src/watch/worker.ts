// Shared by all tabs of a browser: holds the one stream.
import { Hub, type Watcher } from "./hub.ts";
import { GONE_AFTER_MILLIS, HERE_EVERY_MILLIS, type ToTab, type ToWorker } from "./messages.ts";
import { open } from "./open.ts";

const hub = new Hub(open);
const tabs = new Map<MessagePort, { watcher: Watcher; heardAt: number }>();

function leave(port: MessagePort) {
  const tab = tabs.get(port);
  if (!tab) return;
  hub.remove(tab.watcher);
  tabs.delete(port);
  port.close();
}

(self as unknown as { onconnect: (event: MessageEvent) => void }).onconnect = (event) => {
  const port = event.ports[0];
  if (!port) return;
  const send = (message: ToTab) => port.postMessage(message);
  const watcher: Watcher = {
    shown: (key, shown, first) => send({ say: "shown", key, shown, first }),
    state: (state) => send({ say: "state", state }),
  };
  tabs.set(port, { watcher, heardAt: Date.now() });
  port.onmessage = ({ data }: MessageEvent<ToWorker>) => {
    const tab = tabs.get(port);
    if (tab) tab.heardAt = Date.now();
    if (data.say === "watch") hub.set(watcher, data.token, data.wanted);
    if (data.say === "bye") leave(port);
  };
};

setInterval(() => {
  for (const [port, { heardAt }] of tabs) {
    if (Date.now() - heardAt > GONE_AFTER_MILLIS) leave(port);
  }
}, HERE_EVERY_MILLIS);
