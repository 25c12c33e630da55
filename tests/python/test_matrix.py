"""The specs that a matrix makes, and what of them is submitted when something is in the way."""

import json

import crescendo
import pytest
import yaml
from conftest import spec
from crescendo import _matrix
from crescendo.comparison import load_spec
from crescendo.v1 import job_pb2, job_pb2_grpc
from test_wire import Code, serve

SPEC = {"metadata": {"name": "uno"}, "spec": {"seed": 7, "stages": [{"train": {"steps": 5, "adapter": None}}]}}


def test_a_matrix_is_every_combination_the_last_path_first():
    rates = [1e-5, 8e-5]
    group, planned = _matrix.plan(SPEC, {"seed": [1, 2], "spec.stages[0].train.learningRate": rates}, "g")
    assert group == "g" and [one.request_id for one in planned] == ["g.1", "g.2", "g.3", "g.4"]
    combinations = [tuple(one.combination.values()) for one in planned]
    assert combinations == [(1, 1e-5), (1, 8e-5), (2, 1e-5), (2, 8e-5)]
    assert list(planned[0].combination) == ["spec.seed", "spec.stages[0].train.learningRate"]
    assert planned[3].spec == {
        "metadata": {"name": "uno-4", "labels": {"group": "g"}},
        "spec": {"seed": 2, "stages": [{"train": {"steps": 5, "adapter": None, "learningRate": 8e-5}}]},
    }
    assert SPEC["spec"]["seed"] == 7 and "labels" not in SPEC["metadata"], "the spec itself stays"


def test_sections_that_are_not_there_are_made():
    paths = {"stages[0].train.adapter.rank": [4], "checkpoints.every": [9], "metadata.labels.example.com/team": ["a"]}
    _, [one] = _matrix.plan(SPEC, paths, "g")
    assert one.spec["spec"]["stages"][0]["train"]["adapter"] == {"rank": 4}
    assert one.spec["spec"]["checkpoints"] == {"every": 9}
    assert one.spec["metadata"]["labels"] == {"example.com/team": "a", "group": "g"}


def test_a_group_without_a_name_is_named_as_jobs_are():
    (one, _), (other, _) = (_matrix.plan(SPEC, {"seed": [1]}, None) for _ in range(2))
    assert one != other and len(one) == len("uno-7f3kq2") and one.startswith("uno-")


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ({}, "no field"),
        ({"seed": []}, "a list of one value or more"),
        ({"seed": "12"}, "a list of one value or more"),
        ({"seed": list(range(20)), "priority": list(range(20))}, "400 jobs; at most 256"),
        ({"seed": [1], "spec.seed": [2]}, "spec.seed is set too"),
        ({"stages[0].train": [{}], "stages[0].train.steps": [2]}, "is set too"),
        ({"metadata.name": ["a"]}, "numbered"),
        ({"metadata.labels.group": ["a"]}, "the argument `group`"),
        ({"stages[1].train.steps": [1]}, r"no such list, or no \[1\]"),
        ({"seed.more": [1]}, "not a section of fields"),
        ({"endpoints[0].name": [1]}, "not a section|no such list"),
        ({"a..b": [1]}, "not the path of a field"),
    ],
)
def test_what_makes_no_sense_is_refused(matrix, words):
    with pytest.raises(ValueError, match=words):
        _matrix.plan(SPEC, matrix, "g")
    with pytest.raises(ValueError, match="1 to 63"):
        _matrix.plan(SPEC, {"seed": [1]}, "not one")
    with pytest.raises(ValueError, match=r"no metadata\.name"):
        _matrix.plan({"spec": {}}, {"seed": [1]}, "g")


class Queue(job_pb2_grpc.JobServiceServicer):
    """Takes so many jobs, once each, and no spec with a seed of 13."""

    def __init__(self, room):
        self.room, self.taken = room, {}

    def SubmitJob(self, request, context):
        try:
            sent = load_spec(request.spec_yaml.decode())
        except yaml.YAMLError:
            return job_pb2.SubmitJobResponse(problems=[job_pb2.SpecProblem(line=1, column=4, message="YAML syntax")])
        if request.validate_only:
            problem = job_pb2.SpecProblem(line=1, column=9, path="spec.seed", message="bad luck")
            return job_pb2.SubmitJobResponse(problems=[problem] if sent["spec"].get("seed") == 13 else [])
        already = request.request_id in self.taken
        if not already and len(self.taken) == self.room:
            context.abort(Code.FAILED_PRECONDITION, "the queue is full")
        job = job_pb2.Job(job_id=sent["metadata"]["name"], labels=sent["metadata"]["labels"])
        self.taken[request.request_id] = job
        return job_pb2.SubmitJobResponse(job=job, already_submitted=already)


def test_all_are_submitted_or_none_and_the_rest_by_the_same_call():
    queue = Queue(room=2)
    with serve(queue) as address, crescendo.Client(address) as client:
        with pytest.raises(crescendo.InvalidSpecError) as refused:
            client.submit_matrix(spec(steps=5), {"seed": [1, 13, 2]}, group="g")
        [problem] = refused.value.problems
        assert (problem.line, problem.path, problem.message) == (0, "spec.seed", "bad luck (with spec.seed=13)")
        assert queue.taken == {}
        with pytest.raises(crescendo.CutShortError, match=r"full; .*2 of 3 jobs \(python-1, python-2\).*group='g'") as cut:
            client.submit_matrix(spec(steps=5), {"seed": [1, 2, 3]}, group="g")
        assert (cut.value.group, cut.value.code) == ("g", "FAILED_PRECONDITION")
        assert [job.job_id for job in cut.value.submitted] == ["python-1", "python-2"]
        assert isinstance(cut.value.__cause__, crescendo.WrongStateError)
        queue.room = 9
        jobs = client.submit_matrix(json.loads(json.dumps(load_spec(spec(steps=5)))), {"seed": [1, 2, 3]}, group="g")
        assert [job.already_submitted for job in jobs] == [True, True, False]
        assert list(queue.taken) == ["g.1", "g.2", "g.3"] and jobs[2].labels == {"group": "g"}
        with pytest.raises(crescendo.InvalidSpecError, match="1:4: YAML syntax$"):
            client.submit_matrix("a: [", {"seed": [1]})
