/** Which stage's curves are shown; nothing where there is no choice. */
export function StagePicker({ stages, shown, pick }: { stages: string[]; shown: string | undefined; pick: (stage: string) => void }) {
  if (stages.length < 2) return null;
  return (
    <label>
      Stage
      <select value={shown} onChange={(event) => pick(event.currentTarget.value)}>
        {stages.map((name) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}
