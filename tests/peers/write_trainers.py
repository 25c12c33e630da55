#!/usr/bin/env python3
"""Writes adapters as kohya's and XLabs' trainers save them, with what their networks give, into tests/peers/files.

    git clone https://github.com/kohya-ss/sd-scripts KOHYA && git -C KOHYA checkout 48d368fa557731ad0488c07304dfeba8c07910eb
    git clone https://github.com/XLabs-AI/x-flux XLABS && git -C XLABS checkout 47495425dbed499be1e8e5a6e52628b07349cba2
    uv venv VENV && uv pip install --python VENV/bin/python -r tests/peers/requirements-trainers.txt
    VENV/bin/python tests/peers/write_trainers.py KOHYA XLABS

Neither is a package, so both are given as checkouts. The base is a small network of kohya's own FLUX code; XLabs' has to give the
same with it. The files are committed; `naming::peers` in crates/model reads them.
"""
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

kohya, xlabs = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
sys.path += [str(kohya), str(xlabs / "src")]

from flux import model as xlabs_model
from flux.modules import layers as xlabs_layers
from library import flux_models
from networks import lora_flux

out = pathlib.Path(__file__).parent / "files"
SIZES = dict(
    in_channels=4,
    vec_in_dim=10,
    context_in_dim=12,
    hidden_size=16,
    mlp_ratio=4.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    axes_dim=[2, 2, 4],
    theta=10_000,
    qkv_bias=True,
    guidance_embed=True,
)
MLP_INPUTS = 5 * SIZES["hidden_size"]


def fresh(case):
    folder = out / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def drawn(parameters, seed, spread):
    """Values that are all different, and that bf16 holds: files of trainers are mostly of that kind."""
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.copy_((torch.randn(parameter.shape) * spread).bfloat16().float())


def inputs():
    torch.manual_seed(12)
    ids = torch.tensor([[0, row, column] for row in range(2) for column in range(3)])
    return {
        "img": torch.randn(1, 6, 4),
        "img_ids": ids.float()[None],
        "txt": torch.randn(1, 3, 12),
        "txt_ids": torch.zeros(1, 3, 3),
        "timesteps": torch.tensor([0.6]),
        "y": torch.randn(1, 10),
        "guidance": torch.tensor([3.5]),
    }


def kohya_base():
    model = flux_models.Flux(flux_models.FluxParams(**SIZES)).eval().float()
    drawn(model.parameters(), 11, 0.2)
    return model


def xlabs_base():
    model = xlabs_model.Flux(xlabs_model.FluxParams(**SIZES)).eval().float()
    model.load_state_dict(kohya_base().state_dict())
    return model


def write_base():
    folder, model = fresh("flux-published"), kohya_base()
    save_file({name: value.bfloat16() for name, value in model.state_dict().items()}, folder / "flux1-dev.safetensors")
    expected = model(**inputs())
    save_file({**inputs(), "out": expected}, folder / "expected.safetensors")
    assert (xlabs_base()(**inputs()) - expected).abs().max() < 1e-5, "XLabs' network differs from kohya's"


def write_kohya(case, **kept):
    """Its trainer's way: a network beside the model, adopted by `apply_to`, saved in half precision."""
    folder, model = fresh(case), kohya_base()
    network = lora_flux.create_network(1.0, 3, 1.5, None, [], model, **kept)
    network.apply_to([], model, apply_text_encoder=False, apply_unet=True)
    drawn(network.parameters(), 13, 0.3)
    network.save_weights(str(folder / "kohya.safetensors"), torch.bfloat16, {"ss_network_module": "networks.lora_flux"})
    save_file({"out": model(**inputs())}, folder / "expected.safetensors")


def write_xlabs(case, single):
    """As train_flux_lora_deepspeed.py does, whose choice of blocks is `--double_blocks` and `--single_blocks`."""
    folder, model = fresh(case), xlabs_base()
    processors, width = dict(model.attn_processors), SIZES["hidden_size"]
    for name in processors:
        if name.startswith("double_blocks"):
            processors[name] = xlabs_layers.DoubleStreamBlockLoraProcessor(dim=width, rank=3)
        elif name.startswith("single_blocks.1.") and single:
            processors[name] = xlabs_layers.SingleStreamBlockLoraProcessor(dim=width, rank=3)
            # FLUX's own width is written into the class.
            processors[name].proj_lora = xlabs_layers.LoRALinearLayer(MLP_INPUTS, width, 3)
    model.set_attn_processor(processors)
    trained = {name: value for name, value in model.state_dict().items() if "_lora" in name}
    drawn(trained.values(), 14, 0.3)
    save_file(trained, folder / "lora.safetensors")
    save_file({"out": model(**inputs())}, folder / "expected.safetensors")


with torch.no_grad():
    write_base()
    others = dict.fromkeys(("img_mlp_dim", "txt_mlp_dim", "img_mod_dim", "txt_mod_dim", "single_dim", "single_mod_dim"), "0")
    write_kohya("lora-kohya", img_attn_dim="3", txt_attn_dim="2", **others)
    write_kohya("lora-kohya-all")
    write_xlabs("lora-xlabs", single=True)
    write_xlabs("lora-xlabs-double", single=False)
