import { Code, ConnectError } from "@connectrpc/connect";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ClusterPage } from "./pages/cluster.tsx";
import { ComparePage } from "./pages/compare.tsx";
import { JobPage } from "./pages/job.tsx";
import { JobsPage } from "./pages/jobs.tsx";
import { LoginPage } from "./pages/login.tsx";
import { QueuesPage } from "./pages/queues.tsx";
import { finish } from "./login.ts";
import { type Route, href, useRoute } from "./route.ts";
import { covers } from "./roles.ts";
import { SessionContext, type Session, isUnknown, keepToken, keptToken, signIn, useMay, useSession } from "./session.ts";
import { tab, useLink } from "./watch/watch.ts";

type Entry =
  | { at: "asking" }
  | { at: "out"; why: string }
  | { at: "unreachable"; why: string }
  | { at: "in"; session: Session };

const RETRY_MILLIS = 3000;

export function App() {
  const [entry, setEntry] = useState<Entry>({ at: "asking" });
  const enter = useCallback(async (token: string) => {
    try {
      const session = await signIn(token);
      keepToken(token);
      tab.setToken(token);
      setEntry({ at: "in", session });
    } catch (thrown) {
      const why = ConnectError.from(thrown).rawMessage;
      if (isUnknown(thrown)) {
        keepToken("");
        setEntry({ at: "out", why: token ? why : "" });
      } else {
        setEntry({ at: "unreachable", why });
      }
    }
  }, []);
  const leave = useCallback((why: string) => {
    keepToken("");
    tab.setToken(undefined);
    setEntry({ at: "out", why });
  }, []);

  useEffect(() => {
    finish().then(
      (token) => enter(token ?? keptToken()),
      (thrown) => setEntry({ at: "out", why: ConnectError.from(thrown).rawMessage }),
    );
  }, []);
  useEffect(() => {
    if (entry.at !== "unreachable") return;
    const timer = setTimeout(() => void enter(keptToken()), RETRY_MILLIS);
    return () => clearTimeout(timer);
  }, [entry]);
  useEffect(
    () =>
      tab.onLink((state) => {
        if (state.at === "waiting" && state.code === Code.Unauthenticated) leave(state.why);
      }),
    [],
  );

  switch (entry.at) {
    case "asking":
      return <main class="enter" aria-busy="true" />;
    case "unreachable":
      return (
        <main class="enter">
          <h1>Crescendo</h1>
          <p role="status">The controller cannot be reached: {entry.why}. Trying again.</p>
        </main>
      );
    case "out":
      return <LoginPage why={entry.why} enter={enter} />;
    case "in":
      return (
        <SessionContext.Provider value={entry.session}>
          <Frame leave={leave} />
        </SessionContext.Provider>
      );
  }
}

function Frame({ leave }: { leave: (why: string) => void }) {
  const route = useRoute();
  const session = useSession();
  const operates = useMay("operator");
  const [at = "jobs"] = route.path;
  const link = (to: string, text: string) => (
    <a href={href([to])} aria-current={at === to || (to === "jobs" && at === "compare") ? "page" : undefined}>
      {text}
    </a>
  );
  const opened = useRef(false);
  useEffect(() => {
    // Who has just opened the page begins at its top; who goes on to another view, at that.
    if (opened.current) document.getElementById("content")?.focus({ preventScroll: true });
    opened.current = true;
    scrollTo(0, 0);
  }, [route.path.join("/")]);
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        document.getElementById("content")?.focus();
      }}>
        To the content
      </a>
      <header class="bar">
        <a class="brand" href={href(["jobs"])}>
          <svg viewBox="0 0 32 32" width="20" height="20" aria-hidden="true">
            <path d="M4 16 28 6M4 16l24 10" fill="none" stroke="currentColor" stroke-width="4" stroke-linecap="round" />
          </svg>
          Crescendo
        </a>
        <nav aria-label="Main">
          {link("jobs", "Jobs")}
          {operates && link("cluster", "Cluster")}
          {link("queues", "Queues")}
        </nav>
        <Live />
        <span class="who">
          <span title={session.who.tenant ? `tenant ${session.who.tenant}` : "all tenants"}>
            {session.who.name} <span class="faint">{session.who.role}</span>
          </span>
          {session.token && (
            <button type="button" class="quiet" onClick={() => leave("")}>
              Sign out
            </button>
          )}
        </span>
      </header>
      <main id="content" tabIndex={-1}>
        <Page route={route} />
      </main>
    </>
  );
}

function Live() {
  const link = useLink();
  const text = link.at === "live" ? "Live" : link.at === "connecting" ? "Connecting" : "Reconnecting";
  return (
    <span class={`live ${link.at === "live" ? "at-live" : ""}`} role="status" title={link.at === "waiting" ? link.why : undefined}>
      {text}
    </span>
  );
}

function Page({ route }: { route: Route }) {
  const { who } = useSession();
  const [at = "jobs", id] = route.path;
  if (at === "jobs" && id !== undefined) return <JobPage key={id} id={id} query={route.query} />;
  if (at === "jobs") return <JobsPage query={route.query} />;
  if (at === "compare") return <ComparePage query={route.query} />;
  if (at === "queues") return <QueuesPage />;
  if (at === "cluster" && covers(who.role, "operator")) return <ClusterPage />;
  return (
    <section class="page">
      <h1>There is no such page</h1>
      <p>
        <a href={href(["jobs"])}>To the jobs</a>
      </p>
    </section>
  );
}
