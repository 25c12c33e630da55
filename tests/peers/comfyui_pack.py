"""Nodes for ComfyUI that stand in for its loaders, its encoders and its noise with what a fixture of this repository has.

workflow_in_comfyui.py puts this file into a server's `custom_nodes`; CRESCENDO_FIXTURE names the fixture there, without its
ending, and CRESCENDO_DRAWN the file that the latent goes to. `network` is for that script too.
"""

import json
import os
import pathlib

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from safetensors.torch import load_file, save_file

PUBLISHED = ("vec_in_dim", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads", "depth", "depth_single_blocks", "axes_dim",
             "theta", "qkv_bias", "guidance_embed")  # fmt: skip


def network(sizes, device="cpu"):
    """ComfyUI's FLUX of the sizes that a fixture names."""
    channels = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "dtype": torch.float32}
    told = channels | {name: sizes[name] for name in PUBLISHED}
    return comfy.model_base.Flux(comfy.supported_models.Flux(told), device=torch.device(device))


def fixture():
    at = pathlib.Path(os.environ["CRESCENDO_FIXTURE"])
    return json.loads(at.with_suffix(".json").read_text()), load_file(at.with_suffix(".safetensors"))


class Transformer:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "made", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def made(self):
        told, tensors = fixture()
        model = network(told["config"])
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        model.diffusion_model.load_state_dict(weights, strict=True)
        comfy.sample.prepare_noise = lambda *_: tensors["in.noise"]
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, cpu, cpu),)


class Words:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "made", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def made(self):
        tensors = fixture()[1]
        return ([[tensors["in.txt"], {"pooled_output": tensors["in.vec"]}]],)


class Latent:
    """As its autoencoder would give it, before the transformer's scale and shift."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "made", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"number": ("INT", {"default": 0})}}

    def made(self, number):
        return ({"samples": comfy.supported_models.Flux.latent_format().process_out(fixture()[1][f"in.ref{number}"])},)


class Keep:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "kept", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def kept(self, samples):
        drawn = comfy.supported_models.Flux.latent_format().process_in(samples["samples"])
        save_file({"drawn": drawn.contiguous()}, os.environ["CRESCENDO_DRAWN"])
        return {}


NODE_CLASS_MAPPINGS = {f"Crescendo{kind.__name__}": kind for kind in (Transformer, Words, Latent, Keep)}
