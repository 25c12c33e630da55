"""The commands of the pages that a newcomer follows, as they stand there, one after the other in one shell, on a real cluster.

What differs from a reader's machine: the specs of `examples/` are cut down to a few pairs and steps, the demo's pictures are
made up, and `make` is only asked whether it has the targets.
"""

import os
import pathlib
import re
import signal
import struct
import subprocess
import time
import zlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", "docs/first-job.md", "docs/own-pictures.md", "docs/drawn-pairs.md"]
UP_SECONDS = 60
PAGE_SECONDS = 240
SUBJECTS = 20

BINARIES = os.environ.get("CRESCENDO_BIN")
pytestmark = pytest.mark.skipif(not BINARIES, reason="CRESCENDO_BIN does not name a folder of built binaries")


def blocks(page):
    """The shell blocks of a page, without what a reader is only shown."""
    return re.findall(r"^ *```sh\n(.*?)^ *```", (ROOT / page).read_text(), re.M | re.S)


def small(spec):
    """A spec with the same fields, of a few pairs and steps."""
    most = {"pairs": 32, "minPairs": 16, "unitSize": 16, "globalBatch": 4, "warmupSteps": 1, "every": 2, "rank": 8, "holdOutOneIn": 5}

    def cut(match):
        return f"{match[1]}{min(int(match[2]), most[match[1].strip(' :')])}"

    spec = re.sub(rf"\b((?:{'|'.join(most)}): *)(\d+)", cut, spec)
    spec = re.sub(r"(\bdraw: *\{[^}]*steps: *)\d+", r"\g<1>2", spec)
    spec = re.sub(r"^( *steps: *)\d+", r"\g<1>4", spec, flags=re.M)
    # Shapes in plain colours are no photographs: what the filter thinks of them is not the page's matter.
    return re.sub(r"(\b(?:min): *)0?\.\d+", r"\g<1>-1.0", spec)


def png(width, height, pixel):
    """RGBA of `pixel(x, y)`."""
    rows = b"".join(b"\0" + b"".join(bytes(pixel(x, y)) for x in range(width)) for y in range(height))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def cut_out(number):
    """A coloured shape on nothing, another one for each number."""
    colour = [(number * 53) % 200 + 40, (number * 97) % 200 + 40, (number * 151) % 200 + 40]
    sides = 2 + number % 4

    def pixel(x, y):
        dx, dy = abs(x - 32) / 26, abs(y - 32) / 26
        return [*colour, 255 if dx**sides + dy**sides < 1 else 0]

    return png(64, 64, pixel)


def photograph(number):
    return png(96, 96, lambda x, y: [(x * 2 + number * 40) % 256, (y * 2) % 256, (x + y + number * 20) % 256, 255])


@pytest.fixture
def checkout(tmp_path):
    """A folder as a checkout looks after `make build demo-data`."""
    tree = tmp_path / "crescendo"
    (tree / "target").mkdir(parents=True)
    (tree / "target/release").symlink_to(pathlib.Path(BINARIES).resolve())
    (tree / "assets").symlink_to(ROOT / "assets")
    (tree / "examples").mkdir()
    for spec in (ROOT / "examples").glob("*.yaml"):
        (tree / "examples" / spec.name).write_text(small(spec.read_text()))
    for folder, make, count in [("my-pictures", cut_out, SUBJECTS), ("pictures/photos", photograph, 4)]:
        (tree / folder).mkdir(parents=True)
        for number in range(count):
            (tree / folder / f"{words(number)}.png").write_bytes(make(number))
    crescendo = pathlib.Path(BINARIES).resolve() / "crescendo"
    for name, pictures in [("subjects", "my-pictures"), ("photos", "pictures/photos")]:
        made = subprocess.run(
            [crescendo, "library", "make", pictures, "--out", f".deps/demo/{name}"], cwd=tree, text=True, capture_output=True, check=False
        )
        assert made.returncode == 0, made.stderr
    return tree


def words(number):
    colours, shapes = ["red", "blue", "green", "yellow", "white"], ["lamp", "boot", "kite", "drum"]
    return f"{colours[number % 5]}_{shapes[number // 5]}"


class Up:
    """`crescendo up`, as the page has it, until the page is done."""

    def __init__(self, command, tree, environment):
        self.log = open(tree / "up.log", "w+")
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=tree, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + UP_SECONDS
        while subprocess.run(["crescendo", "nodes"], cwd=tree, env=environment, capture_output=True, check=False).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, (tree / "up.log").read_text()
            time.sleep(0.2)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(UP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.log.close()



def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_they_stand(page, checkout):
    found = blocks(page)
    assert found, f"{page} has no commands"
    script, up = [], None
    environment = {**os.environ, "PATH": f"{checkout / 'target/release'}:{os.environ['PATH']}", "HOME": str(checkout)}
    try:
        for block in found:
            for line in block.splitlines():
                command = line.split("  #")[0].strip()
                if command.startswith("make "):
                    assert set(command.split()[1:]) <= targets(), f"{page}: {line}"
                elif re.fullmatch(r"crescendo up( .*)?", command):
                    assert up is None, f"{page} starts a cluster twice"
                    up = Up(command, checkout, environment)
                else:
                    script.append(line)
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
            cwd=checkout,
            env=environment,
            text=True,
            capture_output=True,
            timeout=PAGE_SECONDS,
            check=False,
        )
        told = f"{page}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        assert ran.returncode == 0, told
    finally:
        if up:
            up.stop()
