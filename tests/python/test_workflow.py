"""Workflows for ComfyUI: each node as ComfyUI 0.3.64 describes it, and one graph in both files. That its server takes them
and draws right is tests/peers/workflow_in_comfyui.py's."""

import json

import comfyui_graphs
import pytest
from crescendo import push, workflow
from crescendo._card import card
from crescendo.records import Checkpoint, CheckpointFile, Job
from crescendo.v1 import job_pb2

SPEC = """
spec:
  model: {preset: flux-dev, weights: flux1-dev.safetensors}
  stages:
    - name: stage-1
      references: 1
      positions: diagonal
      train: {adapter: {rank: 512}, resolution: 768}
    - name: stage-2
      references: 3
      positions: frame
      train: {adapter: {rank: 512}, resolution: 512}
    - name: stage-3
      references: 2
      positions: height
      train: {adapter: {rank: 512}, resolution: 512}
    - name: stage-4
      references: 0
      train: {adapter: none, resolution: 512}
"""
LORA = comfyui_graphs.LORA
NODES = json.loads(comfyui_graphs.RECORD.read_text())


def job(spec=SPEC):
    raw = job_pb2.Job(job_id="uno-abc123", name="uno", resolved_spec_yaml=spec)
    raw.stages.add(name="stage-1", step=10, steps_total=10)
    return Job._of(raw)


def of_kind(graph, kind):
    return [node["inputs"] for node in graph.values() if node["class_type"] == kind]


@pytest.mark.parametrize("case", comfyui_graphs.cases())
def test_each_node_is_as_comfyui_has_it(case):
    comfyui_graphs.check(comfyui_graphs.cases()[case], NODES)


def test_what_is_wrong_with_a_graph_is_seen():
    """The check itself: a method that ComfyUI would take in silence, and a wire of another type."""
    graph = comfyui_graphs.graph
    with pytest.raises(AssertionError, match="MultiReference"):
        comfyui_graphs.check(graph.Drawing(LORA, "flux1-dev.safetensors", 1, "uno", 512), NODES)
    wrong = {**NODES, "VAEEncode": {**NODES["VAEEncode"], "outputs": [["IMAGE", "IMAGE"]]}}
    with pytest.raises(AssertionError, match="VAEEncode into ReferenceLatent"):
        comfyui_graphs.check(graph.Drawing(LORA, "flux1-dev.safetensors", 1, "uxo/uno", 512), wrong)


def test_references_keep_their_order_and_come_before_their_positions():
    told = workflow.prompt(workflow.drawing(job(), "stage-1", LORA, references=4))
    [sampler] = of_kind(told, "KSampler")
    positions = told[sampler["positive"][0]]
    assert positions["class_type"] == "FluxKontextMultiReferenceLatentMethod"
    assert positions["inputs"]["reference_latents_method"] == "uxo/uno"
    at, pictures = positions["inputs"]["conditioning"][0], []
    while told[at]["class_type"] == "ReferenceLatent":
        scaled = told[told[told[at]["inputs"]["latent"][0]]["inputs"]["pixels"][0]]
        pictures.insert(0, told[scaled["inputs"]["image"][0]]["inputs"]["image"])
        at = told[at]["inputs"]["conditioning"][0]
    assert pictures == [f"reference-{number}.png" for number in (1, 2, 3, 4)]
    assert told[at]["class_type"] == "FluxGuidance"


def test_it_draws_as_the_stage_was_trained():
    told = workflow.drawing(job(), "stage-1", "mine.safetensors")
    assert told == workflow.Drawing("mine.safetensors", "flux1-dev.safetensors", 1, "uxo/uno", 768)
    graph = workflow.prompt(told)
    [size], [times] = of_kind(graph, "EmptySD3LatentImage"), of_kind(graph, "ModelSamplingFlux")
    assert (size["width"], size["height"]) == (times["width"], times["height"]) == (768, 768)
    assert [one["largest_size"] for one in of_kind(graph, "ImageScaleToMaxDimension")] == [512]
    of_frames = workflow.drawing(job(), "stage-2", LORA)
    assert (of_frames.references, of_frames.method, of_frames.reference_side) == (3, "index", 320)
    none = workflow.prompt(workflow.drawing(job(), "stage-3", LORA, references=0))
    assert not of_kind(none, "LoadImage") and not of_kind(none, "FluxKontextMultiReferenceLatentMethod")


@pytest.mark.parametrize(
    ("spec", "stage", "references", "why"),
    [
        (SPEC.replace("flux-dev,", "nano,"), "stage-1", None, "no network like the preset nano"),
        (SPEC.replace("flux-dev,", "flux-dev, sizes: {depth: 1},"), "stage-1", None, "flux-dev with sizes of its own"),
        (SPEC, "stage-3", None, "no positions like height"),
        (SPEC, "stage-4", None, "the whole network"),
        (SPEC, "stage-5", None, "no stage stage-5"),
        (SPEC, "stage-1", 9, "9 references: 0 to 8"),
    ],
)
def test_what_comfyui_cannot_draw_is_refused(spec, stage, references, why):
    with pytest.raises(workflow.NoWorkflowError, match=why):
        workflow.drawing(job(spec), stage, LORA, references)


class Registry:
    """A controller that has one checkpoint, as far as these programs ask it."""

    def __init__(self, spec):
        self.job = job(spec)
        files = (CheckpointFile(LORA, 4, "0" * 64),)
        self.checkpoint = Checkpoint("uno-abc123", "stage-1", 1, 10, "p", files, None, True, "", False, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get(self, job_id):
        return self.job

    def checkpoints(self, job, stage=None):
        return [self.checkpoint]

    def fetch(self, of, to, *, name, stage=None):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(b"LoRA")
        return to


def test_they_go_beside_the_lora_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("crescendo._cli.connect", lambda _: Registry(SPEC))
    assert workflow.main(["uno-abc123", str(tmp_path / "mine.v2.safetensors"), "--references", "2"]) == 0
    opened, asked = tmp_path / "mine.v2.comfyui.json", tmp_path / "mine.v2.comfyui-api.json"
    assert capsys.readouterr().out.splitlines() == [str(opened), str(asked)]
    told = json.loads(asked.read_text())
    assert [one["lora_name"] for one in of_kind(told, "LoraLoaderModelOnly")] == ["mine.v2.safetensors"]
    assert len(of_kind(told, "ReferenceLatent")) == 2 and json.loads(opened.read_text())["version"] == 0.4
    monkeypatch.setattr("crescendo._cli.connect", lambda _: Registry(SPEC.replace("flux-dev,", "nano,")))
    assert workflow.main(["uno-abc123", str(tmp_path / "other.safetensors")]) == 1
    assert "no network like the preset nano" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.v2.comfyui-api.json", "mine.v2.comfyui.json"]


def test_what_goes_to_the_hub_has_them(tmp_path):
    troubles = []
    for preset in ("flux-dev", "nano"):
        registry = Registry(SPEC.replace("flux-dev,", f"{preset},"))
        handed = push.write(registry, "uno-abc123", tmp_path / preset, on_trouble=troubles.append)
        written = {path.name for path in (tmp_path / preset).iterdir()}
        assert ({"dit_lora.comfyui.json", "dit_lora.comfyui-api.json"} <= written) == (preset == "flux-dev")
        assert ("`dit_lora.comfyui.json` is a workflow" in card(handed)) == (preset == "flux-dev")
    assert troubles == ["no workflow for ComfyUI is written: ComfyUI has no network like the preset nano"]
