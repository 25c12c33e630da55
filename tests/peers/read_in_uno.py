#!/usr/bin/env python3
"""Lets the published UNO code itself load what `lora convert` writes, and draw one velocity with it.

    VENV/bin/python tests/peers/read_in_uno.py UNO target/debug/crescendo-workbench

UNO is a checkout of https://github.com/bytedance/UNO; it was tried at d305981. The base and the adapter are those of
tests/fixtures/flux_tiny. `load_flow_model_only_lora` runs unchanged: only its table of networks gets one of the fixture's size, and
the one width of FLUX that its adapters have written into them becomes that of this network.
"""
import contextlib
import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

MOST = 1e-5
checkout, workbench = sys.argv[1:]
sys.path.insert(0, checkout)
from uno.flux import util  # noqa: E402
from uno.flux.modules import layers  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[2]
fixture = load_file(root / "tests/fixtures/flux_tiny.safetensors")
RANK, HIDDEN = 8, 96


def at_this_width(adapter):
    source, found = re.subn(r"\b15360\b", str(5 * HIDDEN), inspect.getsource(adapter))
    assert found, f"{adapter.__name__} has changed: look whether it still needs this"
    scope = dict(vars(layers))
    exec(source, scope)
    return scope[adapter.__name__]


util.SingleStreamBlockLoraProcessor = at_this_width(layers.SingleStreamBlockLoraProcessor)


def part(prefix):
    return {name[len(prefix) :]: value for name, value in fixture.items() if name.startswith(prefix)}


def loaded(base, lora):
    """The network as UNO's own loader makes it of the two files; it only prints what is missing or unknown."""
    params = util.FluxParams(
        in_channels=64,
        vec_in_dim=32,
        context_in_dim=48,
        hidden_size=HIDDEN,
        mlp_ratio=4.0,
        num_heads=4,
        depth=2,
        depth_single_blocks=3,
        axes_dim=[4, 10, 10],
        theta=10_000,
        qkv_bias=True,
        guidance_embed=True,
    )
    published = util.configs["flux-dev"]
    util.configs["tiny"] = util.ModelSpec(**{**vars(published), "params": params, "ckpt_path": str(base)})
    os.environ["LORA"] = str(lora)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        model = util.load_flow_model_only_lora("tiny", device="cpu", hf_download=False, lora_rank=RANK)
    assert "missing" not in said.getvalue() and "unexpected" not in said.getvalue(), said.getvalue()
    return model.eval()


def off(model, case):
    """How far the velocity is from the one of the fixture."""
    given = part(f"in.{case}.")
    references = [given[name] for name in sorted(given) if re.fullmatch(r"ref\d", name)]
    ids = [given[name] for name in sorted(given) if re.fullmatch(r"ref\d_ids", name)]
    with torch.no_grad():
        found = model(
            img=given["img"],
            img_ids=given["img_ids"],
            txt=given["txt"],
            txt_ids=given["txt_ids"],
            timesteps=given["timesteps"],
            y=given["vec"],
            guidance=given["guidance"],
            ref_img=references or None,
            ref_img_ids=ids or None,
        )
    return (found - fixture[f"out.{case}.lora"]).abs().max().item()


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    base, kept, written = (folder / name for name in ("base.safetensors", "dit_lora.safetensors", "written.safetensors"))
    save_file(part("model."), base)
    save_file(part("lora."), kept)
    command = [workbench, "lora", "convert", kept, "--to", "published", "--dtype", "f32", "--out", written]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model = loaded(base, written)
    results = {case: off(model, case) for case in ("refs0", "refs2")}
for case, value in results.items():
    print(f"published in UNO, {case:<6} off by {value:.1e}")
failed = [case for case, value in results.items() if not value <= MOST]
sys.exit(f"more than {MOST}: {', '.join(failed)}" if failed else 0)
