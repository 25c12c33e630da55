"""What is handed to the Hugging Face Hub: the card and the folder always; the upload, by the Hub's own client against a
stand-in of its commit API, where that client is (`make track-test` has it)."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys

import crescendo
import hub as stand_in
import pytest
import yaml
from conftest import spec
from crescendo import JobState, push
from crescendo._card import Handed, card, is_sealed, public_spec
from crescendo.comparison import Ending
from crescendo.records import Checkpoint, CheckpointFile, Job
from crescendo.v1 import job_pb2

REQUIRED = os.environ.get("CRESCENDO_REQUIRE_TRACKERS")
HAS_HUB = importlib.util.find_spec("huggingface_hub") is not None
assert HAS_HUB or not REQUIRED, "huggingface_hub is required here"
hub_only = pytest.mark.skipif(not HAS_HUB, reason="huggingface_hub is not installed: make track-test has it")

SPEC = """
spec:
  model: {preset: flux-dev, weights: flux1-dev.safetensors}
  endpoints:
    - name: judge
      url: https://user:secret@models.example/v1
  stages:
    - name: stage-1
      references: 1
      positions: diagonal
      data: {source: compose, holdOutOneIn: 5}
      train: {adapter: {rank: 512}, globalBatch: 16, learningRate: 1e-5}
"""
LORA = "dit_lora.safetensors"


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def handed(spec=SPEC, files=(LORA,), **more):
    raw = job_pb2.Job(job_id="uno-abc123", name="uno", resolved_spec_yaml=spec)
    stage = raw.stages.add(name="stage-1", step=5000, steps_total=5000, pairs_committed=80, precision="bf16")
    stage.pairs_rejected.update({"similarity": 12, "judge|score": 3})
    registered = tuple(CheckpointFile(name, 1, "0" * 64) for name in files)
    checkpoint = Checkpoint("uno-abc123", "stage-1", 1, 5000, "p", registered, None, True, "", False, None)
    told = Handed(Job._of(raw), checkpoint, {name: 7 for name in files}, {"stage-1": Ending(0.5, 0.25, 1.0, 2.0)})
    return dataclasses.replace(told, **more)


def test_the_card_says_what_it_is_and_what_it_was_made_from():
    text = card(handed(license="other"))
    assert header(text) == {
        "license": "other",
        "base_model": "black-forest-labs/FLUX.1-dev",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-to-image",
        "tags": ["crescendo", "subject-driven-generation", "image-generation", "lora"],
    }
    assert "| stage-1 | 1 | diagonal | 512 | 5000 of 5000 | 16 | 1e-05 | bf16 | 0.25 |" in text
    assert r"| stage-1 | compose | 80 | judge\|score 3, similarity 12 | one subject in 5 |" in text
    assert "## Scores" not in text and "## Pictures" not in text, "there are none"
    assert "`other`, as whoever handed it over says" in text


def test_the_card_claims_nothing_that_is_not_known():
    """No base of other sizes or of nano, no licence that nobody named."""
    for spec in [SPEC.replace("flux-dev,", "flux-dev, sizes: {depth: 1},"), SPEC.replace("flux-dev,", "nano,")]:
        assert {"license", "base_model", "base_model_relation"}.isdisjoint(header(card(handed(spec))))
    assert header(card(handed(base_model="me/mine")))["base_model"] == "me/mine"
    whole = card(handed(files=("model.safetensors",)))
    assert header(whole)["base_model_relation"] == "finetune" and "lora" not in header(whole)["tags"]
    assert "Not stated." in whole and "--lora" not in whole


def test_scores_and_pictures_are_shown_if_there_are_any():
    score = {
        "model": "stage-1, one subject", "subjects_are": "unseen", "right": 0.5, "standard_error": None, "chance": 0.0625,
        "candidates": [16, 16], "subjects": 10, "draws": 80,
    }  # fmt: skip
    text = card(handed(report={"scores": [score], "encoder": "dinov2"}, pictures=["pictures/01.png"]))
    assert "| stage-1, one subject | unseen | 50.0 % | - | 6.2 % | 10 | 80 |" in text
    assert "![](pictures/01.png)" in text


def test_a_card_that_somebody_has_changed_is_known():
    text = card(handed())
    assert is_sealed(text) and is_sealed(text.replace("\n", "\r\n")) and is_sealed(text.rstrip("\n"))
    assert not is_sealed(text.replace("5000", "4000")) and not is_sealed(text + "more\n") and not is_sealed("# mine\n")


def test_addresses_of_language_models_stay_at_home():
    told = public_spec(SPEC)
    assert "secret" not in told and "models.example" not in told
    assert told.count("\n") == SPEC.count("\n") and "url: left-out" in told and "learningRate: 1e-5" in told


@pytest.mark.parametrize("to", ["user/name", "hf:name", "hf:a/b/c", "hf:/name", "s3:user/name"])
def test_the_program_takes_no_other_place(to, capsys):
    with pytest.raises(SystemExit):
        push.main(["uno-abc123", "--to", to])
    assert "--to is hf:USER/NAME" in capsys.readouterr().err


def test_without_the_client_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(push.HubError, match=r"pip install 'crescendo-client\[hub\]'"):
        push.upload(tmp_path, "user/name", "m")


# --- The folder of a real job ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(cluster):
    with crescendo.Client(cluster.address) as client:
        *_, job = client.watch(client.submit(spec(steps=20, name="pushed")))
        assert job.state is JobState.SUCCEEDED
        return job


def test_the_folder_is_whole(trained, client, cluster, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "grid.png").write_bytes(b"\x89PNG")
    (report / "report.json").write_text(json.dumps({"job_id": trained.job_id, "scores": []}))
    shown = tmp_path / "my name.PNG"
    shown.write_bytes(b"\x89PNG mine")
    folder = tmp_path / "out"
    arguments = [trained.job_id, "--to", "hf:user/name", "--dry-run", "--folder", str(folder), "--license", "mit"]
    arguments += ["--controller", cluster.address, "--report", str(report), "--picture", str(shown)]
    assert push.main(arguments) == 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "README.md", LORA, "resolved_spec.yaml", "history/stage-1.jsonl", "pictures/01.png", "pictures/02.png",
        "report.json",
    }  # fmt: skip
    [checkpoint] = [one for one in client.checkpoints(trained) if one.final]
    sums = {file.name: file.sha256 for file in checkpoint.files}
    assert hashlib.sha256((folder / LORA).read_bytes()).hexdigest() == sums[LORA]
    assert hashlib.sha256((folder / "history/stage-1.jsonl").read_bytes()).hexdigest() == sums["history.jsonl"]
    assert (folder / "resolved_spec.yaml").read_text() == client.get(trained).resolved_spec_yaml
    text = (folder / "README.md").read_text()
    assert f"`{trained.job_id}` had after step 20 of stage `stage-1`" in text and header(text)["license"] == "mit"
    assert push.main(arguments) == 1, "a folder with something in it stays as it is"


def test_a_report_of_another_job_is_refused(trained, cluster, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"job_id": "other-abc123"}))
    arguments = [trained.job_id, "--to", "hf:user/name", "--report", str(tmp_path), "--controller", cluster.address]
    assert push.main(arguments) == 1
    assert f"is not a report of {trained.job_id}" in capsys.readouterr().err


# --- The upload ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub():
    with stand_in.serve() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    """With weights that do not compress, so that xet stores them as they are."""
    made = tmp_path / "model"
    (made / "history").mkdir(parents=True)
    (made / LORA).write_bytes(random.Random(7).randbytes(300_000))
    (made / "README.md").write_text(card(handed()))
    (made / "resolved_spec.yaml").write_text(SPEC)
    (made / "history/stage-1.jsonl").write_text("{}\n")
    return made


def upload(hub, folder, *, xet=False, token=stand_in.TOKEN, **options):
    """In a process of its own: the client reads its variables when it is imported."""
    program = (
        "import json, pathlib, sys\n"
        "from crescendo import push\n"
        "folder, options = sys.argv[1:]\n"
        "print(push.upload(pathlib.Path(folder), 'user/name', 'a message', **json.loads(options)))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(folder.parent / "home")}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
    command = [sys.executable, "-c", program, str(folder), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def right(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@hub_only
def test_the_hub_has_every_file_by_lfs(hub, folder):
    assert f"{hub.url}/user/name/commit/" in right(upload(hub, folder))
    wanted = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == wanted
    [(message, paths)] = hub.commits
    assert message == "a message" and sorted(paths) == sorted(wanted)
    assert hub.repos == {"user/name": {"private": True}}
    assert hub.paths("PUT /lfs/") and hub.paths("/verify") and not hub.paths("xet")


@hub_only
def test_the_hub_has_every_file_by_xet(hub, folder):
    """As far as a stand-in can tell: the bytes come, under the SHA-256 that the commit names; that the shard describes
    them rightly only the real service would say."""
    right(upload(hub, folder, xet=True))
    content = (folder / LORA).read_bytes()
    assert hub.files[LORA] == (hashlib.sha256(content).hexdigest(), len(content))
    assert hub.files["README.md"] == (folder / "README.md").read_bytes()
    assert b"".join(chunk for xorb in hub.xorbs.values() for chunk in stand_in.chunks(xorb)) == content
    assert hub.paths("/cas/v1/shards") and not hub.paths("PUT /lfs/")


@hub_only
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_token_that_is_refused_is_an_error(hub, folder, xet):
    done = upload(hub, folder, xet=xet, token="hf_other")
    assert done.returncode != 0 and "HubError: user/name: " in done.stderr and "401" in done.stderr
    assert not hub.commits and not hub.files


@hub_only
def test_where_only_xet_is_refused_the_way_around_is_told(hub, folder):
    hub.refuses_xet = True
    done = upload(hub, folder, xet=True)
    assert done.returncode != 0 and "HF_HUB_DISABLE_XET=1 sends by LFS instead" in done.stderr
    assert not hub.commits
    right(upload(hub, folder))
    assert LORA in hub.files


@hub_only
def test_a_card_that_was_changed_there_stays(hub, folder):
    right(upload(hub, folder, public=True))
    assert hub.repos == {"user/name": {"private": False}}
    (folder / "README.md").write_text(card(handed(license="mit")))
    right(upload(hub, folder))
    assert b"license: mit" in hub.files["README.md"], "nobody had changed it: the newer one is there"
    hub.files["README.md"] = b"# my words\n"
    assert "--replace-card replaces it" in right(upload(hub, folder))
    assert hub.files["README.md"] == b"# my words\n" and hub.files["resolved_spec.yaml"] == SPEC.encode()
    right(upload(hub, folder, replace_card=True))
    assert b"license: mit" in hub.files["README.md"]
