import { useRef } from "preact/hooks";
import { count, figure } from "../format.ts";
import type { Buckets, Picked } from "../pairs.ts";

const WIDTH = 600;
const HEIGHT = 96;

interface Props {
  name: string;
  shown: Buckets;
  picked: Picked | undefined;
  pick: (picked: Picked | undefined) => void;
}

/** How many candidates have which score. Dragging over it, or the two sliders below it, picks a range. */
export function ScoreHistogram({ name, shown, picked, pick }: Props) {
  const { counts, limits } = shown;
  const last = counts.length - 1;
  const from = Math.min(picked?.from ?? 0, last);
  const to = Math.min(picked?.to ?? last, last);
  const begun = useRef<number | undefined>(undefined);
  const set = (one: number, other: number) => {
    const next = { from: Math.min(one, other), to: Math.max(one, other) };
    pick(next.from === 0 && next.to === last ? undefined : next);
  };
  const under = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * counts.length);
    return Math.max(0, Math.min(last, at));
  };
  const most = Math.max(...counts);
  const total = counts.reduce((sum, number) => sum + number, 0);
  const inside = counts.slice(from, to + 1).reduce((sum, number) => sum + number, 0);
  const bar = WIDTH / counts.length;
  return (
    <figure class="plot histogram">
      <figcaption>
        <h2>{name} of all candidates</h2>
        <span class="grow" />
        <span class="faint">
          {figure(limits[from])} to {figure(limits[to + 1])}: {count(inside)} of {count(total)}
        </span>
        <button type="button" class="quiet" disabled={!picked} onClick={() => pick(undefined)}>
          All
        </button>
      </figcaption>
      <svg
        role="img"
        aria-label={`Histogram of ${name}: ${count(total)} candidates from ${figure(limits[0])} to ${figure(limits[last + 1])}, the most, ${count(most)}, between ${figure(limits[counts.indexOf(most)])} and ${figure(limits[counts.indexOf(most) + 1])}`}
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          begun.current = under(event);
          set(begun.current, begun.current);
        }}
        onPointerMove={(event) => begun.current !== undefined && set(begun.current, under(event))}
        onPointerUp={() => (begun.current = undefined)}
        onPointerCancel={() => (begun.current = undefined)}
      >
        {counts.map((number, at) => {
          // What is there at all is seen.
          const height = number === 0 ? 0 : Math.max(2, (number / most) * (HEIGHT - 4));
          return (
            <rect key={at} class={at >= from && at <= to ? "in" : "out"} x={at * bar + 0.5} width={Math.max(1, bar - 1)} y={HEIGHT - height} height={height}>
              <title>
                {figure(limits[at])} to {figure(limits[at + 1])}: {count(number)}
              </title>
            </rect>
          );
        })}
      </svg>
      <div class="ends">
        <label>
          from {figure(limits[from])}
          <input type="range" min={0} max={last} value={from} aria-label={`Least ${name}`} aria-valuetext={figure(limits[from])} onInput={(event) => set(Math.min(Number(event.currentTarget.value), to), to)} />
        </label>
        <label>
          to {figure(limits[to + 1])}
          <input type="range" min={0} max={last} value={to} aria-label={`Most ${name}`} aria-valuetext={figure(limits[to + 1])} onInput={(event) => set(from, Math.max(Number(event.currentTarget.value), from))} />
        </label>
      </div>
      <details>
        <summary>Table</summary>
        <table>
          <thead>
            <tr>
              <th scope="col">{name}</th>
              <th scope="col" class="num">
                Candidates
              </th>
            </tr>
          </thead>
          <tbody>
            {counts.map((number, at) => (
              <tr key={at}>
                <th scope="row">
                  {figure(limits[at])} to {figure(limits[at + 1])}
                </th>
                <td class="num">{count(number)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </figure>
  );
}
