#!/usr/bin/env python3
"""Writes where a release's images are into the chart's values.yaml, and leaves its comments as they are:

    scripts/pin_images.py --registry ghcr.io/OWNER/crescendo controller=sha256:... trainer=sha256:... curator=sha256:...
    scripts/pin_images.py --check 0.1.0      # is this the version of the chart, of its app and of the workspace?
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("controller", "trainer", "curator")


def pinned(values, registry, digests):
    """The text of values.yaml with these."""
    values, count = re.subn(r'(?m)^(image:\n(?:  #.*\n)*  registry:) ""$', rf'\1 "{registry}"', values)
    if count != 1:
        raise SystemExit("values.yaml: image.registry is not empty, or not where it was")
    for kind, digest in digests.items():
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise SystemExit(f"{kind}: {digest!r} is no digest (sha256:...)")
        # From the kind's line below `images:` to its first empty digest.
        pattern = rf'(?ms)(^images:\n.*?^  {kind}:\n(?:    [^\n]*\n)*?    digest:) ""$'
        values, count = re.subn(pattern, rf"\1 {digest}", values, count=1)
        if count != 1:
            raise SystemExit(f"values.yaml: images.{kind}.digest is not empty, or not where it was")
    return values


def versions():
    chart = (ROOT / "helm/crescendo/Chart.yaml").read_text()
    cargo = (ROOT / "Cargo.toml").read_text()
    return {
        "Chart.yaml, version": re.search(r"(?m)^version: (\S+)$", chart)[1],
        "Chart.yaml, appVersion": re.search(r'(?m)^appVersion: "(\S+)"$', chart)[1],
        "Cargo.toml, version": re.search(r'(?m)^version = "([^"]+)"', cargo)[1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="VERSION")
    parser.add_argument("--registry")
    parser.add_argument("--values", type=pathlib.Path, default=ROOT / "helm/crescendo/values.yaml")
    parser.add_argument("digests", nargs="*", metavar="KIND=DIGEST")
    given = parser.parse_args()
    if given.check:
        wrong = [f"{where} is {version}" for where, version in versions().items() if version != given.check]
        sys.exit(f"the tag says {given.check}: {', '.join(wrong)}" if wrong else 0)
    digests = dict(pair.partition("=")[::2] for pair in given.digests)
    if set(digests) != set(KINDS) or not given.registry:
        parser.error(f"give --registry, and a digest for each of {', '.join(KINDS)}")
    given.values.write_text(pinned(given.values.read_text(), given.registry, digests))


if __name__ == "__main__":
    main()
