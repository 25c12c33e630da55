import { useEffect, useState } from "preact/hooks";
import { pictureType } from "../pairs.ts";

/** A picture of nano has so few pixels that they are to be seen. */
const FEW_PIXELS = 96;

/** A picture from its bytes. */
export function Picture({ bytes, alt }: { bytes: Uint8Array; alt: string }) {
  const [url, setUrl] = useState("");
  const [few, setFew] = useState(false);
  useEffect(() => {
    if (bytes.length === 0) return;
    const made = URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>], { type: pictureType(bytes) }));
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [bytes]);
  if (bytes.length === 0) return <span class="picture lost">cannot be read</span>;
  if (!url) return <span class="picture" />;
  return <img class={`picture ${few ? "few" : ""}`} src={url} alt={alt} onLoad={(event) => setFew(event.currentTarget.naturalWidth <= FEW_PIXELS)} />;
}
