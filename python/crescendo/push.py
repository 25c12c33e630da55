"""Hands what a job has trained to the Hugging Face Hub: the program `crescendo-push`, and functions for others.

A folder is written first: the weights, a model card, the resolved spec, the history of each stage, workflows for
ComfyUI, scores and pictures if there are any. `--dry-run` leaves it at that.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from crescendo import _cli, _objects, workflow
from crescendo._card import Handed, card, is_sealed, public_spec
from crescendo.client import Client
from crescendo.comparison import Ending, ending
from crescendo.errors import CorruptError, CrescendoError, NotFoundError
from crescendo.records import Job

__all__ = ["HubError", "main", "upload", "write"]

PROGRAM = "crescendo-push"
CARD = "README.md"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_WEIGHTS = (_objects.LORA_FILE, _objects.MODEL_FILE, "ema.safetensors")


class HubError(CrescendoError):
    """The Hub is not there, or refuses."""


def write(
    client: Client,
    job_id: str,
    folder: pathlib.Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    license: str | None = None,  # noqa: A002
    base_model: str | None = None,
    report: pathlib.Path | None = None,
    pictures: Sequence[pathlib.Path] = (),
    on_trouble: Callable[[str], None] = _cli.nobody,
) -> Handed:
    """Writes the folder, which must be new or empty: of the newest checkpoint of the last stage, unless told otherwise.

    report: the folder that `crescendo report` has written of the same job.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    job = client.get(job_id)
    checkpoint = _objects.choose(client.checkpoints(job), job.job_id, stage, step)
    told = _report(report, job) if report is not None else None
    for picture in pictures:
        if picture.suffix.lower() not in _PICTURES:
            raise ValueError(f"{picture} is no picture: {', '.join(_PICTURES)} are")
    weights = [file.name for file in checkpoint.files if file.name in _WEIGHTS]
    if not weights:
        raise NotFoundError(f"{checkpoint.path} has no weights")
    for name in weights:
        client.fetch(checkpoint, folder / name, name=name)
    if _objects.LORA_FILE in weights:
        try:
            workflow.write(workflow.drawing(job, checkpoint.stage, _objects.LORA_FILE), folder)
        except workflow.NoWorkflowError as error:
            on_trouble(f"no workflow for ComfyUI is written: {error}")
    endings = _histories(client, job, folder, on_trouble)
    (folder / "resolved_spec.yaml").write_text(public_spec(job.resolved_spec_yaml))
    grid = [report / "grid.png"] if report is not None and (report / "grid.png").is_file() else []
    shown = _copy([*grid, *pictures], folder)
    if told is not None:
        (folder / "report.json").write_text(json.dumps(told, indent=2) + "\n")
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    handed = Handed(job, checkpoint, files, endings, base_model, license, told, shown)
    (folder / CARD).write_text(card(handed))
    return handed


def _report(report: pathlib.Path, job: Job) -> dict[str, Any]:
    told = json.loads((report / "report.json").read_text())
    if not isinstance(told, dict) or told.get("job_id") != job.job_id:
        raise ValueError(f"{report} is not a report of {job.job_id}")
    return told


def _histories(client: Client, job: Job, folder: pathlib.Path, on_trouble: Callable[[str], None]) -> dict[str, Ending]:
    endings = {}
    for stage in job.stages:
        if stage.checkpoint_step > 0:
            to = folder / "history" / f"{stage.name}.jsonl"
            try:
                client.fetch(job, to, stage=stage.name, name=_objects.HISTORY_FILE)
                endings[stage.name] = ending(to.read_bytes())
            except (CorruptError, NotFoundError) as error:
                on_trouble(f"{stage.name}: its history is left out: {error}")
    return endings


def _copy(pictures: Sequence[pathlib.Path], folder: pathlib.Path) -> list[str]:
    """By numbers: names are those of somebody's machine."""
    shown = []
    for number, picture in enumerate(pictures, start=1):
        to = folder / "pictures" / f"{number:02}{picture.suffix.lower()}"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, to)
        shown.append(str(to.relative_to(folder)))
    return shown


def upload(folder: pathlib.Path, repo: str, message: str, *, public: bool = False, replace_card: bool = False) -> str:
    """Makes the repository if there is none, private unless `public`, and commits the folder; says where it is.

    A card that somebody has changed there stays as it is, unless `replace_card`.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
        import huggingface_hub.errors  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    except ImportError as lacking:
        raise HubError("the Hub is reached with its client: pip install 'crescendo-client[hub]'") from lacking
    hub: Any = huggingface_hub
    api = hub.HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        kept = not replace_card and _card_is_theirs(hub, repo)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, ignore_patterns=[CARD] if kept else None
        )
    # What is below the client (xet) raises errors of all kinds.
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError, RuntimeError, ValueError) as error:
        # Where only xet is refused, the client does not go on to LFS by itself.
        hint = "; HF_HUB_DISABLE_XET=1 sends by LFS instead" if "xet" in str(error) else ""
        raise HubError(f"{repo}: {error}{hint}") from error
    left = "; the card was changed there, and stays: --replace-card replaces it" if kept else ""
    return f"{commit.commit_url}{left}"


def _card_is_theirs(hub: Any, repo: str) -> bool:  # noqa: ANN401
    with tempfile.TemporaryDirectory(prefix="crescendo-") as folder:
        try:
            there = hub.hf_hub_download(repo, CARD, local_dir=folder)
        except hub.errors.EntryNotFoundError:
            return False
        return not is_sealed(pathlib.Path(there).read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition("\n")[0])
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument("--to", required=True, metavar="hf:USER/NAME", help="the repository, made if there is none")
    parser.add_argument("--dry-run", action="store_true", help="write the folder only; wants --folder")
    parser.add_argument("--folder", type=pathlib.Path, metavar="DIR", help="where the folder is written, and stays")
    parser.add_argument("--stage", help="of this stage [default: the last one that has a checkpoint]")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="of this step [default: the last one]")
    parser.add_argument("--license", metavar="NAME", help="as the Hub names it, e.g. apache-2.0")
    parser.add_argument("--base-model", metavar="USER/NAME", help="the base on the Hub [default: by the preset]")
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR", help="scores and pictures of `crescendo report`")
    parser.add_argument(
        "--picture",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="for the card; as many as given",
    )
    parser.add_argument("--public", action="store_true", help="a new repository is not private")
    parser.add_argument("--replace-card", action="store_true", help="also a card that was changed there")
    _cli.add_controller(parser)
    options = parser.parse_args(arguments)
    kind, _, repo = options.to.partition(":")
    if kind != "hf" or repo.count("/") != 1 or not all(repo.split("/")):
        parser.error("--to is hf:USER/NAME")
    if options.dry_run and options.folder is None:
        parser.error("--dry-run wants --folder: where to write to")
    try:
        with tempfile.TemporaryDirectory(prefix="crescendo-") as temporary:
            folder = options.folder or pathlib.Path(temporary, "model")
            with _cli.connect(options.controller) as client:
                handed = write(
                    client,
                    options.job,
                    folder,
                    stage=options.stage,
                    step=options.checkpoint,
                    license=options.license,
                    base_model=options.base_model,
                    report=options.report,
                    pictures=options.picture,
                    on_trouble=lambda line: _cli.warn(PROGRAM, line),
                )
            if options.dry_run:
                _cli.say(f"{folder} has what would go to {repo}")
                return 0
            checkpoint = handed.checkpoint
            message = f"{checkpoint.job_id}, step {checkpoint.step} of {checkpoint.stage}"
            where = upload(folder, repo, message, public=options.public, replace_card=options.replace_card)
            _cli.say(where)
            return 0
    except KeyboardInterrupt:
        return 130
    except (CrescendoError, ValueError, OSError) as error:
        _cli.warn(PROGRAM, f"error: {error}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
