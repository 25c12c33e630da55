"""The Python client with the real grpcio, against a real cluster on loopback."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import crescendo
import grpc
import pytest
from conftest import BIN, DEADLINE_SECONDS, ROOT, eventually, spec
from crescendo import JobState

LORA = "dit_lora.safetensors"
NOT_THERE = "nowhere-abc123"


@pytest.fixture(scope="module")
def followed(cluster):
    """A job that was followed to its end over a restart of the controller, and what was seen of it."""
    with crescendo.Client(cluster.address) as client:
        submitted = client.submit(spec(steps=60), request_id="python-1")
        again = client.submit(spec(steps=60), request_id="python-1")
        assert again.job_id == submitted.job_id, "one request id submits once"
        assert (submitted.already_submitted, again.already_submitted) == (False, True)
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(client.logs(submitted, follow=True)))
        reader.start()
        seen, lost, killed = [], [], False
        for job in client.watch(submitted, on_lost=lost.append):
            seen.append(job)
            if not killed and job.stages[0].step > 0:
                cluster.kill("controller")
                killed = True
        assert killed and lost, "the controller was killed while it was watched"
        assert all(isinstance(error, crescendo.UnavailableError) for error in lost)
        reader.join(DEADLINE_SECONDS)
        assert not reader.is_alive(), "the log ends with the job"
    return seen, lines


def test_a_job_is_followed_over_a_restart(followed, client):
    seen, _ = followed
    job = seen[-1]
    assert job.state is JobState.SUCCEEDED and job.state == "succeeded", job.reason
    revisions = [job.revision for job in seen]
    assert revisions == sorted(revisions), "no step back to what was seen before"
    assert {seen.job_id for seen in seen} == {job.job_id}
    assert client.get(job).state.is_final and client.get(job.job_id) == client.get(job)
    assert job.submitted_at <= job.started_at <= job.finished_at
    assert (job.stages[0].step, job.stages[0].steps_total) == (60, 60)
    # From its last revision there is nothing but the end.
    assert [job.state for job in client.watch(job)] == [JobState.SUCCEEDED]


def test_a_log_is_read_once_over_a_restart(followed, client):
    seen, lines = followed
    assert {line.job_id for line in lines} == {seen[-1].job_id}
    assert {line.rank for line in lines} >= {0}, "the rank has said something"
    raw = [line.raw.SerializeToString(deterministic=True) for line in lines]
    assert len(raw) == len(set(raw)), "no line twice"
    kept = list(client.logs(seen[-1], tail=10_000))
    assert {line.message for line in kept if line.rank == 0} <= {line.message for line in lines}
    assert len(list(client.logs(seen[-1], tail=3))) == 3


def test_what_was_trained_is_fetched_and_verified(followed, cluster, client, tmp_path):
    job = followed[0][-1]
    listed = client.checkpoints(job)
    assert listed[-1].final and listed[-1].step == 60 and listed[-1].job_id == job.job_id
    [registered] = [file for file in listed[-1].files if file.name == LORA]

    def right(path):
        assert path.stat().st_size == registered.size_bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == registered.sha256
        assert [other.name for other in path.parent.iterdir()] == [path.name], "nothing is left beside it"

    assert client.fetch(job, tmp_path / "out/lora.safetensors") == tmp_path / "out/lora.safetensors"
    right(tmp_path / "out/lora.safetensors")
    (tmp_path / "folder").mkdir()
    right(client.fetch(job.job_id, tmp_path / "folder", stage="stage-1", step=60))
    right(client.fetch(listed[-1], tmp_path / "named/x", object_store=str(cluster.store)))

    files = client.fetch_all(listed[-1], tmp_path / "all")
    assert {file.name for file in files} == {file.name for file in listed[-1].files}


def test_files_come_through_the_controller_where_the_store_is_out_of_reach(followed, client, tmp_path, monkeypatch):
    """Any file that the store has: of the same bytes as those in the folder."""
    monkeypatch.setattr("crescendo._objects.local_path", lambda url, key: None)
    monkeypatch.setattr("crescendo._objects.read", lambda url, key: pytest.fail("it was read from the folder"))
    checkpoint = client.checkpoints(followed[0][-1])[-1]
    for path in client.fetch_all(checkpoint, tmp_path / "all"):
        [registered] = [file for file in checkpoint.files if file.name == path.name]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == registered.sha256


def test_a_file_that_is_not_as_registered_is_not_kept(followed, cluster, client, tmp_path, monkeypatch):
    job = followed[0][-1]
    path = cluster.store / client.checkpoints(job)[-1].path / LORA
    good = path.read_bytes()
    shorter, longer, other = good[:-1], good + b"x", good[:-1] + bytes([good[-1] ^ 1])
    there = tmp_path / "lora"
    there.write_bytes(b"mine")
    for bad in (shorter, longer, other):
        path.write_bytes(bad)
        with pytest.raises(crescendo.CorruptError, match="registered are"):
            client.fetch(job, there)
        assert there.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    # The same through the controller.
    monkeypatch.setattr("crescendo._objects.local_path", lambda url, key: None)
    with pytest.raises(crescendo.CorruptError, match="registered are"):
        client.fetch(job, there)
    path.write_bytes(good)
    assert there.read_bytes() == b"mine"
    client.fetch(job, there)
    assert there.read_bytes() == good


def test_what_is_not_there_to_fetch_is_told(followed, client, tmp_path):
    job = followed[0][-1]
    for options, words in [
        ({"stage": "stage-7"}, "no checkpoint of a stage stage-7; it has some of stage-1"),
        ({"step": 59}, "no checkpoint of step 59; it has those of .*60"),
        ({"name": "nothing.bin"}, f"has no nothing.bin; it has .*{LORA}"),
    ]:
        with pytest.raises(crescendo.NotFoundError, match=words):
            client.fetch(job, tmp_path / "x", **options)
    with pytest.raises(crescendo.NotFoundError, match="elsewhere/.* is not there"):
        client.fetch(job, tmp_path / "x", object_store=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="only folders, file:// and s3:// are known"):
        client.fetch(job, tmp_path / "x", object_store="ftp://host/folder")
    assert not list(tmp_path.iterdir())


def test_what_was_used_is_counted(followed, client):
    queues = client.queues()
    assert not queues.fair_share and [queue.name for queue in queues.queues if queue.name] == []
    assert "default" in {one.tenant for one in queues.tenants}
    used = [one for one in client.usage() if one.tenant == "default"]
    assert used and all(one.slot_seconds > 0 and one.device == "cpu" and len(one.month) == 7 for one in used)
    assert client.usage(from_month="2000-01", to_month="2000-12") == []
    with pytest.raises(crescendo.InvalidRequestError, match="from_month"):
        client.usage(from_month="soon")


def test_who_calls_and_what_there_is_are_told(cluster, client):
    told = client.whoami()
    assert told.leads and told.role == "admin" and told.at is not None
    assert told.object_store_url == cluster.state()["objectStore"]
    nodes = client.nodes()
    assert sorted(node.kind for node in nodes) == ["curator", "trainer"]
    [trainer] = [node for node in nodes if node.kind == "trainer"]
    assert trainer.connected and trainer.slots > 0 and trainer.device == "cpu" and not trainer.draining


def test_a_job_is_explained_listed_and_cancelled(client):
    job = client.submit(spec(steps=100_000, name="long"))
    told = client.explain(job)
    assert told.job_id == job.job_id and told.summary and told.summary in str(told)
    assert [found.job_id for found in client.list(name_prefix="lon")] == [job.job_id]
    cancelled = client.cancel(job, "enough")
    assert (cancelled.state, cancelled.reason) == (JobState.CANCELLED, "enough")
    assert [job.state for job in client.watch(job)] == [JobState.CANCELLED]
    assert client.explain(job).cause == "cancelled"
    assert job.job_id in [found.job_id for found in client.list(states=[JobState.CANCELLED])]
    assert job.job_id not in [found.job_id for found in client.list(states=["succeeded", "running"])]
    assert len(client.list(limit=1)) == 1 and client.list(limit=0) == []
    with pytest.raises(ValueError, match="runing"):
        client.list(states=["runing"])
    with pytest.raises(crescendo.WrongStateError, match="cancelled"):
        client.pause(job)
    with pytest.raises(crescendo.WrongStateError, match="cancelled"):
        client.retry(job)


def test_a_paused_job_holds_no_slot_and_goes_on_where_it_was(client):
    job = client.submit(spec(steps=400, name="paused"))
    next(seen for seen in client.watch(job) if seen.stages[0].step >= 5)
    paused = client.pause(job, "lunch", wait=True)
    assert (paused.state, paused.slots_held) == (JobState.PAUSED, 0)
    assert paused.reason == "is paused: lunch"
    saved = client.get(job).stages[0].checkpoint_step
    assert saved >= 5, "it has saved before it left"
    assert client.pause(job, keep_curating=True).state == JobState.PAUSED, "twice is once"
    assert client.resume(job).state != JobState.PAUSED
    seen = next(seen for seen in client.watch(job) if seen.stages[0].step > saved)
    assert seen.stages[0].generation == 2
    assert client.resume(job).job_id == job.job_id, "one that is not paused stays as it is"
    client.cancel(job)


def test_a_failed_job_is_tried_again(client, tmp_path):
    weights = tmp_path / "base.safetensors"
    weights.write_bytes(b"no weights")
    job = client.submit(spec(steps=5, name="failing", weights=weights))
    *_, failed = client.watch(job)
    assert failed.state == JobState.FAILED and "base.safetensors" in failed.reason, failed
    shutil.copy(ROOT / "assets/nano/base.safetensors", weights)
    assert client.retry(failed).state == JobState.QUEUED
    *_, ended = client.watch(job)
    assert ended.state == JobState.SUCCEEDED, ended.reason


def test_two_jobs_are_compared(followed, cluster, client, tmp_path):
    first = followed[0][-1]
    second = client.submit(spec(steps=20, name="other", rate="5e-4"))
    *_, second = client.watch(second)
    assert second.state == JobState.SUCCEEDED, second.reason

    def check(compared):
        assert [job.job_id for job in compared.jobs] == [first.job_id, second.job_id]
        paths = {difference.path: difference.values for difference in compared.differences}
        assert paths["spec.stages[0].train.learningRate"] == (1e-3, 5e-4)
        assert paths["spec.stages[0].train.steps"] == (60, 20)
        assert paths["metadata.name"] == ("python", "other")
        assert "spec.stages[0].train.globalBatch" not in paths
        for job, steps in zip(compared.jobs, (60, 20), strict=True):
            [stage] = job.stages
            assert (stage.steps, stage.steps_total, stage.pairs, job.restarts) == (steps, steps, 32, 0)
            assert job.state == "succeeded" and job.duration_seconds > 0
        return compared

    compared = check(client.compare(first, second.job_id))
    for job in compared.jobs:
        history = client.fetch(job.job_id, tmp_path / job.job_id, name="history.jsonl")
        assert job.stages[0].loss == json.loads(history.read_text().splitlines()[-1])["loss"]
        losses = [json.loads(line)["loss"] for line in history.read_text().splitlines()]
        assert job.stages[0].mean_loss == pytest.approx(sum(losses) / len(losses))
        assert job.stages[0].grad_norm > 0 and job.stages[0].samples_per_sec > 0
    assert compared.unread == ()
    # The figures of ranks that are gone are forgotten with those who have heard them.
    cluster.kill_and_await("trainer-0", "controller")
    assert client.get(second).stages[0].loss is None
    assert check(client.compare(first, second)) == compared
    text = str(compared)
    assert "stage-1 loss" in text and "spec.stages[0].train.learningRate  0.001" in text, text
    with pytest.raises(crescendo.NotFoundError):
        client.compare(first, NOT_THERE)
    with pytest.raises(ValueError, match="two jobs or more"):
        client.compare(first)


def test_what_a_comparison_cannot_read_is_told(followed, client, monkeypatch):
    job = followed[0][-1]
    monkeypatch.setattr("crescendo.client._MOST_HISTORY_BYTES", 10)
    compared = client.compare(job, job.job_id)
    assert compared.jobs[0].stages[0].mean_loss is None
    said = f"{job.job_id} stage-1: its last steps are not known: history.jsonl has "
    assert len(compared.unread) == 2 and compared.unread[0].startswith(said), compared.unread
    assert str(compared).endswith(compared.unread[1])


def test_a_matrix_of_jobs_is_submitted_once_and_found_by_its_label(cluster, client):
    matrix = {"seed": [1, 2], "stages[0].train.learningRate": [1e-4]}
    with pytest.raises(crescendo.InvalidSpecError, match=r"unknown field `sed`.*with spec\.sed=1"):
        client.submit_matrix(spec(steps=100_000, name="many"), {"sed": [1, 2]}, group="tried")
    assert client.list(labels={"group": "tried"}) == []
    jobs = client.submit_matrix(spec(steps=100_000, name="many"), matrix, group="tried")
    again = client.submit_matrix(spec(steps=100_000, name="many"), matrix, group="tried")
    assert [job.already_submitted for job in jobs + again] == [False, False, True, True]
    found = client.list(labels={"group": "tried"})
    assert [job.job_id for job in found] == [job.job_id for job in reversed(jobs)] == [job.job_id for job in reversed(again)]
    assert [job.name for job in jobs] == ["many-1", "many-2"] and jobs[0].labels == {"group": "tried"}
    assert client.list(labels={"group": "other"}) == [] != client.list(labels={"group": ""})
    paths = {difference.path: difference.values for difference in client.compare(*jobs).differences}
    assert paths == {"metadata.name": ("many-1", "many-2"), "spec.seed": (1, 2)}
    with pytest.raises(crescendo.CutShortError, match="another spec") as cut:
        client.submit_matrix(spec(steps=99, name="many"), matrix, group="tried")
    assert cut.value.submitted == () and cut.value.code == "ALREADY_EXISTS"
    # The command line makes the same jobs of the same spec.
    program = [pathlib.Path(BIN).resolve() / "crescendo", "submit", "--controller", cluster.address, "-"]
    program += ["--matrix", "seed=1,2", "--matrix", "stages[0].train.learningRate=1e-4", "--group", "tried"]
    text = spec(steps=100_000, name="many")
    done = subprocess.run(program, input=text, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.stdout.split() == [job.job_id for job in jobs], done.stderr
    for job in jobs:
        client.cancel(job)


def test_a_checkpoint_is_kept_and_a_job_deleted_and_remembered(client):
    job = client.submit(spec(steps=10, name="leaving"))
    *_, job = client.watch(job)
    assert job.state == JobState.SUCCEEDED and job.deletion is None, job.reason
    last = client.checkpoints(job)[-1]
    assert not last.kept and client.keep(last).kept and client.checkpoints(job)[-1].kept
    assert not client.release(last).kept and not client.checkpoints(job)[-1].kept
    before = client.lineage(job)
    assert (before.job_id, before.state, before.name) == (job.job_id, JobState.SUCCEEDED, "leaving")
    assert before.deletion is None and len(before.spec_sha256) == 64
    assert any("base.safetensors" in one for one in before.made_from)
    [ended] = before.final_checkpoints
    assert (ended.stage, ended.step, ended.path) == ("stage-1", 10, last.path)
    assert LORA in [file.name for file in ended.files]
    preview = client.preview_deletion(job, keep_checkpoints=True)
    parts = {part.part: part for part in preview.parts}
    assert preview.counted and parts["checkpoints"].stays and not parts["pairs"].stays
    assert parts["checkpoints"].size_bytes > 0 and client.get(job).deletion is None
    deletion = client.delete(job, keep_checkpoints=True)
    assert deletion.job_id == job.job_id and deletion.keeps == ("checkpoints",)
    gone = eventually("it is gone", lambda: (told := client.lineage(job).deletion) and told.gone_at and told)
    assert gone.phase == "gone" and gone.removed_objects > 0 and gone.kept_bytes > 0
    assert client.lineage(job).final_checkpoints == before.final_checkpoints
    with pytest.raises(crescendo.NotFoundError):
        client.get(job)


def test_every_problem_of_a_spec_is_told(client):
    bad = spec(steps=10).replace("nano,", "nino,").replace("steps: 10", "stepz: 10")
    with pytest.raises(crescendo.InvalidSpecError) as refused:
        client.submit(bad)
    problems = {problem.path: problem for problem in refused.value.problems}
    assert "spec.model.preset" in problems and len(problems) >= 2
    preset = problems["spec.model.preset"]
    assert bad.splitlines()[preset.line - 1][preset.column - 1 :].startswith(("nino", "preset"))
    assert "nano" in preset.message and str(preset) in str(refused.value)
    told = client.validate(bad)
    assert not told.ok and {problem.path for problem in told.problems} == set(problems)
    assert client.list(name_prefix="nino") == []


def test_a_spec_is_text_bytes_a_file_or_a_mapping(client, tmp_path):
    text = spec(steps=10)
    file = tmp_path / "job.yaml"
    file.write_text(text)
    told = client.validate(text)
    assert told.ok and "learningRate: 0.001" in told.resolved_spec_yaml
    from crescendo.comparison import load_spec

    mapping = load_spec(text)
    for same in (text.encode(), file, mapping):
        assert client.validate(same).resolved_spec_yaml == told.resolved_spec_yaml


def test_a_job_that_is_not_there_is_an_error_at_once(client, tmp_path):
    for call in [
        lambda: client.get(NOT_THERE),
        lambda: next(client.watch(NOT_THERE)),
        lambda: next(client.logs(NOT_THERE)),
        lambda: client.explain(NOT_THERE),
        lambda: client.pause(NOT_THERE),
        lambda: client.resume(NOT_THERE),
        lambda: client.retry(NOT_THERE),
        lambda: client.cancel(NOT_THERE),
        lambda: client.delete(NOT_THERE),
        lambda: client.lineage(NOT_THERE),
        lambda: client.fetch(NOT_THERE, tmp_path / "x"),
    ]:
        with pytest.raises(crescendo.NotFoundError, match=NOT_THERE) as refused:
            call()
        assert isinstance(refused.value, LookupError)
        if refused.value.__cause__ is not None:
            assert refused.value.code == "NOT_FOUND"
            assert isinstance(refused.value.__cause__, grpc.RpcError)
    with pytest.raises(crescendo.InvalidRequestError, match="job_id"):
        client.get("NO JOB")
    with pytest.raises(crescendo.InvalidRequestError, match="request_id"):
        client.submit(spec(steps=10), request_id="not one")
    with pytest.raises(ValueError, match="1 to 10000"):
        next(client.logs(NOT_THERE, tail=0))


def test_a_request_id_is_good_for_one_spec(client):
    job = client.submit(spec(steps=100_000, name="once"), request_id="python-once")
    client.cancel(job)
    with pytest.raises(crescendo.AlreadyExistsError, match="python-once"):
        client.submit(spec(steps=5, name="twice"), request_id="python-once")


def test_the_example_does_the_same(cluster, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(spec(steps=100_000, name="program"))
    example = ROOT / "examples/python/crescendo_example.py"
    program = [sys.executable, example, "--controller", cluster.address]

    def run(*args):
        return subprocess.run([*program, *args], capture_output=True, text=True, timeout=DEADLINE_SECONDS, cwd=tmp_path)

    job = run("submit", file).stdout.strip()
    assert job.startswith("program-")
    assert run("cancel", job).stdout == "cancelled\n"
    watched = run("watch", job)
    assert watched.returncode == 4 and f"{job}: cancelled" in watched.stdout
    failed = run("fetch", job, tmp_path / "lora")
    assert failed.returncode == 1 and "no checkpoint" in failed.stderr
    rates = run("rates", file, "1e-3", "2e-3", "--group", "program")
    assert [job.rpartition("-")[0] for job in rates.stdout.split()] == ["program-1", "program-2"], rates.stderr
    for job in rates.stdout.split():
        run("cancel", job)
    bad = run("submit", example)
    assert bad.returncode == 1 and "the spec is not valid" in bad.stderr
