/** `key=value, key`: labels to filter by; a key alone asks for any value. */
export function labelsOf(text: string): Record<string, string> {
  const given = text.split(/[\s,]+/).filter(Boolean);
  return Object.fromEntries(
    given.map((label) => {
      const at = label.indexOf("=");
      return at < 0 ? [label, ""] : [label.slice(0, at), label.slice(at + 1)];
    }),
  );
}
