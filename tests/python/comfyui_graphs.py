"""What workflows for ComfyUI are held to: by tests with a record of how its server describes nodes, and by
tests/peers/workflow_in_comfyui.py with the server itself, where only the graph's own module can be imported."""

import importlib.util
import json
import pathlib
import sys

SOURCE = pathlib.Path(__file__).parents[2] / "python/crescendo/_comfyui.py"
RECORD = pathlib.Path(__file__).with_name("comfyui_nodes.json")

_found = importlib.util.spec_from_file_location("crescendo_comfyui_graph", SOURCE)
graph = sys.modules[_found.name] = importlib.util.module_from_spec(_found)
_found.loader.exec_module(graph)

prompt, editor = graph.prompt, graph.editor
LORA = "dit_lora.safetensors"
TRANSFORMERS = {"flux-dev": "flux1-dev.safetensors", "flux-schnell": "flux1-schnell.safetensors"}
#: By the folders of ComfyUI's models.
FILES = {
    "diffusion_models": list(TRANSFORMERS.values()),
    "text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "vae": ["ae.safetensors"],
    "loras": [LORA],
}
#: Inputs whose values are files, which every server has others of.
OF_FILES = {"unet_name", "clip_name1", "clip_name2", "vae_name", "lora_name", "image"}


def cases():
    """None to four references, of both networks."""
    return {
        f"{preset}, {references} references": graph.Drawing(LORA, transformer, references, "uxo/uno", 512)
        for preset, transformer in TRANSFORMERS.items()
        for references in range(5)
    }


def recorded(nodes):
    """Of the server's description, what the graph's nodes take and give."""
    kinds = sorted({node["class_type"] for told in cases().values() for node in prompt(told).values()})
    return json.dumps({kind: _interface(nodes[kind]) for kind in kinds}, separators=(",", ":")).replace("},\"", "},\n\"") + "\n"


def _interface(node):
    inputs = {}
    for group in ("required", "optional"):
        for name, told in node["input"].get(group, {}).items():
            kind, more = told[0], told[1] if len(told) > 1 else {}
            one = {"options": kind} if isinstance(kind, list) else {"type": kind}
            if kind == "COMBO":
                one = {"options": more["options"]}
            if name in OF_FILES and isinstance(kind, list):
                one = {"options": "files"}
            inputs[name] = one | {key: more[key] for key in ("min", "max", "step") if key in more} | {"required": group == "required"}
    return {"inputs": inputs, "outputs": list(zip(node["output"], node["output_name"], strict=True))}


def check(told, nodes):
    """Every node as its description says, in both files, which are one graph."""
    described = json.loads(recorded(nodes)) if "KSamplerSelect" in nodes else nodes
    asked, shown = prompt(told), editor(told)
    for node in asked.values():
        _check_node(node, asked, described)
    assert _as_prompt(shown, described) == asked
    reached, waiting = set(), [number for number, node in asked.items() if node["class_type"] == "SaveImage"]
    while waiting:
        number = waiting.pop()
        reached.add(number)
        waiting += [value[0] for value in asked[number]["inputs"].values() if isinstance(value, list)]
    assert reached == set(asked), "what nothing comes of"


def _check_node(node, asked, described):
    kind, inputs = node["class_type"], described[node["class_type"]]["inputs"]
    assert set(node["inputs"]) <= set(inputs), kind
    assert {name for name, one in inputs.items() if one["required"]} <= set(node["inputs"]), kind
    for name, value in node["inputs"].items():
        one = inputs[name]
        if isinstance(value, list):
            source = asked[value[0]]["class_type"]
            assert described[source]["outputs"][value[1]][0] == one["type"], f"{source} into {kind}.{name}"
        elif "options" in one:
            assert one["options"] == "files" or value in one["options"], f"{kind}.{name}: {value}"
        elif one["type"] == "STRING":
            assert isinstance(value, str), f"{kind}.{name}"
        else:
            assert isinstance(value, {"INT": int, "FLOAT": float}[one["type"]]), f"{kind}.{name}"
            assert one["min"] <= value <= one.get("max", value), f"{kind}.{name}: {value}"


def _as_prompt(shown, described):
    """What the editor makes of its own file when it sends it."""
    links = {link[0]: link for link in shown["links"]}
    assert len(links) == len(shown["links"]) == shown["last_link_id"]
    found = {}
    for node in shown["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs, outputs = described[node["type"]]["inputs"], described[node["type"]]["outputs"]
        assert [output["type"] for output in node["outputs"]] == [kind for kind, _ in outputs]
        assert [output["name"] for output in node["outputs"]] == [name for _, name in outputs]
        taken = {}
        for slot, plug in enumerate(node["inputs"]):
            _, source, from_slot, target, to_slot, kind = links[plug["link"]]
            assert (target, to_slot, kind) == (node["id"], slot, plug["type"]) and plug["type"] == inputs[plug["name"]]["type"]
            [begin] = [one for one in shown["nodes"] if one["id"] == source]
            assert plug["link"] in begin["outputs"][from_slot]["links"] and begin["order"] < node["order"]
            taken[plug["name"]] = [str(source), from_slot]
        values = iter(node["widgets_values"])
        for name, one in inputs.items():
            if "options" in one or one["type"] in ("INT", "FLOAT", "STRING"):
                taken[name] = next(values)
                if name == "seed":
                    assert next(values) == "fixed"
                if name == "image":
                    assert next(values) == "image"
        assert not list(values), node["type"]
        found[str(node["id"])] = {"class_type": node["type"], "inputs": taken, "_meta": {"title": node["title"]}}
    return found


def small(told, lora, method):
    """The graph for a fixture's drawing, with comfyui_pack.py's nodes where a network, an encoder or a file would be."""
    drawn = prompt(graph.Drawing(lora, "", told["n_refs"], method, 512))
    latents = 0
    for number, node in list(drawn.items()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "UNETLoader":
            node.update(class_type="CrescendoTransformer", inputs={})
        elif kind == "CLIPTextEncode":
            node.update(class_type="CrescendoWords", inputs={})
        elif kind == "VAEEncode":
            node.update(class_type="CrescendoLatent", inputs={"number": latents})
            latents += 1
        elif kind == "VAEDecode":
            node.update(class_type="CrescendoKeep", inputs={"samples": inputs["samples"]})
        elif kind == "KSampler":
            inputs["steps"] = told["num_steps"]
        elif kind == "FluxGuidance":
            inputs["guidance"] = told["guidance"]
        elif kind == "EmptySD3LatentImage":
            inputs.update(width=told["width"], height=told["height"])
        elif kind == "ModelSamplingFlux":
            # As many tokens as the published inference counts.
            inputs.update(width=16, height=16 * told["image_seq_len"])
        elif kind in ("DualCLIPLoader", "VAELoader", "T5TokenizerOptions", "LoadImage", "ImageScaleToMaxDimension", "SaveImage"):
            del drawn[number]
    return drawn
