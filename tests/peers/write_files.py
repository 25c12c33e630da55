#!/usr/bin/env python3
"""Writes small weight files as the real libraries save them, with what the networks give, into tests/peers/files.

    uv venv VENV && uv pip install --python VENV/bin/python -r tests/peers/requirements.txt
    VENV/bin/python tests/peers/write_files.py

The files are committed; `naming::peers` in crates/model reads them. Run it again, and look at what changed, when a version in
requirements.txt is raised: names that a library changed show as a test that fails.
"""
import pathlib
import shutil
import warnings

import diffusers
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
out = pathlib.Path(__file__).parent / "files"


def fresh(case):
    folder = out / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def randomised(model, seed, spread=0.2):
    """Weights that are all different from each other: a fresh network's zeros and ones would hide a wrong place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread)
    return model.eval()


def expect(folder, **tensors):
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


def strip(folder, *names):
    """Takes away what the tests do not read, and the version of the day."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def flux():
    """As diffusers saves FLUX: in shards, queries, keys and values apart, the last norm's halves the other way round."""
    return randomised(
        diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        1,
    )


def flux_inputs():
    torch.manual_seed(2)
    ids = torch.tensor([[0, row, column] for row in range(2) for column in range(3)])
    return {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 3, 12),
        "pooled_projections": torch.randn(1, 10),
        "timestep": torch.tensor([0.6]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids.float(),
        "txt_ids": torch.zeros(3, 3),
    }


def write_flux():
    folder, model, inputs = fresh("flux-diffusers"), flux(), flux_inputs()
    model.save_pretrained(folder / "transformer", max_shard_size="64KB")
    expect(folder, **inputs, out=model(**inputs).sample)


def adapted(alpha, wrapped):
    """All sites of a UNO adapter, as PEFT adds them to diffusers' network, around it or within."""
    blocks = r"(single_)?transformer_blocks\.\d+\."
    config = LoraConfig(
        r=2,
        lora_alpha=alpha,
        target_modules=rf"{blocks}attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        rf"|single_transformer_blocks\.\d+\.proj_out",
    )
    model = flux()
    if wrapped:
        model = get_peft_model(model, config)
    else:
        model.add_adapter(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return model.eval(), config


def write_adapters():
    inputs = flux_inputs()
    model, _ = adapted(6, wrapped=True)
    folder = fresh("lora-peft")
    model.save_pretrained(folder)
    strip(folder, "README.md")
    expect(folder, out=model(**inputs).sample)

    # diffusers' own way: without a description its alpha is the rank, with one it is in the header.
    for case, alpha in (("lora-diffusers", 2), ("lora-diffusers-alpha", 6)):
        model, config = adapted(alpha, wrapped=False)
        folder = fresh(case)
        diffusers.FluxPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(model),
            transformer_lora_adapter_metadata=config.to_dict() if alpha != 2 else None,
        )
        expect(folder, out=model(**inputs).sample)


def write_autoencoder():
    """In one-byte floats of few values, which take little room in the repository."""
    model = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            steps = torch.randint(-1, 2, parameter.shape)
            parameter.copy_(1 + steps / 4 if "norm" in name and name.endswith("weight") else steps / 16)
    folder = fresh("vae-diffusers")
    pixels, latents = torch.rand(1, 3, 16, 8) * 2 - 1, torch.randn(1, 2, 4, 6)
    expected = {"pixels": pixels, "moments": model.encode(pixels).latent_dist.parameters}
    expected |= {"latents": latents, "decoded": model.decode(latents).sample}
    expect(folder, **expected)
    model.to(torch.float8_e4m3fn).save_pretrained(folder / "vae")


def write_clip():
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    config = transformers.CLIPTextConfig(
        vocab_size=20, max_position_embeddings=8, bos_token_id=18, eos_token_id=19, **sizes
    )
    model, folder = randomised(transformers.CLIPTextModel(config), 5), fresh("clip-text")
    ids = torch.tensor([[18, 3, 7, 19, 19], [18, 1, 19, 19, 19]])
    found = model(ids)
    expect(folder, ids=ids, last_hidden_state=found.last_hidden_state, pooled=found.pooler_output)
    model.save_pretrained(folder)

    vision = dict(image_size=8, patch_size=4, **sizes)
    text = dict(vocab_size=20, max_position_embeddings=8, bos_token_id=18, eos_token_id=19, **sizes)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    model, folder = randomised(transformers.CLIPModel(config), 6), fresh("clip-both")
    pixels = torch.randn(2, 3, 8, 8)
    found = model(input_ids=ids, pixel_values=pixels)
    expect(folder, ids=ids, pixels=pixels, text_embeds=found.text_embeds, image_embeds=found.image_embeds)
    model.save_pretrained(folder)
    model.vision_model.save_pretrained(fresh("clip-vision"))


def write_vision():
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(7)
    pixels = torch.randn(2, 3, 28, 42)
    config = transformers.ViTConfig(
        image_size=(28, 28), patch_size=14, intermediate_size=64, layer_norm_eps=1e-6, **sizes
    )
    config.image_size = 28
    model, folder = randomised(transformers.ViTModel(config), 8), fresh("dino-transformers")
    square = pixels[..., :28].contiguous()
    expect(folder, pixels=square, last_hidden_state=model(square).last_hidden_state)
    model.save_pretrained(folder)

    sizes |= dict(image_size=56, patch_size=14, mlp_ratio=4)
    cases = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
        "dinov2-swiglu": transformers.Dinov2Model(transformers.Dinov2Config(use_swiglu_ffn=True, **sizes)),
        "dinov2-registers": transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(num_register_tokens=3, **sizes)
        ),
    }
    for case, model in cases.items():
        model, folder = randomised(model, 9), fresh(case)
        expect(folder, pixels=pixels, last_hidden_state=model(pixels).last_hidden_state)
        model.save_pretrained(folder)
    config = transformers.Dinov2Config(num_labels=3, **sizes)
    model, folder = randomised(transformers.Dinov2ForImageClassification(config), 10), fresh("dinov2-classifier")
    expect(folder, pixels=pixels, last_hidden_state=model.dinov2(pixels).last_hidden_state)
    model.save_pretrained(folder)


def write_t5():
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    model, folder = randomised(transformers.T5ForConditionalGeneration(config), 11), fresh("t5-whole")
    ids = torch.tensor([[3, 7, 1, 0, 0]])
    expect(folder, ids=ids, last_hidden_state=model.encoder(ids).last_hidden_state)
    model.save_pretrained(folder)
    strip(folder, "generation_config.json")


for write in (write_flux, write_adapters, write_autoencoder, write_clip, write_vision, write_t5):
    with torch.no_grad():
        write()
for path in sorted(out.rglob("*")):
    if path.is_file():
        print(f"{path.stat().st_size:>8}  {path.relative_to(out)}")
