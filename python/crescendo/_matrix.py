"""A job for each combination of values: the specs. Pure; the command line's `submit --matrix` makes the same."""

from __future__ import annotations

import copy
import itertools
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Most jobs of one matrix.
MOST_JOBS = 256
#: The label that all jobs of a matrix have.
LABEL = "group"
#: Sections at the top of a spec; any other path is below `spec`.
_TOP = ("apiVersion", "kind", "metadata", "spec")
#: Its names may have dots.
_LABELS = "metadata.labels."
_PART = re.compile(r"([A-Za-z0-9_-]+)((?:\[[0-9]+\])*)")
#: Of the characters that ids of jobs end with, and how many.
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_RANDOM_CHARACTERS = 6
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,63}")


@dataclass(frozen=True)
class Planned:
    """A job to be."""

    #: What it is submitted by, the same whenever it is planned for its group.
    request_id: str
    #: The values that it gets, by path from the top of the spec.
    combination: Mapping[str, object]
    spec: Mapping[str, object]


def plan(spec: object, matrix: Mapping[str, Sequence[object]], group: str | None) -> tuple[str, list[Planned]]:
    """The group, and its jobs; the values of the last path next to each other."""
    axes = _axes(matrix)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_JOBS:
        raise ValueError(f"the matrix asks for {count} jobs; at most {MOST_JOBS} are submitted at once")
    metadata = spec.get("metadata") if isinstance(spec, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(name, str):
        raise ValueError("the spec has no metadata.name, with which the names of the jobs begin")
    if group is None:
        group = f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))}"
    if not _GROUP.fullmatch(group):
        raise ValueError(f"group {group!r}: 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return group, [
        _planned(spec, group, f"{name}-{number}", number, dict(zip(axes, values, strict=True)))
        for number, values in enumerate(itertools.product(*axes.values()), 1)
    ]


def _planned(
    spec: Mapping[str, object], group: str, name: str, number: int, combination: Mapping[str, object]
) -> Planned:
    made = copy.deepcopy(dict(spec))
    for path, value in combination.items():
        _set(made, path, value)
    _set(made, "metadata.name", name)
    _set(made, f"{_LABELS}{LABEL}", group)
    return Planned(f"{group}.{number}", combination, made)


def _axes(matrix: Mapping[str, Sequence[object]]) -> dict[str, Sequence[object]]:
    axes: dict[str, Sequence[object]] = {}
    for given, values in matrix.items():
        path = _full(given)
        if isinstance(values, (str, bytes)) or not values:
            raise ValueError(f"{given}: expected a list of one value or more, not {values!r}")
        if path == "metadata.name":
            raise ValueError("the names of the jobs of a matrix are numbered: set metadata.name in the spec")
        if path == f"{_LABELS}{LABEL}":
            raise ValueError(f"the label {LABEL} of the jobs of a matrix is the argument `group`")
        for known in axes:
            shorter, longer = sorted((list(_steps(known)), list(_steps(path))), key=len)
            if longer[: len(shorter)] == shorter:
                raise ValueError(f"{given}: {known} is set too")
        axes[path] = values
    if not axes:
        raise ValueError("the matrix has no field")
    return axes


def _full(path: str) -> str:
    """From the top of the spec."""
    full = path if re.split(r"[.\[]", path)[0] in _TOP else f"spec.{path}"
    list(_steps(full))
    return full


def _steps(path: str) -> Iterator[str | int]:
    if path.startswith(_LABELS) and path != _LABELS:
        yield from ("metadata", "labels", path.removeprefix(_LABELS))
        return
    for part in path.split("."):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"{path!r} is not the path of a field, e.g. seed or stages[0].train.learningRate")
        yield found[1]
        yield from map(int, re.findall("[0-9]+", found[2]))


def _set(spec: dict[str, object], path: str, value: object) -> None:
    """Makes the sections that are not there. Whether there is such a field the controller says."""
    *way, last = _steps(path)
    at: object = spec
    for step, following in zip(way, [*way[1:], last], strict=True):
        if isinstance(step, str) and isinstance(at, dict) and at.get(step) is None and isinstance(following, str):
            at[step] = {}
        at = _inner(at, step, path)
    _inner(at, last, path, missing_is_fine=True)
    if isinstance(at, dict):
        at[str(last)] = value
    elif isinstance(at, list) and isinstance(last, int):
        at[last] = value


def _inner(at: object, step: str | int, path: str, *, missing_is_fine: bool = False) -> object:
    if isinstance(step, int):
        if not isinstance(at, list) or step >= len(at):
            raise ValueError(f"{path}: the spec has no such list, or no [{step}] of it")
        return at[step]
    if not isinstance(at, dict) or (step not in at and not missing_is_fine):
        raise ValueError(f"{path}: what {step} is to be set in is not a section of fields")
    return at.get(step)
