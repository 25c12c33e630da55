#!/usr/bin/env python3
"""Every way in which endpoint.py answers, as a judge and as a writer of prompts, through real processes.

    scripts/faults/endpoints.py [--bin target/debug] [--role judge|writer] [--through VENV/bin/litellm] [WAY...]

Starts a cluster with `crescendo up` in a temporary folder, submits a job a way and role, and checks how it ends: pairs,
a failed job with the server's words after few requests, or a wait that `explain` names while another job gets its pairs.
Then the same spec with a model that does all right has to get its pairs. With `--through`, LiteLLM's proxy (PyPI:
`litellm[proxy]`) stands in between, as many have it. Standard library only; exit code 1 if a row is not as it should be.
"""
import argparse, json, os, pathlib, re, subprocess, sys, tempfile, urllib.request

import cluster
from cluster import ROOT, ran, wait

HERE = pathlib.Path(__file__).resolve().parent
# How a way ends, and what has to be said then: pairs come, the job fails, or its curator waits.
JUDGE = {
    **{way: ("pairs", "") for way in (
        "right no-temperature no-max-tokens parts think reasoning-field fence-and-prose float-scores string-scores "
        "extra-field no-usage").split()},
    "length": ("fails", "while it was still thinking"),
    "over": ("fails", "the score of part 1"),
    "ok-401": ("fails", "inner 401"),
    "ok-400": ("fails", "inner 400"),
    "quota": ("fails", "no credit left"),
    "unknown-model": ("fails", "no such model"),
    "no-pictures": ("fails", "pictures are not taken"),
    "ok-429": ("waits", "inner 429"),
    "retry-date": ("waits", "slow down"),
}
# A writer sends no pictures and gives no scores.
WRITER = {**JUDGE, "over": ("pairs", ""), "no-pictures": ("pairs", "")}
# What a proxy of LiteLLM makes of some: it takes no content in parts, and of an error it keeps the words and the status alone.
THROUGH = {
    "parts": ("waits", "Invalid response object"),
    "quota": ("fails", "exceeded your current quota"),
    "ok-429": ("waits", "inner 429"),
}
MOST_REQUESTS = 150
LIMIT = 180


def spec(name, port, model, role):
    if role == "judge":
        data = ("{source: compose, subjects: subjects, panel: 16, pairs: 8, minPairs: 8, unitSize: 8, "
                "filter: {judge: {endpoint: vlm, imageSide: 32}}}")
    elif role == "writer":
        data = ("{source: generate, panel: 16, pairs: 4, minPairs: 4, unitSize: 4, draw: {steps: 1}, "
                "prompts: {endpoint: vlm, taxonomy: taxonomy.yaml, styles: [realistic], subjectsPerCategory: 2, scenesPerSubject: 2}}")
    else:
        data = "{source: compose, subjects: subjects, panel: 16, pairs: 8, minPairs: 8, unitSize: 8}"
    endpoints = "" if role == "none" else (
        f"  endpoints: [{{name: vlm, url: 'http://127.0.0.1:{port}/v1', model: '{model}', tries: 2}}]\n")
    return (f"apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n"
            f"  model: {{preset: nano, precision: f32, weights: base.safetensors}}\n  resources: {{gpus: 64}}\n{endpoints}"
            f"  stages:\n    - name: stage-1\n      references: 1\n      data: {data}\n"
            f"      train: {{adapter: {{rank: 4}}, steps: 1, globalBatch: 64}}\n")


def litellm(program, folder, port, url, model):
    """LiteLLM's proxy on `port`, which hands requests for `model` on to the server at `url`."""
    (folder / "litellm.yaml").write_text(json.dumps({
        "model_list": [{"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "none"}}],
        # Each way comes once: it is not to be set aside for that.
        "router_settings": {"disable_cooldowns": True},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }))
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    log = open(folder / "litellm.log", "wb")
    command = [program, "--config", folder / "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **variables})

    def serves():
        assert server.poll() is None, (folder / "litellm.log").read_text()[-500:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
            return True
        except OSError:
            return False

    wait(serves, 120, "LiteLLM serves")
    return server


class Cluster(cluster.Cluster):
    """With an endpoint beside it."""

    def __init__(self, folder, binaries, gateway=None):
        self.endpoint = self.port = cluster.free_port()
        server = [sys.executable, HERE / "endpoint.py", str(self.port), folder / "endpoint.log", folder / "conversations.jsonl"]
        # It complains of every curator that ends a connection early.
        self.servers = [subprocess.Popen(server, stderr=subprocess.DEVNULL)]
        if gateway:
            self.port = cluster.free_port()
            self.servers.append(litellm(gateway, folder, self.port, f"http://127.0.0.1:{self.endpoint}/v1", "judge:*"))
        super().__init__(folder, binaries)
        (folder / "taxonomy.yaml").write_text("[mug, sword]\n")

    def count(self, way):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.endpoint}/count") as counts:
            return json.load(counts).get(way, 0)

    def submit(self, name, model, role):
        return super().submit(name, spec(name, self.port, model, role))

    def ended(self, job_id):
        """The state of a job that failed or has all its pairs."""
        job = self.job(job_id)
        if "no_divider" in job["reason"]:
            return "pairs", ""
        if job["state"].lower().endswith("failed"):
            return "fails", job["reason"]
        # What the small base draws has seldom two panels: that it was drawn says that there were prompts.
        made = int(job["stages"][0]["pairsCommitted"]) > 0 or "no_divider" in self.run("explain", job_id)
        return ("pairs", "") if made else None

    def close(self):
        super().close()
        for server in self.servers:
            server.terminate()
            server.wait(30)


def row(cluster, way, role, wanted, words):
    before = cluster.count(way)
    job_id = cluster.submit(f"{role}-{way}"[:40], f"judge:{way}", role)
    if wanted == "waits":
        told = lambda: next(iter(re.findall(f".*waits and goes on by itself.*{words}.*", cluster.run("explain", job_id))), None)
        line = wait(told, LIMIT, f"explain says {words!r}")
        assert "add curators" not in cluster.run("explain", job_id), "explain advises what would not help"
        other = cluster.submit(f"other-{way}"[:40], "", "none")
        assert wait(lambda: cluster.ended(other), LIMIT, "another job gets its pairs") == ("pairs", "")
        cluster.cancel(other)
        assert cluster.job(job_id)["state"].lower().endswith(("queued", "running", "placing")), "an outage fails no job"
        said = line.strip()
    else:
        ended, said = wait(lambda: cluster.ended(job_id), LIMIT, "the job gets pairs or fails")
        assert ended == wanted, f"{ended}: {said}"
        assert words in said, f"{words!r} is not in: {said}"
    requests = cluster.count(way) - before
    if wanted == "fails":
        assert requests <= MOST_REQUESTS, f"{requests} requests"
        assert said in cluster.run("explain", job_id), "explain does not say why"
    cluster.cancel(job_id)
    mended = cluster.submit(f"{role}-{way}-m"[:40], "judge:right", role)
    ended = wait(lambda: cluster.ended(mended), LIMIT, "the mended job gets pairs")
    assert ended == ("pairs", ""), f"mended: {ended}"
    cluster.cancel(mended)
    return f"{wanted}, {requests} requests {said[:160]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/debug", help="folder of the programs")
    parser.add_argument("--role", choices=("judge", "writer"), help="this one alone")
    parser.add_argument("--through", type=pathlib.Path, metavar="LITELLM", help="LiteLLM's program, to put its proxy in between")
    parser.add_argument("ways", nargs="*", help="ways to run [default: all]")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(pathlib.Path(folder), args.bin.resolve(), args.through and args.through.absolute())
        try:
            for role, ways in (("judge", JUDGE), ("writer", WRITER)):
                for way, (wanted, words) in ways.items():
                    if args.through:
                        wanted, words = THROUGH.get(way, (wanted, words))
                    if (not args.ways or way in args.ways) and args.role in (None, role):
                        failed += not ran(f"{role} {way}", lambda: row(cluster, way, role, wanted, words))
        finally:
            cluster.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
