#!/usr/bin/env python3
"""What stands around a cluster: a bucket whose writers meet, a proxy that cuts quiet streams, an older grpcurl, TensorBoard.

    scripts/faults/around.py [--bin target/debug] [CASE...]

Each through real processes. The bucket wants SeaweedFS (`make setup`, or CRESCENDO_S3_SERVER), the streams haproxy on the path and
a Python with grpcio (`make python-test` makes one, or CRESCENDO_GRPC_PYTHON), the curve TensorBoard (CRESCENDO_TENSORBOARD). What is
not there is said, and is no failure. Exit code 1 if a case is not as it should be.
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time, urllib.parse, urllib.request

from cluster import ROOT, Cluster, free_port, ran, wait

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 180
# What proxies allow a stream by default, and how long it is watched.
PROXY_SECONDS, QUIET_SECONDS = 60, 70
# Of the job whose curve is watched: enough to go on while TensorBoard starts.
STEPS = 400
# Watches a job for as long as it takes, and says how often the stream was lost.
WATCH = """
import sys
sys.path.insert(0, sys.argv[1])
import crescendo
lost = []
with crescendo.Client(sys.argv[2]) as client:
    for job in client.watch(sys.argv[3], on_lost=lambda error: lost.append(repr(error))):
        print(job.state, flush=True)
print("lost", len(lost), *lost)
"""
# What grpcurl 1.8.6 asks first: the services, of reflection v1alpha.
REFLECT = """
import sys, grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    ask = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    print(next(ask(iter([b"\\x3a\\x01*"]), timeout=20)))
"""
SPEC = """apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  model: {{preset: nano, precision: f32, weights: {weights}}}
  resources: {{gpus: {gpus}}}
  checkpoints: {{every: 25, keepLast: 2}}
  stages:
    - name: stage-1
      references: 1
      data: {{source: compose, subjects: subjects, panel: 16, pairs: 8, minPairs: 8, unitSize: 4}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: {batch}}}
"""


class NotHere(Exception):
    """What a case needs is not on this machine."""


def found(what, *places):
    for place in places:
        path = place and (shutil.which(place) or (place if pathlib.Path(place).exists() else None))
        if path:
            return str(path)
    raise NotHere(f"{what} is not here")


def grpc_python():
    return found("a Python with grpcio", os.environ.get("CRESCENDO_GRPC_PYTHON"), ROOT / ".deps/python-venv/bin/python")


class Around:
    def __init__(self, folder, binaries):
        self.folder, self.binaries, self.cluster, self.others = folder, binaries, None, []

    def served(self):
        if self.cluster is None:
            (self.folder / "up").mkdir()
            self.cluster = Cluster(self.folder / "up", self.binaries)
        return self.cluster

    def controller(self):
        self.served()
        return json.loads((self.folder / "up/.crescendo/up.json").read_text())["controller"]

    def start(self, log, *command, **variables):
        out = open(self.folder / log, "wb")
        environment = {**os.environ, **variables}
        process = subprocess.Popen(list(map(str, command)), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env=environment)
        self.others.append(process)
        return process

    def stop(self):
        for process in reversed(self.others):
            process.terminate()
        for process in reversed(self.others):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.others.clear()

    def quiet_stream(self):
        """A job that has nothing to say is watched through a proxy with its usual limits; the stream is never cut."""
        haproxy, python = found("haproxy", "haproxy"), grpc_python()
        target, port = self.controller(), free_port()
        job_id = self.cluster.submit("quiet", SPEC.format(name="quiet", weights="base.safetensors", gpus=64, steps=1, batch=64))
        (self.folder / "haproxy.cfg").write_text(
            f"defaults\n  mode http\n  timeout connect 5s\n  timeout client {PROXY_SECONDS}s\n  timeout server {PROXY_SECONDS}s\n"
            f"frontend crescendo\n  bind 127.0.0.1:{port} proto h2\n  default_backend controllers\n"
            f"backend controllers\n  server controller-0 {target} proto h2\n")
        self.start("haproxy.log", haproxy, "-db", "-f", "haproxy.cfg")
        builder = found("the client's build environment", None, ROOT / ".deps/python-build-venv/bin/python")
        subprocess.run([builder, ROOT / "python/hatch_build.py"], check=True)
        watching = self.start("watch.log", python, "-c", WATCH, ROOT / "python", f"127.0.0.1:{port}", job_id)
        seen = lambda: (self.folder / "watch.log").read_text().split()
        wait(seen, 30, "the job is seen through the proxy")
        time.sleep(QUIET_SECONDS)
        self.cluster.cancel(job_id)
        assert watching.wait(60) == 0, (self.folder / "watch.log").read_text()[-300:]
        assert seen()[-2:] == ["lost", "0"], " ".join(seen())[:300]
        return f"not cut within {QUIET_SECONDS} s"

    def reflection(self):
        """Reflection v1alpha, which grpcurl of Debian and PyPI ask for."""
        done = subprocess.run([grpc_python(), "-c", REFLECT, self.controller()], capture_output=True, text=True)
        assert "crescendo.v1.JobService" in done.stdout, (done.stdout + done.stderr)[-300:]
        return "v1alpha lists the services"

    def curve(self):
        """TensorBoard, open before the second checkpoint: every step is shown, once."""
        program = found("TensorBoard", os.environ.get("CRESCENDO_TENSORBOARD"), ROOT / ".deps/tensorboard-venv/bin/tensorboard",
                        "tensorboard")
        self.served()
        job_id = self.cluster.submit("curve", SPEC.format(name="curve", weights="base.safetensors", gpus=1, steps=STEPS, batch=2))
        root = next((self.folder / "up/.crescendo").glob("objects*"))
        events = lambda: list(root.glob(f"jobs/{job_id}/**/*tfevents*"))
        wait(events, LIMIT, "the first event file")
        port = free_port()
        self.start("board.log", program, "--host", "127.0.0.1", "--port", port, "--logdir", root / "jobs" / job_id)
        run = urllib.parse.quote(str(events()[0].parent.relative_to(root / "jobs" / job_id)), safe="")

        def shown(least):
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run={run}&tag=train%2Floss"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    steps = [point[1] for point in json.load(answer)]
            except OSError:
                return None
            return steps if len(steps) >= least else None

        begun = len(wait(lambda: shown(1), LIMIT, "TensorBoard shows the first checkpoint's steps"))
        assert begun < STEPS, "the job was over before TensorBoard was open"
        steps = wait(lambda: shown(STEPS), LIMIT, "TensorBoard shows every step")
        assert steps == list(range(1, STEPS + 1)), steps
        return f"steps 1 to {begun}, then to {STEPS}"

    def bucket(self):
        """A job in a bucket whose conditional writes are answered with 409 at first ends like any other."""
        weed = found("SeaweedFS", os.environ.get("CRESCENDO_S3_SERVER"), ROOT / ".deps/venv/bin/weed", "weed")
        folder = self.folder / "bucket"
        (folder / "library/subjects").mkdir(parents=True)
        self.served()
        for picture in (self.folder / "up/subjects").iterdir():
            shutil.copy(picture, folder / "library/subjects")
        os.symlink(ROOT / "assets/nano/base.safetensors", folder / "library/base.safetensors")
        key = {"accessKey": "test-key", "secretKey": "test-secret"}
        people = [{"name": "test", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]
        (folder / "s3.json").write_text(json.dumps({"identities": people}))
        names = "s3.port filer.port s3.port.grpc filer.port.grpc master.port master.port.grpc volume.port volume.port.grpc".split()
        ports = {name: free_port() for name in names}
        self.start("weed.log", weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-iam=false", "-s3.port.iceberg=0",
                   "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=16", f"-dir={folder}",
                   f"-s3.config={folder}/s3.json", *(f"-{name}={port}" for name, port in ports.items()))

        def made():
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{ports['filer.port']}/buckets/faults/probe", b"x", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                return True
            except OSError:
                return False

        wait(made, 90, "SeaweedFS serves")
        proxy, controller = free_port(), f"127.0.0.1:{free_port()}"
        self.start("proxy.log", sys.executable, HERE / "bucket_proxy.py", proxy, f"127.0.0.1:{ports['s3.port']}", folder / "requests")
        variables = dict(AWS_ACCESS_KEY_ID="test-key", AWS_SECRET_ACCESS_KEY="test-secret", AWS_REGION="us-east-1",
                         AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy}", AWS_ALLOW_HTTP="true", NO_PROXY="127.0.0.1")
        dev = ("--dev", "--metrics-listen", "127.0.0.1:0")
        node = (*dev, "--listen", "127.0.0.1:0", "--controller", controller, "--library-root", folder / "library", "--node-id")
        self.start("controller.log", self.binaries / "crescendo-controller", *dev, "--listen", controller, "--store",
                   f"embedded:{folder}/store", "--object-store", "s3://faults/cluster", **variables)
        self.start("curator.log", self.binaries / "crescendo-curator-node", *node, "curator-0", **variables)
        self.start("trainer.log", self.binaries / "crescendo-trainer-node", "agent", *node, "trainer-0", "--slots", "1", "--device",
                   "cpu", "--scratch", folder / "scratch", **variables)
        spec = folder / "job.yaml"
        spec.write_text(SPEC.format(name="bucket", weights="base.safetensors", gpus=1, steps=30, batch=2))
        tool = lambda *args: subprocess.run([self.binaries / "crescendo", *args, "--controller", controller], capture_output=True,
                                            text=True, cwd=folder, stdin=subprocess.DEVNULL)
        job_id = wait(lambda: tool("submit", spec).stdout.split()[:1], 60, "the job is taken")[0]

        def ended():
            job = json.loads(tool("get", job_id, "-o", "json").stdout or "{}")
            assert not job.get("state", "").lower().endswith("failed"), job["reason"]
            return job.get("state", "").lower().endswith("succeeded")

        wait(ended, LIMIT, "the job succeeds")
        collected = tool("objects", "collect", "--dry-run")
        assert collected.returncode == 0, f"leftovers cannot be looked for: {collected.stdout}{collected.stderr}"[:400]
        met = (folder / "requests").read_text().count("409 ")
        assert met >= 2, f"{met} conditional writes met another"
        return f"succeeded; {met} writes met another at first"

    def all(self):
        yield "bucket", self.bucket
        yield "reflection", self.reflection
        yield "curve", self.curve
        yield "quiet-stream", self.quiet_stream


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/debug", help="folder of the programs")
    parser.add_argument("cases", nargs="*", help="cases to run [default: all]")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        around = Around(pathlib.Path(folder), args.bin.resolve())
        try:
            for name, case in around.all():
                if args.cases and name not in args.cases:
                    continue
                try:
                    failed += not ran(name, case)
                except NotHere as missing:
                    print(f"{name:32}         not run: {missing}", flush=True)
                finally:
                    around.stop()
        finally:
            if around.cluster:
                around.cluster.close()
    return 1 if failed else 0


sys.exit(main())
