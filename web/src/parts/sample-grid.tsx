import { figure } from "../format.ts";
import type { Row } from "../samples.ts";
import { Picture } from "./picture.tsx";

/** A column of pictures. */
export interface Column {
  /** What rows have its pictures by. */
  name: string;
  heading: string;
  loss: number | undefined;
}

/** What was drawn of each prompt, by column. */
export function SampleGrid({ label, rows, columns }: { label: string; rows: Row[]; columns: Column[] }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}>
      <table class="samples">
        <thead>
          <tr>
            <th scope="col">What is drawn</th>
            {columns.map(({ name, heading, loss }) => (
              <th key={name} scope="col">
                {heading}
                {loss !== undefined && <span class="faint"> · loss {figure(loss)}</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <SampleRow key={row.first.key} row={row} columns={columns} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function SampleRow({ row, columns }: { row: Row; columns: Column[] }) {
  const { prompt, references, words } = row.first;
  return (
    <tr>
      <th scope="row">
        {prompt}
        <span class="references">
          {references.map((bytes, at) => (
            <Picture key={at} bytes={bytes} alt={`Reference ${at + 1}: ${words[at] ?? ""}`} />
          ))}
        </span>
      </th>
      {columns.map(({ name, heading }) => {
        const drawn = row.bySteps.get(name);
        return <td key={name}>{drawn ? <Picture bytes={drawn.target} alt={`${prompt}, ${heading}`} /> : <span class="picture" />}</td>;
      })}
    </tr>
  );
}
