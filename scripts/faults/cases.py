#!/usr/bin/env python3
"""Files that people really bring, through real processes: inspect, lora convert, generate, and jobs that import.

    scripts/faults/cases.py [--bin target/debug] [CASE...]

Writes them with files.py, gives each to the program that reads it and checks what is said, and how many pairs a job has of
it. What the numbers in the files must be is held by the tests of crescendo-model; endpoints.py does the same for language
models. Standard library only; exit code 1 if a case is not as it should be.
"""
import argparse, json, os, pathlib, shutil, stat, struct, subprocess, sys, tempfile, time

from cluster import ROOT, Cluster, png, ran, wait

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 180
# A refusal before any work: the programs read no more than headers.
AT_ONCE = 10
# What `inspect` says of a file, and whether it takes it.
WEIGHTS = {
    "clip-text-bare/model.safetensors": (0, "CLIP"),
    "comfyui-prefix/model.safetensors": (0, "model.diffusion_model"),
    "scaled-fp8/model.safetensors": (0, "scale"),
    "lora-other-names/adapter.safetensors": (0, "diffusers"),
    "not-safetensors/pointer.safetensors": (1, "git lfs pull"),
    "not-safetensors/page.safetensors": (1, "Access to this model is restricted"),
    "not-safetensors/pickle.safetensors": (1, "pickle"),
    "not-safetensors/quantised.gguf": (1, "GGUF"),
}
# What the real libraries wrote (tests/peers), in folders as they save them, and whose base it is.
PEERS = {
    "flux-diffusers": "diffusers",
    "flux-published": "FLUX",
    "vae-diffusers/vae": "diffusers",
    "dino-transformers": "DINO",
    "dinov2-registers": "DINOv2",
    "dinov2-swiglu": "DINOv2",
    "dinov2-classifier": "DINOv2",
    "t5-whole/model.safetensors": "T5",
    "lora-peft": "PEFT",
    "lora-kohya/kohya.safetensors": "kohya",
    "lora-xlabs/lora.safetensors": "LoRA",
}
# Pairs of six, and the reason of those that are turned down.
TARS = {
    "tar-json-first": (6, ""),
    "tar-of-folder": (6, ""),
    "tar-dotted-folder": (6, ""),
    "tar-upper-case": (6, ""),
    "tar-one-bad-pair": (5, "unreadable_image"),
    "tar-odd-reference": (5, "bad_size"),
}


def pixels(data):
    """What a PNG shows: its size and its IDAT."""
    found, at = b"", 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind in (b"IHDR", b"IDAT"):
            found += data[at + 8 : at + 8 + size]
        at += size + 12
    return found


class Cases:
    def __init__(self, folder, files, binaries):
        self.folder, self.files, self.crescendo = folder, files, binaries / "crescendo"
        self.binaries, self.cluster = binaries, None

    def tool(self, *args, umask=None, code=0):
        """What the command says; AssertionError if it ends otherwise than with `code`."""
        began = time.monotonic()
        done = subprocess.run([self.crescendo, *map(str, args)], cwd=self.folder, stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, umask=-1 if umask is None else umask,
                              env={**os.environ, "RUST_BACKTRACE": "1"})
        said = done.stdout + done.stderr
        assert "stack backtrace" not in said, f"a backtrace: {said[:300]}"
        assert done.returncode == code, f"exit code {done.returncode}: {said[:300]}"
        if code:
            assert time.monotonic() - began < AT_ONCE, f"after {time.monotonic() - began:.0f} s: {said[:300]}"
        return said

    def weights(self, file):
        code, words = WEIGHTS[file]
        said = self.tool("inspect", self.files / file, code=code)
        assert words in said, f"{words!r} is not in: {said[:400]}"
        return " ".join(said.split())[:120]

    def peer(self, folder):
        said = self.tool("inspect", ROOT / "tests/peers/files" / folder)
        assert PEERS[folder] in said, f"{PEERS[folder]!r} is not in: {said[:400]}"
        return " ".join(said.split())[:120]

    def diffusers_folder(self):
        """A pipeline as diffusers saves it: `--model-dir` finds what it names there, and does not ask for files of one name."""
        folder = self.folder / "pipeline"
        shutil.copytree(ROOT / "tests/peers/files/flux-diffusers/transformer", folder / "transformer")
        shutil.copytree(ROOT / "tests/peers/files/vae-diffusers/vae", folder / "vae")
        draw = ("generate", "--prompt", "a mug", "--preset", "flux-dev", "--model-dir", folder, "--out", "a.png")
        said = self.tool(*draw, code=1)
        # It is read, and found to be smaller than the preset.
        assert "diffusers' names" in said and "ae.safetensors" not in said, said[:400]
        return " ".join(said.split())[:160]

    def drawn(self, name, *args):
        base = ROOT / "assets/nano/base.safetensors"
        self.tool("generate", "--preset", "nano", "--weights", base, "--prompt", "a red mug", "--steps", "1",
                  *args, "--out", f"{name}.png")
        # Beside the pixels a picture says what it was made from.
        return pixels((self.folder / f"{name}.png").read_bytes())

    def exif(self):
        """A photograph that a camera held upright is upright; as stored if that is asked for."""
        photo, stored, turned = (self.files / "exif" / f"{name}.jpg" for name in ("photo", "stored", "turned"))
        upright = self.drawn("upright", "--reference", photo)
        assert upright == self.drawn("turned", "--reference", turned), "it is not upright"
        lying = self.drawn("lying", "--reference", photo, "--as-stored")
        assert lying == self.drawn("stored", "--reference", stored), "--as-stored turns it"
        assert lying != upright, "the reference does not matter"
        return "upright; --as-stored as it lies"

    def outputs(self):
        """Outputs are for whom the umask says; a replaced file stays for whom it was."""
        lora, out = self.folder / "lora.safetensors", self.folder / "out.safetensors"
        lora.write_bytes((ROOT / "tests/fixtures/lora_export_dit_lora.safetensors").read_bytes())
        convert = ("lora", "convert", lora, "--to", "comfyui", "--out", out)
        mode = lambda: stat.S_IMODE(out.stat().st_mode)
        self.tool(*convert, umask=0o022)
        assert mode() == 0o644, oct(mode())
        out.chmod(0o664)
        self.tool(*convert, umask=0o022)
        assert mode() == 0o664, oct(mode())
        # Our own output is read back, under its name and out of a checkpoint's folder.
        assert "ComfyUI" in self.tool("inspect", out)
        (self.folder / "checkpoint").mkdir()
        lora.rename(self.folder / "checkpoint/dit_lora.safetensors")
        self.tool("lora", "convert", self.folder / "checkpoint", "--to", "diffusers", "--out", self.folder / "again.safetensors")
        return " ".join(self.tool("inspect", self.folder / "checkpoint").split())[:120]

    def before_work(self):
        """What is missing is said before anything is loaded or drawn."""
        base = ROOT / "assets/nano/base.safetensors"
        draw = ("generate", "--preset", "nano", "--weights", base, "--prompt", "a red mug on a table")
        said = self.tool(*draw, "--lora", "no-lora.safetensors", "--out", "a.png", code=1)
        assert "no-lora.safetensors" in said, said
        said += self.tool(*draw, "--out", "no/such/folder/a.png", code=1)
        assert "no/such/folder" in said, said
        return " ".join(said.split())[:160]

    def served(self):
        """The cluster, started once."""
        if self.cluster is None:
            self.cluster = Cluster(self.folder, self.binaries)
        return self.cluster

    def importing(self, name, data):
        return self.served().submit(name, (
            f"apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n"
            f"  model: {{preset: nano, precision: f32, weights: base.safetensors}}\n  resources: {{gpus: 64}}\n"
            f"  stages:\n    - name: stage-1\n      references: 1\n"
            f"      data: {{source: import, {data}, resolution: 32, pairs: 6, minPairs: 1}}\n"
            f"      train: {{adapter: {{rank: 4}}, steps: 1, globalBatch: 64}}\n"))

    def pairs(self, name, data, wanted, reason):
        job_id = self.importing(name, data)

        def made():
            job = self.cluster.job(job_id)
            assert not job["state"].lower().endswith("failed"), job["reason"]
            return int(job["stages"][0]["pairsCommitted"]) or None

        found = wait(made, LIMIT, "pairs are committed")
        told = self.cluster.run("get", job_id) + self.cluster.run("get", job_id, "-o", "json")
        self.cluster.cancel(job_id)
        assert found == wanted, f"{found} pairs: {told[:400]}"
        assert reason in told, f"{reason!r} is not in: {told[:800]}"
        return f"{found} pairs {reason}"

    def tar(self, case):
        wanted, reason = TARS[case]
        folder = self.folder / case
        folder.mkdir(exist_ok=True)
        (folder / "x.tar").write_bytes((self.files / case / "x.tar").read_bytes())
        return self.pairs(case, f"format: webdataset, path: {case}", wanted, reason)

    def uno_records(self):
        """UNO's own training layout."""
        folder = self.folder / "uno"
        folder.mkdir()
        records = []
        for n in range(6):
            for part in ("ref", "target"):
                (folder / f"{n}-{part}.png").write_bytes(png(32, (n * 20, 90, 30)))
            records.append({"prompt": f"cup {n} on a table", "image_paths": [f"{n}-ref.png"], "image_tgt_path": f"{n}-target.png"})
        (folder / "train.json").write_text(json.dumps(records))
        return self.pairs("uno-records", "format: uno-train, path: uno/train.json, unitSize: 6", 6, "")

    def mistyped(self):
        """A source that cannot be opened fails its job within seconds, with the path."""
        job_id = self.importing("mistyped", "path: uno-1n")
        began = time.monotonic()
        job = wait(lambda: next((j for j in [self.cluster.job(job_id)] if j["state"].lower().endswith("failed")), None),
                   60, "the job fails")
        assert "uno-1n" in job["reason"], job["reason"]
        return f"after {time.monotonic() - began:.1f} s: {job['reason'][:120]}"

    def all(self):
        for file in WEIGHTS:
            yield file.split(".")[0], lambda file=file: self.weights(file)
        for folder in PEERS:
            yield f"peers/{folder}", lambda folder=folder: self.peer(folder)
        yield "diffusers-folder", self.diffusers_folder
        yield "exif", self.exif
        yield "outputs", self.outputs
        yield "before-work", self.before_work
        for case in TARS:
            yield case, lambda case=case: self.tar(case)
        yield "uno-records", self.uno_records
        yield "mistyped", self.mistyped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/debug", help="folder of the programs")
    parser.add_argument("cases", nargs="*", help="cases to run [default: all]")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files = folder / "files"
        subprocess.run([sys.executable, HERE / "files.py", ROOT / "tests/fixtures", files], check=True)
        (folder / "work").mkdir()
        cases = Cases(folder / "work", files, args.bin.resolve())
        try:
            for name, case in cases.all():
                if not args.cases or name in args.cases:
                    failed += not ran(name, case)
        finally:
            if cases.cluster:
                cases.cluster.close()
    return 1 if failed else 0


sys.exit(main())
