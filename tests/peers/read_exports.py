#!/usr/bin/env python3
"""Lets the real diffusers, and the rules of UNO's and ComfyUI's loaders, read what `lora convert` writes; read_in_uno.py and
read_in_comfyui.py run the code of those two.

    VENV/bin/python tests/peers/read_exports.py target/release/crescendo-workbench

The base and the adapter are those of tests/fixtures/flux_tiny, whose outputs come from the published code. Each format is
written, read by its reader, and the velocity with the adapter compared; the last line says how far off each was.
"""
import inspect
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
MOST = 1e-5
workbench = sys.argv[1]
root = pathlib.Path(__file__).resolve().parents[2]
fixture = load_file(root / "tests/fixtures/flux_tiny.safetensors")
HIDDEN = 96


def part(prefix):
    return {name[len(prefix) :]: value for name, value in fixture.items() if name.startswith(prefix)}


def at_this_width(function):
    """diffusers' own conversion, which has FLUX's width written into it."""
    source, found = re.subn(r"\b3072\b", str(HIDDEN), inspect.getsource(function))
    assert found, f"{function.__name__} has changed: look whether it still needs this"
    scope = dict(vars(single_file_utils))
    exec(source, scope)
    return scope[function.__name__]


def transformer(weights):
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 10, 10),
    ).eval()
    convert = at_this_width(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    model.load_state_dict(convert(dict(weights)))
    return model


def off(model, case, variant):
    """How far the velocity is from the published code's. References are further tokens with ids of their own."""
    given = part(f"in.{case}.")
    references = [given[name] for name in sorted(given) if re.fullmatch(r"ref\d", name)]
    ids = [given["img_ids"], *(given[name] for name in sorted(given) if re.fullmatch(r"ref\d_ids", name))]
    tokens = torch.cat([given["img"], *references], 1)
    with torch.no_grad():
        found = model(
            hidden_states=tokens,
            encoder_hidden_states=given["txt"],
            pooled_projections=given["vec"],
            timestep=given["timesteps"],
            guidance=given["guidance"],
            img_ids=torch.cat(ids, 1)[0],
            txt_ids=given["txt_ids"][0],
        ).sample
    return (found[:, : given["img"].shape[1]] - fixture[f"out.{case}.{variant}"]).abs().max().item()


def worst(model, variant):
    return max(off(model, case, variant) for case in ("refs0", "refs2"))


def exported(folder, form):
    path = folder / f"{form}.safetensors"
    command = [workbench, "lora", "convert", folder / "dit_lora.safetensors", "--to", form, "--dtype", "f32", "--out", path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(path)


def diffusers_reads(tensors):
    """Its loader, given a state dict; published names go through its conversion of XLabs' adapters."""
    model = transformer(part("model."))
    state, alphas = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, network_alphas=alphas, transformer=model)
    return worst(model, "lora")


def comfyui_reads(tensors):
    """Its rule (comfy/lora.py, comfy/weight_adapter/lora.py): keys are `lora_unet_` and the base's name with `_`; the update is
    alpha / rank · up · down, added to the whole matrix."""
    weights = {name: value.clone() for name, value in part("model.").items()}
    names = {f"lora_unet_{name[: -len('.weight')].replace('.', '_')}": name for name in weights if name.endswith(".weight")}
    left = dict(tensors)
    for key in sorted({name.split(".")[0] for name in tensors}):
        down, up, alpha = (left.pop(f"{key}.{end}") for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        weights[names[key]] += alpha.item() / down.shape[0] * up @ down
    assert not left, f"not read: {sorted(left)}"
    return worst(transformer(weights), "lora")


def uno_reads(tensors):
    """Its rule (uno/flux/util.py, `load_flow_model`; modules/layers.py): every key must be one of the adapted network's, strictly, and
    of its shape; the rank is given, there is no alpha."""
    rank = 8
    wanted = {}
    for sort, count, pairs in (
        ("double_blocks", 2, ("qkv_lora1", "proj_lora1", "qkv_lora2", "proj_lora2")),
        ("single_blocks", 3, ("qkv_lora", "proj_lora")),
    ):
        for index in range(count):
            for pair in pairs:
                wide = 5 * HIDDEN if pair == "proj_lora" else HIDDEN
                rows = HIDDEN if pair.startswith("proj") else 3 * HIDDEN
                wanted[f"{sort}.{index}.processor.{pair}.down.weight"] = (rank, wide)
                wanted[f"{sort}.{index}.processor.{pair}.up.weight"] = (rows, rank)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    assert found == wanted, f"differ: {sorted(set(found.items()) ^ set(wanted.items()))}"
    return max((tensors[name] - value).abs().max().item() for name, value in part("lora.").items())


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    save_file(part("lora."), folder / "dit_lora.safetensors")
    files = {form: exported(folder, form) for form in ("published", "comfyui", "diffusers")}
    # What is exported is read back, whatever its names, and is the same again.
    again = folder / "again"
    again.mkdir()
    for form in ("comfyui", "diffusers"):
        (folder / f"{form}.safetensors").rename(again / "dit_lora.safetensors")
        for name, value in exported(again, "published").items():
            assert torch.equal(value, fixture[f"lora.{name}"]), f"{form}: {name} is not what it was"
results = {
    "base in diffusers": worst(transformer(part("model.")), "base"),
    "published in diffusers": diffusers_reads(files["published"]),
    "diffusers in diffusers": diffusers_reads(files["diffusers"]),
    "comfyui by ComfyUI's rule": comfyui_reads(files["comfyui"]),
    "published by UNO's rule": uno_reads(files["published"]),
}
for what, value in results.items():
    print(f"{what:<28} off by {value:.1e}")
failed = [what for what, value in results.items() if not value <= MOST]
sys.exit(f"more than {MOST}: {', '.join(failed)}" if failed else 0)
