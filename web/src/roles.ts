// The roles of people, as docs/security.md has them.
const ROLES = ["viewer", "submitter", "operator", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** Whether a role of people includes another. */
export function covers(had: string, needed: Role): boolean {
  const at = ROLES.indexOf(had as Role);
  return at >= 0 && at >= ROLES.indexOf(needed);
}
