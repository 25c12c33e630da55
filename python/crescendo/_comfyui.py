"""The graph that draws with a LoRA in ComfyUI, as its server takes it and as its editor opens it.

Pure; imports nothing else of this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Tokens of a prompt, padding among them, which is attended to.
_TEXT_TOKENS = 512
#: Shifts of the times at 256 and at 4096 tokens, between and beyond which they lie on a line.
_BASE_SHIFT, _MAX_SHIFT = 0.5, 1.15
#: As `crescendo generate` draws.
_STEPS, _GUIDANCE, _SEED = 25, 4.0, 3407


@dataclass(frozen=True)
class Drawing:
    """What is drawn with."""

    #: File below ComfyUI's models/loras.
    lora: str
    #: File below its models/diffusion_models.
    transformer: str
    references: int
    #: As its node has it.
    method: str
    #: Side of the picture, pixels.
    side: int

    @property
    def reference_side(self) -> int:
        """Long side of a reference, pixels, as `crescendo generate` scales it."""
        return 512 if self.references == 1 else 320


def names(lora: str) -> tuple[str, str]:
    """Of the files beside a LoRA: for the editor, and for the server."""
    stem = lora.removesuffix(".safetensors")
    return f"{stem}.comfyui.json", f"{stem}.comfyui-api.json"


def prompt(told: Drawing) -> dict[str, Any]:
    """The graph as ComfyUI's server takes it: the `prompt` of POST /prompt."""
    nodes = list(_nodes(told))
    numbers = {node.key: str(number) for number, node in enumerate(nodes, start=1)}
    graph = {}
    for node in nodes:
        inputs: dict[str, Any] = dict(node.widgets)
        inputs.update({name: [numbers[source], 0] for name, source in node.wires.items()})
        graph[numbers[node.key]] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": node.title}}
    return graph


def editor(told: Drawing) -> dict[str, Any]:
    """The graph as ComfyUI's editor saves and opens it, with a note of what is to be put where."""
    nodes = list(_nodes(told))
    numbers = {node.key: number for number, node in enumerate(nodes, start=1)}
    links: list[list[Any]] = []
    leaving: dict[str, list[int]] = {node.key: [] for node in nodes}
    drawn = []
    for order, node in enumerate(nodes):
        inputs = []
        for slot, (name, source) in enumerate(node.wires.items()):
            kind = _OUTPUTS[_kind(nodes, source)][0]
            link = len(links) + 1
            links.append([link, numbers[source], 0, numbers[node.key], slot, kind])
            leaving[source].append(link)
            inputs.append({"name": name, "type": kind, "link": link})
        drawn.append({
            "id": numbers[node.key],
            "type": node.kind,
            "title": node.title,
            "pos": list(node.place),
            "size": [_WIDTH, node.height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": kind, "type": kind, "links": leaving[node.key] if slot == 0 else []}
                for slot, kind in enumerate(_OUTPUTS[node.kind])
            ],
            "properties": {"Node name for S&R": node.kind, "cnr_id": "comfy-core"},
            "widgets_values": list(_editor_widgets(node)),
        })  # fmt: skip
    last = len(drawn) + 1
    drawn.append({
        "id": last,
        "type": "MarkdownNote",
        "title": "What goes where",
        "pos": [0, -420],
        "size": [3 * _WIDTH, 380],
        "flags": {},
        "order": last - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [_note(told)],
    })  # fmt: skip
    return {
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": drawn,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


# --- Its nodes -------------------------------------------------------------------------------------------------------

#: Width of a node, distance of columns and of rows, in the editor's pixels.
_WIDTH, _COLUMN, _ROW = 320, 370, 220

#: What each kind of node gives, in the order of its outputs. Only first ones are used.
_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "UNETLoader": ("MODEL",),
    "DualCLIPLoader": ("CLIP",),
    "VAELoader": ("VAE",),
    "LoraLoaderModelOnly": ("MODEL",),
    "ModelSamplingFlux": ("MODEL",),
    "T5TokenizerOptions": ("CLIP",),
    "CLIPTextEncode": ("CONDITIONING",),
    "FluxGuidance": ("CONDITIONING",),
    "LoadImage": ("IMAGE", "MASK"),
    "ImageScaleToMaxDimension": ("IMAGE",),
    "VAEEncode": ("LATENT",),
    "ReferenceLatent": ("CONDITIONING",),
    "FluxKontextMultiReferenceLatentMethod": ("CONDITIONING",),
    "ConditioningZeroOut": ("CONDITIONING",),
    "EmptySD3LatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
}


@dataclass(frozen=True)
class _Node:
    """One node. What its wires begin at comes before it."""

    key: str
    kind: str
    title: str
    #: Of the editor, in pixels.
    place: tuple[int, int]
    #: In the order in which the node declares them.
    widgets: Mapping[str, object]
    #: Keys of nodes whose first output goes into an input.
    wires: Mapping[str, str]

    @property
    def height(self) -> int:
        """In the editor, pixels."""
        return 320 if self.kind in ("LoadImage", "SaveImage") else 60 + 24 * (len(self.widgets) + len(self.wires))


def _nodes(told: Drawing) -> Iterator[_Node]:
    side = {"width": told.side, "height": told.side}
    yield _node("transformer", "UNETLoader", "FLUX.1", (0, 0), unet_name=told.transformer, weight_dtype="default")
    text = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"}
    yield _node("text", "DualCLIPLoader", "Text encoders", (0, 1), {}, **text, device="default")
    yield _node("autoencoder", "VAELoader", "Autoencoder", (0, 2), vae_name="ae.safetensors")
    lora = {"lora_name": told.lora, "strength_model": 1.0}
    yield _node("lora", "LoraLoaderModelOnly", "LoRA", (1, 0), {"model": "transformer"}, **lora)
    # The line of ComfyUI's node is that of training, and so are its ends; by default it would shift as for 4096 tokens.
    shift = {"max_shift": _MAX_SHIFT, "base_shift": _BASE_SHIFT, **side}
    yield _node("times", "ModelSamplingFlux", "Times of this size", (2, 0), {"model": "lora"}, **shift)
    length = {"min_padding": 0, "min_length": _TEXT_TOKENS}
    yield _node("length", "T5TokenizerOptions", "Length of a prompt", (1, 1), {"clip": "text"}, **length)
    wanted = "the subject on a wooden table" if told.references else "a wooden table"
    yield _node("words", "CLIPTextEncode", "Prompt", (2, 1), {"clip": "length"}, text=wanted)
    yield _node("guided", "FluxGuidance", "Guidance", (3, 1), {"conditioning": "words"}, guidance=_GUIDANCE)
    conditioning = "guided"
    for number in range(1, told.references + 1):
        row = 3 + 2 * (number - 1)
        picture, scaled, latent, added = (f"{what}-{number}" for what in ("picture", "scaled", "latent", "reference"))
        yield _node(picture, "LoadImage", f"Reference {number}", (0, row), image=f"reference-{number}.png")
        scale = {"upscale_method": "lanczos", "largest_size": told.reference_side}
        yield _node(scaled, "ImageScaleToMaxDimension", "Size of a reference", (1, row), {"image": picture}, **scale)
        yield _node(latent, "VAEEncode", "Encode", (2, row), {"pixels": scaled, "vae": "autoencoder"})
        wires = {"conditioning": conditioning, "latent": latent}
        yield _node(added, "ReferenceLatent", f"Reference {number}", (3, row), wires)
        conditioning = added
    if told.references:
        method = {"reference_latents_method": told.method}
        wires = {"conditioning": conditioning}
        kind = "FluxKontextMultiReferenceLatentMethod"
        yield _node("positions", kind, "Positions of the references", (4, 3), wires, **method)
        conditioning = "positions"
    # Not looked at with cfg 1; the node wants it.
    yield _node("nothing", "ConditioningZeroOut", "None", (4, 2), {"conditioning": "words"})
    yield _node("size", "EmptySD3LatentImage", "Size", (4, 1), {}, **side, batch_size=1)
    wires = {"model": "times", "positive": conditioning, "negative": "nothing", "latent_image": "size"}
    sampling = {"seed": _SEED, "steps": _STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    yield _node("drawn", "KSampler", "Draw", (5, 0), wires, **sampling, denoise=1.0)
    yield _node("pixels", "VAEDecode", "Decode", (6, 0), {"samples": "drawn", "vae": "autoencoder"})
    yield _node("saved", "SaveImage", "Picture", (7, 0), {"images": "pixels"}, filename_prefix="crescendo")


def _node(
    key: str, kind: str, title: str, at: tuple[int, int], wires: Mapping[str, str] | None = None, **widgets: object
) -> _Node:
    """At: column and row in the editor."""
    column, row = at
    return _Node(key, kind, title, (column * _COLUMN, row * _ROW), widgets, wires or {})


def _kind(nodes: Sequence[_Node], key: str) -> str:
    return next(node.kind for node in nodes if node.key == key)


def _editor_widgets(node: _Node) -> Iterator[object]:
    """Its editor has a widget after each seed, and one after each picture."""
    for name, value in node.widgets.items():
        yield value
        if name == "seed":
            yield "fixed"
        if name == "image":
            yield "image"


def _note(told: Drawing) -> str:
    files = [
        f"- `{told.lora}` in `models/loras`",
        f"- `{told.transformer}` in `models/diffusion_models`",
        "- `clip_l.safetensors`, `t5xxl_fp16.safetensors` in `models/text_encoders`",
        "- `ae.safetensors` in `models/vae`",
    ]
    lines = ["Files:\n", *files, ""]
    if told.references:
        lines += [
            f"References keep their order. `{told.method}` gives them the positions that the LoRA was trained with;"
            " with another method it would draw something else.\n",
            f"A side that is no multiple of 16 after scaling to {told.reference_side} pixels is cropped otherwise"
            " than by `crescendo generate`; square references are exact.\n",
        ]
    lines.append("For another size change it in both nodes that have a width and a height.")
    return "\n".join(lines)
