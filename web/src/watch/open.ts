// Opens the stream of a hub at the controller.
import { viewClient } from "../client.ts";
import type { Open } from "./hub.ts";

export const open: Open = (token, views, signal) => viewClient(token).watchViews({ views }, { signal });
