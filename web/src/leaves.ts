// The fields of a resolved spec, as the controller writes it: one field a line, two blanks a level, `- ` before a list's entries.

export interface Line {
  text: string;
  /** Of the field on it, such as spec.stages[0].train.steps; of a list's entry where that is no field. Empty if it has none. */
  path: string;
  value: string;
  /** What is below it belongs to it. */
  isSection: boolean;
}

/** The lines with their paths. */
export function lines(yaml: string): Line[] {
  /** What leads to the present line: how far it is in, and its path. */
  const open: { indent: number; path: string; entries: number }[] = [];
  return yaml.split("\n").map((line): Line => {
    const plain = { text: line, path: "", value: "", isSection: false };
    if (line.trim() === "" || line.trimStart().startsWith("#")) return plain;
    let indent = line.length - line.trimStart().length;
    let text = line.trimStart();
    let parent = above(open, indent);
    let path = "";
    while (text.startsWith("- ")) {
      path = `${parent?.path ?? ""}[${parent ? parent.entries++ : 0}]`;
      text = text.slice(2);
      open.push({ indent, path, entries: 0 });
      parent = open.at(-1);
      indent += 2;
    }
    if (!isField(text)) return { ...plain, path, value: text };
    const at = text.indexOf(":");
    path = parent ? `${parent.path}.${text.slice(0, at)}` : text.slice(0, at);
    const value = text.slice(at + 1).trim();
    if (value === "") open.push({ indent, path, entries: 0 });
    return { text: line, path, value, isSection: value === "" };
  });
}

/** By path, in the order of the file. */
export function leaves(yaml: string): Map<string, string> {
  return new Map(lines(yaml).flatMap(({ path, value, isSection }) => (path === "" || isSection ? [] : [[path, value] as const])));
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
