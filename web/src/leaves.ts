// The fields of a resolved spec, as the controller writes it: one field a line, two blanks a level, `- ` before a list's entries.

/** By path, such as spec.stages[0].train.steps, in the order of the file. */
export function leaves(yaml: string): Map<string, string> {
  const found = new Map<string, string>();
  /** What leads to the present line: how far it is in, and its path. */
  const open: { indent: number; path: string; entries: number }[] = [];
  for (const line of yaml.split("\n")) {
    if (line.trim() === "" || line.trimStart().startsWith("#")) continue;
    let indent = line.length - line.trimStart().length;
    let text = line.trimStart();
    let parent = above(open, indent);
    while (text.startsWith("- ")) {
      const path = `${parent?.path ?? ""}[${parent ? parent.entries++ : 0}]`;
      text = text.slice(2);
      open.push({ indent, path, entries: 0 });
      parent = open.at(-1);
      indent += 2;
      if (!isField(text)) found.set(path, text);
    }
    if (!isField(text)) continue;
    const at = text.indexOf(":");
    const path = parent ? `${parent.path}.${text.slice(0, at)}` : text.slice(0, at);
    const value = text.slice(at + 1).trim();
    if (value === "") open.push({ indent, path, entries: 0 });
    else found.set(path, value);
  }
  return found;
}

const isField = (text: string) => /^(?:[A-Za-z0-9_./-]+|"[^"]*"):( |$)/.test(text);

/** Closes what is not above a line that is so far in. */
function above(open: { indent: number; path: string; entries: number }[], indent: number) {
  while ((open.at(-1)?.indent ?? -1) >= indent) open.pop();
  return open.at(-1);
}

export interface Difference {
  path: string;
  /** Of each spec; absent where it has no such field. */
  values: (string | undefined)[];
}

/** Fields in which specs differ, but for their names. */
export function differences(specs: Map<string, string>[]): Difference[] {
  const paths = new Set(specs.flatMap((spec) => [...spec.keys()]));
  paths.delete("metadata.name");
  const rows = [...paths].map((path) => ({ path, values: specs.map((spec) => spec.get(path)) }));
  return rows.filter(({ values }) => values.some((value) => value !== values[0]));
}
