"""What `compare` makes of specs and figures: pure."""

import dataclasses
import json

import crescendo
import pytest
from crescendo.comparison import ABSENT, Ending, compare, differences, ending, load_spec
from crescendo.records import Job
from crescendo.v1 import job_pb2


def values(*specs):
    return {difference.path: difference.values for difference in differences([load_spec(spec) for spec in specs])}


def test_leaves_that_differ_are_told_with_their_paths():
    one = "a: 1\nb: {c: [1, 2, {d: x}], e: null}\nsame: [1]\n"
    other = "a: 2\nb: {c: [1, 3], e: null}\nsame: [1]\nmore: {}\n"
    assert values(one, other) == {
        "a": (1, 2),
        "b.c[1]": (2, 3),
        "b.c[2].d": ("x", ABSENT),
        "more": (ABSENT, {}),
    }
    assert values(one, one, other)["a"] == (1, 1, 2)
    assert values(one, one) == {}


def test_what_is_empty_differs_from_what_is_not_there_and_from_null():
    assert values("a: {}", "b: 1") == {"a": ({}, ABSENT), "b": (ABSENT, 1)}
    assert values("a: null", "{}") == {"a": (None, ABSENT), "": (ABSENT, {})}
    assert values("a: true", "a: 1") == {"a": (True, 1)}
    assert values("a: 1", "a: 1.0") == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("2E3", 2000.0), ("0.002", 0.002), ("-.5", -0.5), (".inf", float("inf")), ("7", 7), ("-3", -3),
        ("010", 10), ("off", "off"), ("no", "no"), ("y", "y"), ("true", True), ("False", False), ("~", None),
        ("", None), ("1_000", "1_000"), ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"), ("'1'", "1"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    """As the controller reads and writes them; PyYAML by itself takes 1e-5 for a word and off for a truth."""
    found = load_spec(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_a_history_gives_the_last_figures_and_the_means_of_the_last_steps():
    def line(step):
        early = step <= 50
        loss, seconds = (9.0, 9.0) if early else (step, 2.0)
        return json.dumps({"step": step, "loss": loss, "grad_norm": 0.5 / step, "seconds": seconds})

    lines = "\n".join(map(line, range(1, 151))).encode()
    assert ending(lines) == Ending(loss=150, mean_loss=100.5, grad_norm=0.5 / 150, step_seconds=2.0)
    skipped = b'{"step": 1, "loss": 2, "seconds": 0.5}\n{"step": 2, "loss": null, "grad_norm": null, "seconds": 0.5}\n'
    assert ending(skipped) == Ending(loss=None, mean_loss=2, grad_norm=None, step_seconds=0.5)
    assert ending(b"") == Ending(None, None, None, None)


def a_job(job_id, *stages, spec="{}", **fields):
    raw = job_pb2.Job(job_id=job_id, resolved_spec_yaml=spec, stages=stages, **fields)
    return Job._of(raw)


def test_jobs_of_different_stages_stand_side_by_side():
    stage = job_pb2.StageStatus(
        name="stage-1", step=5, steps_total=10, loss=0.25, grad_norm=1.5, samples_per_sec=3, pairs_committed=7, restarts=2
    )
    gone = job_pb2.StageStatus(name="stage-1", step=5, steps_total=10, pairs_committed=7, restarts=2)
    spec = "spec: {stages: [{train: {globalBatch: 8}}]}"
    two = a_job(
        "two", stage, job_pb2.StageStatus(name="stage-2", restarts=1), state=job_pb2.JOB_STATE_RUNNING, spec=spec
    )
    one = a_job("one", gone, state=job_pb2.JOB_STATE_FAILED, spec=spec)
    one.raw.started_at.FromSeconds(100)
    one.raw.finished_at.FromSeconds(160)
    one = Job._of(one.raw)
    last = Ending(loss=0.5, mean_loss=0.75, grad_norm=2.5, step_seconds=2.0)
    # What the ranks report goes before what is in the checkpoint.
    endings = {("one", "stage-1"): last, ("two", "stage-1"): dataclasses.replace(last, mean_loss=0.3)}
    compared = compare([two, one], endings, ["two stage-2: its last steps are not known: it was late"])
    assert [(job.job_id, job.restarts, job.duration_seconds) for job in compared.jobs] == [
        ("two", 3, None),
        ("one", 2, 60),
    ]
    ran, failed = compared.jobs[0].stages[0], compared.jobs[1].stages[0]
    assert (ran.loss, ran.samples_per_sec) == (0.25, 3) and (failed.loss, failed.samples_per_sec) == (0.5, 4)
    assert str(compared).splitlines() == [
        "                   two      one",
        "state              running  failed",
        "duration, s        ?        60",
        "restarts           3        2",
        "stage-1 steps      5/10     5/10",
        "stage-1 loss       0.25     0.5",
        "stage-1 mean loss  0.3      0.75",
        "stage-1 grad norm  1.5      2.5",
        "stage-1 samples/s  3        4",
        "stage-1 pairs      7        7",
        "stage-1 restarts   2        2",
        "stage-2 steps      0/0      -",
        "stage-2 loss       ?        -",
        "stage-2 mean loss  ?        -",
        "stage-2 grad norm  ?        -",
        "stage-2 samples/s  ?        -",
        "stage-2 pairs      0        -",
        "stage-2 restarts   1        -",
        "two stage-2: its last steps are not known: it was late",
    ]


def test_problems_say_where():
    problem = crescendo.Problem(3, 9, "spec.seed", "must be a number")
    assert str(problem) == "3:9: spec.seed: must be a number"
    assert str(crescendo.InvalidSpecError("x", [problem])) == f"the spec is not valid\n{problem}"
    assert str(crescendo.Problem(0, 0, "", "too long")) == "too long"
