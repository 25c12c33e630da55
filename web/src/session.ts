// Who looks: the token of this tab, what the controller says of its owner, and what it may do.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import { type Clients, clients } from "./client.ts";
import { type Role, covers } from "./roles.ts";
import { type WhoAmIResponse, WhoAmIResponseSchema } from "./gen/crescendo/v1/access_pb.ts";

/** Of this tab alone, and gone with it. */
const KEPT_AS = "crescendo.token";

export interface Session {
  token: string;
  who: WhoAmIResponse;
  api: Clients;
}

export function keptToken(): string {
  return sessionStorage.getItem(KEPT_AS) ?? "";
}

export function keepToken(token: string) {
  if (token) sessionStorage.setItem(KEPT_AS, token);
  else sessionStorage.removeItem(KEPT_AS);
}

/** Asks the controller who this is. */
export async function signIn(token: string): Promise<Session> {
  const api = clients(token);
  const who = await api.access.whoAmI({}, { timeoutMs: 15_000 });
  return { token, who, api };
}

export const isUnknown = (thrown: unknown) => ConnectError.from(thrown).code === Code.Unauthenticated;

const nobody: Session = { token: "", who: create(WhoAmIResponseSchema), api: clients("") };
export const SessionContext = createContext<Session>(nobody);
export const useSession = () => useContext(SessionContext);

export function useMay(needed: Role): boolean {
  return covers(useSession().who.role, needed);
}
