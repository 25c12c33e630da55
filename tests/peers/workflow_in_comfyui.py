#!/usr/bin/env python3
"""Has ComfyUI take the workflows of `crescendo-workflow`, and draw with one.

    VENV/bin/python tests/peers/workflow_in_comfyui.py COMFYUI target/debug/crescendo-workbench

COMFYUI is a checkout of ComfyUI as in read_in_comfyui.py, at a125cd8 (0.3.64). Here are held

- the names of a LoRA of FLUX's size, published and `--to comfyui`, to ComfyUI's own map of keys: every one is taken;
- the positions of one to four references, as ComfyUI's network counts them, to those of the published code;
- the workflows, for none to four references, to what a running server accepts and to the nodes that it describes;
- a drawing by the workflow's own nodes on that server (a small network, latents in place of pictures) to the published code's
  after four steps with two references: their order, positions, times and guidance,
- the files for its editor, in Chromium, to the files for its server.

With `--record FILE` it only writes down how the server describes the nodes: tests/python/comfyui_nodes.json.
"""

import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST = 5e-5
DEADLINE_SECONDS = 180
checkout, workbench = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
record = sys.argv[4] if sys.argv[3:4] == ["--record"] else None
sys.argv = sys.argv[:1]
sys.path[:0] = [str(checkout), str(ROOT / "python"), str(ROOT / "tests/python")]
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfyui_graphs  # noqa: E402
from comfyui_pack import network  # noqa: E402

FLUX = {
    "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
DENOISE = ROOT / "tests/fixtures/denoise"


def published_lora():
    """An adapter of FLUX's size and of rank 1, under the published names."""
    width, sites = FLUX["hidden_size"], {}
    for block in range(FLUX["depth"]):
        for stream in "12":
            sites[f"double_blocks.{block}.processor.qkv_lora{stream}"] = (width, 3 * width)
            sites[f"double_blocks.{block}.processor.proj_lora{stream}"] = (width, width)
    for block in range(FLUX["depth_single_blocks"]):
        sites[f"single_blocks.{block}.processor.qkv_lora"] = (width, 3 * width)
        sites[f"single_blocks.{block}.processor.proj_lora"] = (5 * width, width)
    tensors = {}
    for name, (inputs, outputs) in sites.items():
        tensors[f"{name}.down.weight"] = torch.ones(1, inputs)
        tensors[f"{name}.up.weight"] = torch.ones(outputs, 1)
    return tensors


class Complaints(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_names(folder):
    model = network(FLUX, "meta")
    keys = comfy.lora.model_lora_keys_unet(model, {})
    known = model.state_dict()
    kept, written = folder / "dit_lora.safetensors", folder / "written.safetensors"
    save_file(published_lora(), kept)
    convert = [workbench, "lora", "convert", kept, "--to", "comfyui", "--out", written]
    subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    for form, path in {"published": kept, "comfyui": written}.items():
        complaints = Complaints()
        logging.getLogger().addHandler(complaints)
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(path)), keys)
        logging.getLogger().removeHandler(complaints)
        assert not complaints.lines, complaints.lines[:3]
        weights = {key if isinstance(key, str) else key[0] for key in patches}
        assert weights <= set(known), sorted(weights - set(known))[:3]
        assert len(patches) == 4 * FLUX["depth"] + 2 * FLUX["depth_single_blocks"], len(patches)
        print(f"names of a LoRA of FLUX.1, {form}: {len(patches)} updates, all of them taken")


def check_positions():
    """Of the published code's mode `d`, as ComfyUI's `uxo` counts them; and frames, which its `index` counts."""
    told = json.loads((ROOT / "tests/fixtures/unope_ids.json").read_text())["cases"]
    ids = load_file(ROOT / "tests/fixtures/unope_ids.safetensors")
    model = network(json.loads(DENOISE.with_suffix(".json").read_text())["config"]).diffusion_model
    seen = {}

    def look(img, img_ids, txt, txt_ids, *_, **__):
        seen.update(img_ids=img_ids, txt_ids=txt_ids)
        return torch.zeros_like(img)

    model.forward_orig = look
    for name, case in told.items():
        batch, sizes = case["batch"], case["ref_latent_sizes"]
        latent = torch.zeros(batch, 16, *case["latent_size"])
        references = [torch.zeros(batch, 16, *size) for size in sizes]
        text = torch.zeros(batch, case["text_len"], model.params.context_in_dim)
        for method in ("uxo", "index"):
            model(latent, torch.ones(batch), text, ref_latents=references or None, ref_latents_method=method)
            target = ids[f"out.{name}.d.img_ids"]
            if method == "uxo":
                wanted = [target, *(ids[f"out.{name}.d.ref{number}_ids"] for number in range(len(sizes)))]
            else:
                at = lambda frame, rows, columns: torch.cartesian_prod(
                    torch.tensor([float(frame)]), torch.arange(rows).float(), torch.arange(columns).float()
                )
                of_frames = [at(number, h // 2, w // 2) for number, (h, w) in enumerate(sizes, start=1)]
                wanted = [target, *(one.expand(batch, -1, -1) for one in of_frames)]
            assert torch.equal(seen["img_ids"], torch.cat(wanted, 1)), f"{method}, case {name}"
            assert torch.equal(seen["txt_ids"], ids[f"out.{name}.d.txt_ids"])
        print(f"positions, {len(sizes)} references: equal")


class Server:
    """ComfyUI's own, on loopback, with a folder of its own."""

    def __init__(self, folder):
        base = folder / "base"
        for kind, names in comfyui_graphs.FILES.items():
            (base / "models" / kind).mkdir(parents=True)
            for name in names:
                (base / "models" / kind / name).touch()
        (base / "input").mkdir()
        from PIL import Image  # noqa: PLC0415

        for number in range(1, 5):
            Image.new("RGB", (48 + 16 * number, 64)).save(base / "input" / f"reference-{number}.png")
        (base / "custom_nodes").mkdir()
        shutil.copy(pathlib.Path(__file__).with_name("comfyui_pack.py"), base / "custom_nodes")
        for name in ("user", "output", "temp"):
            (base / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.base, self.drawn = f"http://127.0.0.1:{port}", base, folder / "drawn.safetensors"
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", base]
        command += ["--database-url", f"sqlite:///{base}/user/comfyui.db", "--disable-auto-launch", "--disable-api-nodes"]
        environment = {**os.environ, "CRESCENDO_FIXTURE": str(DENOISE), "CRESCENDO_DRAWN": str(self.drawn)}
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self):
        self.eventually("the server", lambda: self.ask("/object_info"))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.log.close()

    def eventually(self, what, check):
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            try:
                if found := check():
                    return found
            except urllib.error.HTTPError:
                raise
            except OSError:
                pass
            assert self.process.poll() is None, pathlib.Path(self.log.name).read_text()[-3000:]
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {DEADLINE_SECONDS} s\n" + pathlib.Path(self.log.name).read_text()[-3000:])

    def ask(self, path, content=None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def refusal(self, graph):
        try:
            self.ask("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            assert error.code == 400, error
            return json.load(error)["node_errors"]
        return None

    def run(self, graph):
        told = self.ask("/prompt", {"prompt": graph})
        assert not told["node_errors"], told
        number = told["prompt_id"]
        ended = self.eventually("a drawing", lambda: self.ask(f"/history/{number}").get(number))
        assert ended["status"]["status_str"] == "success", ended["status"]["messages"]


def check_workflows(server):
    nodes = server.ask("/object_info")
    for case, told in comfyui_graphs.cases().items():
        comfyui_graphs.check(told, nodes)
        assert server.refusal(comfyui_graphs.prompt(told)) is None, server.refusal(comfyui_graphs.prompt(told))
        print(f"workflow, {case}: accepted")
    # Of these the server says nothing for the method of positions: a name that it does not know draws with other ones.
    other = comfyui_graphs.prompt(comfyui_graphs.cases()["flux-dev, 1 references"])
    [sampler] = [node for node in other.values() if node["class_type"] == "KSampler"]
    sampler["inputs"]["sampler_name"] = "none"
    assert server.refusal(other), "a sampler that does not exist is accepted"


def check_editor(server, folder):
    """Where there is a browser: the editor opens the file for it, and would send what the other file has."""
    browser, web = os.environ.get("CHROMIUM") or shutil.which("chromium"), ROOT / "web/node_modules/playwright-core"
    if browser is None or not web.exists():
        print("not tried: the editor, for want of Chromium (CHROMIUM=PATH) or of the web page's packages (make web)")
        return
    cases = [
        {"name": name, "editor": comfyui_graphs.editor(told), "prompt": comfyui_graphs.prompt(told)}
        for name, told in comfyui_graphs.cases().items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    opener = pathlib.Path(__file__).with_name("open_in_comfyui.mjs")
    command = ["node", opener, server.url, folder / "cases.json"]
    subprocess.run(command, check=True, env={**os.environ, "CHROMIUM": browser}, timeout=2 * DEADLINE_SECONDS)


def check_drawing(server, folder):
    told = json.loads(DENOISE.with_suffix(".json").read_text())["sampling"]
    tensors = load_file(DENOISE.with_suffix(".safetensors"))
    lora = {name.removeprefix("lora."): value for name, value in tensors.items() if name.startswith("lora.")}
    save_file(lora, folder / "small.safetensors")
    out = server.base / "models/loras/small.safetensors"
    convert = [workbench, "lora", "convert", folder / "small.safetensors", "--to", "comfyui", "--dtype", "f32", "--out", out]
    subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for method in ("uxo/uno", "index"):
        server.drawn.unlink(missing_ok=True)
        server.run(comfyui_graphs.small(told, "small.safetensors", method))
        found[method] = (load_file(server.drawn)["drawn"] - tensors["out.lora.final"]).abs().max().item()
    print(f"a drawing of {told['num_steps']} steps with {told['n_refs']} references is off by {found['uxo/uno']:.1e},"
          f" with other positions by {found['index']:.1e}")  # fmt: skip
    assert found["uxo/uno"] <= MOST < found["index"]


with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    if record:
        with Server(folder) as server:
            pathlib.Path(record).write_text(comfyui_graphs.recorded(server.ask("/object_info")))
        sys.exit()
    check_names(folder)
    check_positions()
    with Server(folder) as server:
        check_workflows(server)
        check_drawing(server, folder)
        check_editor(server, folder)
