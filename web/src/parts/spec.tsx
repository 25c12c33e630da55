import { useSession } from "../session.ts";
import { Problem, useAsked } from "./basics.tsx";

export function Spec({ jobId }: { jobId: string }) {
  const { api } = useSession();
  const { value, failed } = useAsked(jobId, (signal) => api.jobs.getJob({ jobId }, { signal }));
  const yaml = value?.job?.resolvedSpecYaml ?? "";
  return (
    <section aria-label="Spec">
      <div class="controls">
        <span class="faint">With every default filled in.</span>
        {navigator.clipboard && (
          <button type="button" disabled={!yaml} onClick={() => void navigator.clipboard.writeText(yaml)}>
            Copy
          </button>
        )}
      </div>
      {failed && <Problem>{failed}</Problem>}
      <pre class="yaml" tabIndex={0} aria-label="Resolved spec, YAML">
        {yaml}
      </pre>
    </section>
  );
}
