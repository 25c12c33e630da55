#!/usr/bin/env python3
"""Lets ComfyUI's own code load what `lora convert` writes for it, and draw one velocity with it.

    VENV/bin/python tests/peers/read_in_comfyui.py COMFYUI target/debug/crescendo-workbench

COMFYUI is a checkout of https://github.com/comfyanonymous/ComfyUI with its requirements installed; it was tried at a125cd8. The base
and the adapter are those of tests/fixtures/flux_tiny. The network is ComfyUI's, of the fixture's size; keys are found, converted and
added to its weights by its own loader and patcher, and each key must be taken.
"""
import logging
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
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[2]
fixture = load_file(root / "tests/fixtures/flux_tiny.safetensors")


def part(prefix):
    return {name[len(prefix) :]: value for name, value in fixture.items() if name.startswith(prefix)}


def network():
    """ComfyUI's FLUX, of the fixture's size, with the fixture's base."""
    sizes = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 32,
        "context_in_dim": 48,
        "hidden_size": 96,
        "mlp_ratio": 4.0,
        "num_heads": 4,
        "depth": 2,
        "depth_single_blocks": 3,
        "axes_dim": [4, 10, 10],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
        "dtype": torch.float32,
    }
    model = comfy.model_base.Flux(comfy.supported_models.Flux(sizes), device=torch.device("cpu"))
    model.diffusion_model.load_state_dict(part("model."), strict=True)
    return model.eval()


class Complaints(logging.Handler):
    """What its loader warns of: a key that it does not know is a warning and no error there."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def with_adapter(lora):
    model, complaints = network(), Complaints()
    logging.getLogger().addHandler(complaints)
    keys = comfy.lora.model_lora_keys_unet(model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(lora)), keys)
    logging.getLogger().removeHandler(complaints)
    assert patches and not complaints.lines, complaints.lines
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    taken = patcher.add_patches(patches)
    assert len(taken) == len(patches), f"not taken: {sorted(map(str, set(patches) - set(taken)))}"
    return patcher.patch_model().eval()


def off(model, case, variant):
    """How far the velocity is from the one of the fixture. References are further tokens with ids of their own."""
    given = part(f"in.{case}.")
    names = sorted(name for name in given if re.fullmatch(r"ref\d", name))
    with torch.no_grad():
        found = model.diffusion_model.forward_orig(
            img=torch.cat([given["img"], *(given[name] for name in names)], 1),
            img_ids=torch.cat([given["img_ids"], *(given[f"{name}_ids"] for name in names)], 1),
            txt=given["txt"],
            txt_ids=given["txt_ids"],
            timesteps=given["timesteps"],
            y=given["vec"],
            guidance=given["guidance"],
        )
    return (found[:, : given["img"].shape[1]] - fixture[f"out.{case}.{variant}"]).abs().max().item()


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    kept, written = folder / "dit_lora.safetensors", folder / "written.safetensors"
    save_file(part("lora."), kept)
    command = [workbench, "lora", "convert", kept, "--to", "comfyui", "--dtype", "f32", "--out", written]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    models = {"base": network(), "lora": with_adapter(written)}
    results = {f"{name}, {case}": off(model, case, name) for name, model in models.items() for case in ("refs0", "refs2")}
for what, value in results.items():
    print(f"comfyui in ComfyUI, {what:<11} off by {value:.1e}")
failed = [what for what, value in results.items() if not value <= MOST]
sys.exit(f"more than {MOST}: {', '.join(failed)}" if failed else 0)
