// Curves with uPlot, and each as a table too.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { drawable, sampledRows, smoothed } from "../curves.ts";
import { count, figure } from "../format.ts";

export interface PlotLine {
  label: string;
  steps: number[];
  mean: number[];
  /** Drawn as a band, if it differs from the mean anywhere. */
  least?: number[];
  most?: number[];
  /** Which of the colours; by its place if not said. */
  colour?: number;
}

export interface Look {
  smooth: number;
  log: boolean;
}

const HEIGHT = 200;
const ROWS = 24;
const sync = uPlot.sync("steps");

const COLOURS = 8;
const colourOf = (at: number) => getComputedStyle(document.documentElement).getPropertyValue(`--line-${at % COLOURS}`).trim();
const styleOf = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Grows when the colours of the system change. */
function useScheme(): number {
  const [scheme, setScheme] = useState(0);
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const onChange = () => setScheme((before) => before + 1);
    dark.addEventListener("change", onChange);
    return () => dark.removeEventListener("change", onChange);
  }, []);
  return scheme;
}

interface Drawn {
  data: uPlot.AlignedData;
  banded: boolean[];
}

/** All lines on one axis of steps. */
function aligned(lines: PlotLine[], look: Look): Drawn {
  const banded = lines.map(
    ({ mean, least, most }) =>
      least !== undefined && most !== undefined && mean.some((value, at) => most[at] !== value || least[at] !== value),
  );
  const positive = (values: number[]) => (look.log ? values.map((value) => (value > 0 ? value : Number.NaN)) : values);
  const tables = lines.map(({ steps, mean, least, most }, at): uPlot.AlignedData => {
    const drawn = [smoothed(mean, look.smooth), ...(banded[at] ? [most ?? mean, least ?? mean] : [])];
    return [steps, ...drawn.map((values) => drawable(positive(values)))] as uPlot.AlignedData;
  });
  return { data: tables.length === 1 ? (tables[0] as uPlot.AlignedData) : uPlot.join(tables), banded };
}

function options(lines: PlotLine[], banded: boolean[], look: Look, width: number, onCursor: (at: number | null) => void): uPlot.Options {
  const series: uPlot.Series[] = [{ label: "step" }];
  const bands: uPlot.Band[] = [];
  lines.forEach(({ label, colour }, at) => {
    const stroke = colourOf(colour ?? at);
    series.push({ label, stroke, width: 1.5, spanGaps: true, points: { show: false } });
    if (banded[at]) {
      const first = series.length;
      const edge = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
      series.push({ label: `${label}, most`, ...edge }, { label: `${label}, least`, ...edge });
      bands.push({ series: [first, first + 1], fill: `color-mix(in srgb, ${stroke} 18%, transparent)` });
    }
  });
  const axis = { stroke: styleOf("--faint"), grid: { stroke: styleOf("--grid"), width: 1 }, ticks: { stroke: styleOf("--grid"), width: 1 } };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: sync.key }, drag: { x: true, y: false }, points: { size: 6 } },
    scales: { x: { time: false }, y: look.log ? { distr: 3 } : {} },
    axes: [
      { ...axis, size: 28, values: (_: uPlot, ticks: number[]) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")) },
      { ...axis, size: 62, values: (_: uPlot, ticks: (number | null)[]) => ticks.map((tick) => (tick === null ? "" : figure(tick))) },
    ],
    series,
    bands,
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)] },
  };
}

export function Plot(props: { title: string; unit: string; lines: PlotLine[]; look: Look; note?: string | undefined }) {
  const { title, unit, lines, look } = props;
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const [width, setWidth] = useState(0);
  const [cursor, setCursor] = useState<number | null>(null);
  const scheme = useScheme();
  const { data, banded } = useMemo(() => aligned(lines, look), [lines, look]);
  const shape = JSON.stringify([lines.map(({ label, colour }) => [label, colour]), banded, look.log, scheme]);

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const watch = new ResizeObserver(([entry]) => entry && setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    if (!box.current || width === 0) return;
    const made = new uPlot(options(lines, banded, look, width, setCursor), data, box.current);
    plot.current = made;
    return () => {
      plot.current = undefined;
      made.destroy();
    };
  }, [shape, width === 0]);
  useEffect(() => {
    if (width > 0) plot.current?.setSize({ width, height: HEIGHT });
  }, [width]);
  useEffect(() => {
    plot.current?.setData(data, true);
  }, [data]);

  const at = (line: PlotLine): number | undefined => {
    const step = cursor === null ? undefined : data[0][cursor];
    const index = step === undefined ? line.steps.length - 1 : line.steps.indexOf(step);
    return line.mean[index];
  };
  const cursorStep = cursor === null ? undefined : data[0][cursor];
  const isEmpty = lines.every(({ mean }) => !mean.some(Number.isFinite));
  const lastOf = lines.map((line) => `${line.label}: ${figure(line.mean.filter(Number.isFinite).at(-1))}`).join(", ");
  return (
    <figure class="plot">
      <figcaption>
        <h2>{title}</h2>
        {unit && <span class="faint">{unit}</span>}
        <span class="grow" />
        <span class="faint">{cursorStep === undefined ? "" : `step ${count(cursorStep)}`}</span>
        {lines.length === 1 && lines[0] ? <span class="value">{figure(at(lines[0]))}</span> : null}
      </figcaption>
      <div ref={box} class="canvas" role="img" aria-label={isEmpty ? `${title}: no numbers yet` : `${title} by step; last ${lastOf}`}>
        {isEmpty && <p class="empty">No numbers yet</p>}
      </div>
      {lines.length > 1 && (
        <ul class="legend">
          {lines.map((line, index) => (
            <li key={line.label}>
              <span class={`key line-${(line.colour ?? index) % COLOURS}`} aria-hidden="true" />
              {line.label} <span class="value">{figure(at(line))}</span>
            </li>
          ))}
        </ul>
      )}
      {props.note && <p class="faint note">{props.note}</p>}
      <Table title={title} lines={lines} />
    </figure>
  );
}

function Table({ title, lines }: { title: string; lines: PlotLine[] }) {
  const [open, setOpen] = useState(false);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        Table<span class="sr"> of {title}</span>
      </summary>
      {open &&
        lines.map((line) => (
          <table key={line.label}>
            {lines.length > 1 && <caption>{line.label}</caption>}
            <thead>
              <tr>
                <th scope="col" class="num">
                  Step
                </th>
                <th scope="col" class="num">
                  Mean
                </th>
                <th scope="col" class="num">
                  Least
                </th>
                <th scope="col" class="num">
                  Most
                </th>
              </tr>
            </thead>
            <tbody>
              {sampledRows(line.steps.length, ROWS).map((row) => (
                <tr key={row}>
                  <th scope="row" class="num">
                    {count(line.steps[row] ?? 0)}
                  </th>
                  <td class="num">{figure(line.mean[row])}</td>
                  <td class="num">{figure((line.least ?? line.mean)[row])}</td>
                  <td class="num">{figure((line.most ?? line.mean)[row])}</td>
                </tr>
              ))}
            </tbody>
          </table>
        ))}
    </details>
  );
}

/** How curves are drawn; the same for all of a page. */
export function LookPicker({ look, set }: { look: Look; set: (look: Look) => void }) {
  return (
    <div class="look">
      <label>
        Smoothing
        <input
          type="range"
          min="0"
          max="0.98"
          step="0.02"
          value={look.smooth}
          aria-valuetext={look.smooth === 0 ? "none" : String(look.smooth)}
          onInput={(event) => set({ ...look, smooth: Number(event.currentTarget.value) })}
        />
        <output>{look.smooth === 0 ? "none" : look.smooth.toFixed(2)}</output>
      </label>
      <label>
        <input type="checkbox" checked={look.log} onChange={(event) => set({ ...look, log: event.currentTarget.checked })} />
        Logarithmic
      </label>
    </div>
  );
}
