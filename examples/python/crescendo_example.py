"""The client as a small program: python crescendo_example.py --help."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

import grpc

from crescendo_client import BadSpec, Client, Corrupt, Login, job_pb2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit a job, follow it, fetch its LoRA.")
    parser.add_argument("--controller", required=True, help="host:port, several separated by commas")
    parser.add_argument("--ca", type=pathlib.Path, help="root certificates of the controllers, PEM")
    parser.add_argument("--cert", type=pathlib.Path, help="certificate to log in with, PEM")
    parser.add_argument("--key", type=pathlib.Path, help="its private key, PEM")
    parser.add_argument("--token-file", type=pathlib.Path, help="file with the token (else: CRESCENDO_TOKEN)")
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="submit a spec; prints the job's id")
    submit.add_argument("spec", type=pathlib.Path)
    submit.add_argument("--request-id", help="submits with the same id are one submit")
    for name, what in [
        ("watch", "follow a job until it ends"),
        ("explain", "why a job waits or has failed"),
        ("cancel", "stop a job for good"),
        ("checkpoints", "list a job's checkpoints"),
    ]:
        commands.add_parser(name, help=what).add_argument("job")
    fetch = commands.add_parser("fetch", help="fetch the trained LoRA and verify it")
    fetch.add_argument("job")
    fetch.add_argument("file", type=pathlib.Path)
    fetch.add_argument("--object-store", help="file:///DIR or s3://BUCKET/PREFIX [default: as the cluster says]")
    return parser.parse_args()


def login(args: argparse.Namespace) -> Login:
    token = args.token_file.read_text().strip() if args.token_file else os.environ.get("CRESCENDO_TOKEN")
    return Login(ca=args.ca, cert=args.cert, key=args.key, token=token or None)


def state(job: job_pb2.Job) -> str:
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def main() -> int:
    args = arguments()
    with Client(args.controller.split(","), login(args)) as client:
        match args.command:
            case "submit":
                print(client.submit(args.spec.read_bytes(), args.request_id).job_id)
            case "watch":
                lost = lambda error: print(f"lost: {error.details() if error else 'closed'}", file=sys.stderr)
                for job in client.watch(args.job, on_lost=lost):
                    steps = ", ".join(f"{stage.name} {stage.step}/{stage.steps_total}" for stage in job.stages)
                    print(f"{job.job_id}: {state(job)} {steps} {job.reason}".rstrip(), flush=True)
                return 0 if job.state == job_pb2.JOB_STATE_SUCCEEDED else 4
            case "explain":
                told = client.explain(args.job)
                print("\n".join([told.summary, *(f"- {line}" for line in [*told.findings, *told.remedies])]))
            case "cancel":
                print(state(client.cancel(args.job)))
            case "checkpoints":
                for checkpoint in client.checkpoints(args.job):
                    marks = " final" * checkpoint.final + " damaged" * bool(checkpoint.damaged)
                    print(f"{checkpoint.stage} {checkpoint.step} {checkpoint.path}{marks}")
            case "fetch":
                print(client.fetch_lora(args.job, args.file, args.object_store))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BadSpec, Corrupt, LookupError, OSError) as error:
        sys.exit(f"error: {error}")
    except grpc.RpcError as error:
        sys.exit(f"error: {error.code().name}: {error.details()}")
