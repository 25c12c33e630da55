#!/usr/bin/env python3
"""Writes small files that people really bring: files.py FIXTURES OUT. FIXTURES is the folder of reference numbers.

Each goes into a folder of OUT named after its case. Standard library only.
"""
import base64, bisect, io, json, pathlib, struct, sys, tarfile, zlib

fixtures, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {k: (v["dtype"], v["shape"], body[slice(*v["data_offsets"])]) for k, v in header.items()}


def write(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    header, body = {}, b""
    for name, (dtype, shape, data) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def weights_of(fixture, prefix):
    return {k[len(prefix) :]: v for k, v in read(fixtures / f"{fixture}.safetensors").items() if k.startswith(prefix)}


# clip-text-bare: as transformers 5.24 saves CLIPTextModel: no `text_model.` before the names.
clip = weights_of("clip_text_tiny", "model.")
bare = {k.removeprefix("text_model."): v for k, v in clip.items()}
write(out / "clip-text-bare/model.safetensors", bare)

# comfyui-prefix: a transformer alone, as ComfyUI's model folders hold it.
flux = weights_of("flux_tiny", "model.")
write(out / "comfyui-prefix/model.safetensors", {f"model.diffusion_model.{k}": v for k, v in flux.items()})

# scaled-fp8: one-byte weights with a scale beside each, and the marker of the older spelling. What they stand for lies
# beside them as expected.safetensors: a loader that forgets the scale is off by factors.
def e4m3(byte):
    exponent, fraction = byte >> 3 & 15, byte & 7
    return fraction / 512 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)


steps = [e4m3(byte) for byte in range(127)]


def to_e4m3(value):
    magnitude = abs(value)
    place = min(bisect.bisect_left(steps, magnitude), 126)
    if place and magnitude - steps[place - 1] < steps[place] - magnitude:
        place -= 1
    return place | (128 if value < 0 else 0)


scaled, expected = {}, {}
for name, (dtype, shape, data) in flux.items():
    if len(shape) == 2 and dtype == "F32":
        values = struct.unpack(f"<{len(data) // 4}f", data)
        scale = struct.unpack("<f", struct.pack("<f", max(map(abs, values)) / 448))[0] or 1.0
        codes = bytes(to_e4m3(value / scale) for value in values)
        scaled[name] = ("F8_E4M3", shape, codes)
        scaled[name.removesuffix(".weight") + ".scale_weight"] = ("F32", [], struct.pack("<f", scale))
        back = [(-1 if code & 128 else 1) * steps[code & 127] * scale for code in codes]
        expected[name] = ("F32", shape, struct.pack(f"<{len(back)}f", *back))
    else:
        scaled[name] = expected[name] = (dtype, shape, data)
scaled["scaled_fp8"] = ("F8_E4M3", [2], bytes(2))
write(out / "scaled-fp8/model.safetensors", scaled)
write(out / "scaled-fp8/expected.safetensors", expected)

# lora-other-names: the adapter of flux_tiny under the names of peft and diffusers; its outputs are those of flux_tiny with
# the adapter (`out.*.lora`). The joined projection's rows are those of q, k and v.
lora = {}
for name, (dtype, shape, data) in weights_of("flux_tiny", "lora.").items():
    kind, index, _, module, side, _ = name.split(".")
    block = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}[kind]
    head = f"transformer.{block}.{index}"
    joined = {"qkv_lora1": "attn.to_{}", "qkv_lora2": "attn.add_{}_proj", "qkv_lora": "attn.to_{}"}.get(module)
    single = {"proj_lora1": "attn.to_out.0", "proj_lora2": "attn.to_add_out", "proj_lora": "proj_out"}.get(module)
    matrix = {"down": "lora_A", "up": "lora_B"}[side]
    if joined is None:
        lora[f"{head}.{single}.{matrix}.weight"] = (dtype, shape, data)
        continue
    for part, letter in enumerate("qkv"):
        rows = shape[0] // 3
        piece = (dtype, [rows, shape[1]], data[part * len(data) // 3 : (part + 1) * len(data) // 3])
        lora[f"{head}.{joined.format(letter)}.{matrix}.weight"] = (dtype, shape, data) if side == "down" else piece
write(out / "lora-other-names/adapter.safetensors", lora)

# not-safetensors: what a download left behind, under the name that was asked for.
folder = out / "not-safetensors"
folder.mkdir(parents=True, exist_ok=True)
(folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 23802932552\n")
(folder / "page.safetensors").write_text("Access to this model is restricted. Please log in.\n" * 4)
(folder / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))
(folder / "quantised.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(60))


def png(side, colour):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = (b"\0" + bytes(colour) * side) * side
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pair(index, side=32):
    return {"ref0.png": png(side, (index * 20, 90, 30)), "target.png": png(32, (30, 90, index * 20)), "json": json.dumps({"prompt": f"cup {index} on a table"}).encode()}


def tar(case, members, form=tarfile.USTAR_FORMAT):
    path = out / case / "x.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                file.addfile(info)
            else:
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


pairs = [(f"{n:06}", pair(n)) for n in range(6)]
flat = [(f"{key}.{field}", data) for key, fields in pairs for field, data in fields.items()]
tar("tar-json-first", sorted(flat))  # as webdataset's writer and `tar *` order them
tar("tar-of-folder", [("./", None), *[("./" + name, data) for name, data in flat]])  # tar cf x.tar .
tar("tar-dotted-folder", [("set-v1.0/" + name, data) for name, data in flat])
tar("tar-upper-case", [(name.replace(".png", ".PNG"), data) for name, data in flat])
tar("tar-one-bad-pair", [(name, data[:60] if name == "000003.ref0.png" else data) for name, data in flat])

tar("tar-odd-reference", [(name, png(33, (9, 9, 9)) if name == "000002.ref0.png" else data) for name, data in flat])

# exif: one photograph as a camera held upright stores it, with orientation 6; the same without the word, and already turned. Flat
# blocks of 8×8 without subsampling, so that the turned one has the same pixels.
STORED = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0"
    "Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjL/wAARCAAQACADAREAAhEBAxEB/8QAGAAAAgMAAAAAAAAAAAAAAAAABQYEBwj/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAGgEAAgID"
    "AAAAAAAAAAAAAAAABQcEBgABCP/EABQRAQAAAAAAAAAAAAAAAAAAAAD/2gAMAwEAAhEDEQA/AFAFMwdbIAsG8Pr4c3LazQYCYnsUEMW9"
    "PPZbCz//2Q=="
)
TURNED = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0"
    "Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjL/wAARCAAgABADAREAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABgcF/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/EABcBAQEBAQAA"
    "AAAAAAAAAAAAAAYEBwX/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oADAMBAAIRAxEAPwCToyUpQk7FXMaN0TipqeFJGRJWwxQgWAZWv//Z"
)
entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
folder = out / "exif"
folder.mkdir(parents=True, exist_ok=True)
(folder / "photo.jpg").write_bytes(STORED[:2] + segment + STORED[2:])
(folder / "stored.jpg").write_bytes(STORED)
(folder / "turned.jpg").write_bytes(TURNED)
