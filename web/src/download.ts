// A file of a checkpoint, from the controller to the disk.
import type { Clients } from "./client.ts";

/** What a browser keeps in memory where it cannot write to a file as it comes. */
export const MOST_IN_MEMORY = 2 * 1024 ** 3;

interface Sink {
  write(chunk: Uint8Array): Promise<void>;
  close(): Promise<void>;
  abort(): Promise<void>;
}

type Picker = (options: { suggestedName: string }) => Promise<{ createWritable(): Promise<Sink> }>;

/** In pieces, so that a large file is whole or none: `said` tells how far it is, 0 to 1. */
export async function download(
  api: Clients,
  of: { jobId: string; path: string; name: string; sizeBytes: bigint },
  said: (part: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const size = Number(of.sizeBytes);
  const sink = await sinkFor(of.name, size);
  let got = 0;
  try {
    const request = { jobId: of.jobId, path: of.path, name: of.name };
    for await (const { message } of api.objects.readCheckpointFile(request, { signal })) {
      if (message.case !== "chunk") continue;
      await sink.write(message.value);
      got += message.value.length;
      said(size ? got / size : 1);
    }
    if (got !== size) throw new Error(`only ${got} of ${size} bytes came`);
    await sink.close();
  } catch (thrown) {
    await sink.abort();
    throw thrown;
  }
}

async function sinkFor(name: string, size: number): Promise<Sink> {
  const picker = (window as unknown as { showSaveFilePicker?: Picker }).showSaveFilePicker;
  if (picker && size > 64 * 1024 ** 2) return (await picker({ suggestedName: name })).createWritable();
  if (size > MOST_IN_MEMORY) throw new Error("this browser cannot take so large a file; crescendo cp can");
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  return {
    write: async (chunk) => {
      pieces.push(new Uint8Array(chunk));
    },
    close: async () => {
      const url = URL.createObjectURL(new Blob(pieces));
      const link = document.createElement("a");
      link.href = url;
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    },
    abort: async () => {
      pieces.length = 0;
    },
  };
}
