"""A cluster of real processes in a folder, for the scripts beside this one. Standard library only."""
import json, os, pathlib, re, signal, socket, struct, subprocess, time, zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(done, seconds, what):
    """What `done` returns once that is true; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = done()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {what}")


def ran(name, case):
    """Runs a case, prints how it went, and says whether it was as it should be."""
    began = time.monotonic()
    try:
        told = f"ok    {case()}"
    except AssertionError as error:
        told = f"WRONG {error}"
    print(f"{name:32} {time.monotonic() - began:5.1f} s  {told}", flush=True)
    return told.startswith("ok")


def png(side, colour):
    row = b"\0" + bytes(colour) * side
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")


class Cluster:
    """`crescendo up` in `folder`, with 40 subjects and the base of the nano preset below it."""

    def __init__(self, folder, binaries):
        self.folder, self.crescendo = folder, binaries / "crescendo"
        # Not a cluster that somebody else runs on this machine.
        os.environ["CRESCENDO_DIR"] = str(folder / ".crescendo")
        (folder / "subjects").mkdir()
        for n in range(40):
            picture = png(64, (n * 6, 255 - n * 5, n * 11 % 256))
            (folder / "subjects" / f"thing_{chr(97 + n // 26)}{chr(97 + n % 26)}.png").write_bytes(picture)
        os.symlink(ROOT / "assets/nano/base.safetensors", folder / "base.safetensors")
        log = open(folder / "up.log", "wb")
        args = [self.crescendo, "up", "--device", "cpu", "--curators", "1", "--trainers", "1"]
        self.up = subprocess.Popen(args, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait(lambda: "controller at " in (folder / "up.log").read_text(), 120, "the cluster serves")

    def run(self, *args):
        done = subprocess.run([self.crescendo, *args], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode not in (0, 4):
            raise AssertionError(f"crescendo {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, name, spec):
        (self.folder / f"{name}.yaml").write_text(spec)
        return self.run("submit", f"{name}.yaml").split()[0]

    def job(self, job_id):
        return json.loads(self.run("get", job_id, "-o", "json"))

    def cancel(self, job_id):
        subprocess.run([self.crescendo, "cancel", job_id], cwd=self.folder, capture_output=True)

    def close(self):
        self.up.send_signal(signal.SIGINT)
        self.up.wait(120)
