"""What the programs of this package share: to which controller, and how they speak."""

from __future__ import annotations

import argparse
import os
import sys

from crescendo.client import Client


def add_controller(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says where the cluster is."""
    parser.add_argument(
        "--controller",
        metavar="HOST:PORT",
        help="the controller, or several with commas [default: CRESCENDO_CONTROLLER]; logins are those of the"
        " command line's variables, CRESCENDO_TOKEN_FILE and so on",
    )


def connect(controller: str | None) -> Client:
    """By the environment, but for the address if one is given."""
    return Client.from_environment({**os.environ, "CRESCENDO_CONTROLLER": controller} if controller else None)


def nobody(line: str) -> None:
    """Is told, and does nothing."""


def say(line: str) -> None:
    """To whoever started the program."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def warn(program: str, line: str) -> None:
    """The same for what is wrong."""
    sys.stderr.write(f"{program}: {line}\n")
