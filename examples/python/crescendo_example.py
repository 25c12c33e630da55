"""The Python client as a small program: python crescendo_example.py --help."""

from __future__ import annotations

import argparse
import pathlib
import sys

from crescendo import Client, CrescendoError, JobState


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit a job, follow it, fetch its LoRA.")
    parser.add_argument("--controller", required=True, help="host:port, several separated by commas")
    parser.add_argument("--ca", type=pathlib.Path, help="root certificates of the controllers, PEM")
    parser.add_argument("--token-file", type=pathlib.Path, help="file with the token")
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="submit a spec; prints the job's id")
    submit.add_argument("spec", type=pathlib.Path)
    submit.add_argument("--request-id", help="submits with the same id are one submit")
    for name, what in [
        ("watch", "follow a job until it ends"),
        ("explain", "why a job waits or has failed"),
        ("cancel", "stop a job for good"),
    ]:
        commands.add_parser(name, help=what).add_argument("job")
    fetch = commands.add_parser("fetch", help="fetch the trained LoRA and verify it")
    fetch.add_argument("job")
    fetch.add_argument("file", type=pathlib.Path)
    compare = commands.add_parser("compare", help="what differs between jobs, and what came of it")
    compare.add_argument("jobs", nargs="+", metavar="job")
    rates = commands.add_parser(
        "rates", help="submit a job for each learning rate of the first stage; prints their ids"
    )
    rates.add_argument("spec", type=pathlib.Path)
    rates.add_argument("rates", nargs="+", type=float, metavar="rate")
    rates.add_argument("--group", help="the same group again submits none twice")
    return parser.parse_args()


def follow(client: Client, job_id: str) -> int:
    """Prints the job at every change; the exit code says how it ended."""
    state = JobState.UNKNOWN
    for job in client.watch(job_id, on_lost=lambda error: print(f"lost: {error}", file=sys.stderr)):
        steps = ", ".join(f"{stage.name} {stage.step}/{stage.steps_total}" for stage in job.stages)
        print(f"{job.job_id}: {job.state} {steps} {job.reason}".rstrip(), flush=True)
        state = job.state
    return 0 if state == JobState.SUCCEEDED else 4


def main() -> int:
    args = arguments()
    with Client(args.controller, ca=args.ca, token_file=args.token_file) as client:
        match args.command:
            case "submit":
                print(client.submit(args.spec, request_id=args.request_id).job_id)
            case "watch":
                return follow(client, args.job)
            case "explain":
                print(client.explain(args.job))
            case "cancel":
                print(client.cancel(args.job, "cancelled from Python").state)
            case "fetch":
                print(client.fetch(args.job, args.file))
            case "compare":
                print(client.compare(*args.jobs))
            case "rates":
                matrix = {"stages[0].train.learningRate": args.rates}
                for job in client.submit_matrix(args.spec, matrix, group=args.group):
                    print(job.job_id)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CrescendoError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
