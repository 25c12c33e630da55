"""What the chart's notes tell people to type does what they say."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from chart import REGISTRY, merged, of_kind, rendered, rendered_text

BIN = os.environ.get("CRESCENDO_BIN")
#: In place of programs that want a cluster: what they were called with, one argument a line.
RECORDER = '#!/bin/sh\nprintf "%s\\n" "$0" "$@" >> "$RECORD"\n'


def notes(values):
    (text,) = [text for path, text in rendered_text(values).items() if path.endswith("NOTES.txt")]
    return text


def commands(text):
    return [line.strip() for line in text.splitlines() if re.match(r"  (crescendo|kubectl|helm) ", line)]


@pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no binaries to run")
@pytest.mark.parametrize("key", ["tokens.yaml", "list.yaml"])
def test_who_follows_the_notes_can_log_in(key, tmp_path):
    values = merged(REGISTRY, {"auth": {"tokens": {"key": key}}})
    text = notes(values)
    make, secret, upgrade = commands(text[text.index("NOBODY CAN LOG IN YET") : text.index("Wait until it runs")])
    for program in ("kubectl", "helm"):
        (tmp_path / program).write_text(RECORDER)
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}:{pathlib.Path(BIN).resolve()}:{os.environ['PATH']}"
    record = tmp_path / "record"
    env = {**os.environ, "PATH": path, "RECORD": str(record), "HOME": str(tmp_path)}
    subprocess.run(["bash", "-euc", "\n".join([make, secret, upgrade])], check=True, env=env, cwd=tmp_path, timeout=60, capture_output=True)
    (entry,) = yaml.safe_load((tmp_path / "tokens.yaml").read_text())
    assert entry["role"] == "admin" and (tmp_path / "token").read_text().startswith("crescendo_")
    said = record.read_text().splitlines()
    (made,) = [said[i + 1] for i, word in enumerate(said) if word == "generic"]
    assert f"--from-file={key}=tokens.yaml" in said
    (given,) = [word.partition("=")[2] for word in said if word.startswith("auth.tokens.existingSecret=")]
    assert made == given
    # And with that value the notes ask for nothing more, and controllers read the file.
    after = merged(values, {"auth": {"tokens": {"existingSecret": given}}})
    assert "NOBODY CAN LOG IN" not in notes(after)
    (controller,) = [item for item in of_kind(rendered(after), "StatefulSet") if item["metadata"]["name"] == "crescendo-controller"]
    spec = controller["spec"]["template"]["spec"]
    assert {"name": "CRESCENDO_AUTH_TOKENS", "value": f"/etc/crescendo/tokens/{key}"} in spec["containers"][0]["env"]
    assert [volume["secret"]["secretName"] for volume in spec["volumes"] if volume["name"] == "tokens"] == [made]


def exported(text):
    (line,) = [line.strip() for line in text.splitlines() if line.startswith("  export ")]
    return dict(word.split("=", 1) for word in shlex.split(line)[1:])


def test_the_notes_lead_to_every_controller():
    inside = notes(merged(REGISTRY, {"controller": {"replicas": 2}}))
    assert exported(inside)["CRESCENDO_CONTROLLER"] == "localhost:7070,localhost:7071"
    assert [line.split()[-2] for line in commands(inside) if "port-forward" in line] == ["7070:7070", "7071:7070"]
    hosts = ["a.example.com", "b.example.com"]
    outside = notes(
        merged(
            REGISTRY,
            {"controller": {"replicas": 2}, "tls": {"certManager": {"controllerNames": hosts}}},
            {"external": {"hosts": hosts, "port": 8443}, "networkPolicy": {"controllerClientNamespaces": ["ingress"]}},
        )
    )
    assert exported(outside)["CRESCENDO_CONTROLLER"] == "a.example.com:8443,b.example.com:8443"
    assert "port-forward" not in outside
