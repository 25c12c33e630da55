import { useMemo, useState } from "preact/hooks";
import { lines } from "../leaves.ts";
import { useSession } from "../session.ts";
import { Problem, useAsked } from "./basics.tsx";

/** The resolved spec; what is not the default stands out. */
export function Spec({ jobId }: { jobId: string }) {
  const { api } = useSession();
  const { value, failed } = useAsked(jobId, (signal) => api.jobs.getSpec({ jobId }, { signal }));
  const [ownOnly, setOwnOnly] = useState(false);
  const yaml = value?.specYaml ?? "";
  const shown = useMemo(() => {
    const own = new Map(value?.statedFields.map(({ path, defaultValue }) => [path, defaultValue]));
    const all = lines(yaml).map((line) => ({ ...line, isOwn: line.path !== "" && own.has(line.path), else: own.get(line.path) ?? "" }));
    // A section stays where something below it does.
    const kept = all.filter(({ path, isOwn, isSection }) => isOwn || (isSection && [...own.keys()].some((field) => field.startsWith(path))));
    return ownOnly ? kept : all;
  }, [value, ownOnly]);
  return (
    <section aria-label="Spec">
      <div class="controls">
        <label>
          <input type="checkbox" checked={ownOnly} onChange={(event) => setOwnOnly(event.currentTarget.checked)} />
          Only what differs from the default
        </label>
        {navigator.clipboard && (
          <button type="button" disabled={!yaml} onClick={() => void navigator.clipboard.writeText(yaml)}>
            Copy
          </button>
        )}
      </div>
      {failed && <Problem>{failed}</Problem>}
      <pre class="yaml" tabIndex={0} role="region" aria-label="Resolved spec, YAML">
        {shown.map(({ text, isOwn, else: other }, at) => (
          <span key={at} class={isOwn ? "own" : "given"}>
            {text}
            {isOwn && other === "" && <span class="sr"> (has no default)</span>}
            {other !== "" && <span class="faint"> # default: {other}</span>}
            {"\n"}
          </span>
        ))}
      </pre>
    </section>
  );
}
