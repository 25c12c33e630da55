"""A Kubernetes API of this machine's own: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes on
loopback, in one folder, gone when the test ends. There are no machines behind it unless a test starts some."""

import contextlib
import ctypes
import json
import os
import pathlib
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import programs

#: Where a cluster gives its Services addresses; nothing of this machine is reached by them.
SERVICE_RANGE = "10.96.0.0/16"
#: Where the API has what is asked for again and again. Starting kubectl for it takes a hundred times the work.
PATHS = {
    "pod": "api/v1/{}pods",
    "pvc": "api/v1/{}persistentvolumeclaims",
    "secret": "api/v1/{}secrets",
    "events": "api/v1/{}events",
    "node": "api/v1/nodes",
    "serviceaccount": "api/v1/{}serviceaccounts",
    "statefulset": "apis/apps/v1/{}statefulsets",
    "hpa": "apis/autoscaling/v2/{}horizontalpodautoscalers",
}
#: Longest time for a part of it to be ready, on a busy machine; 5 on an idle one.
START_SECONDS = 180
#: Who calls the API, by the name and the groups that they have in it.
USERS = {"admin": "system:masters", "system:kube-controller-manager": "", "system:kube-scheduler": ""}


class Failed(AssertionError):
    """A command that ended with an error: what it said."""


def eventually(what, condition, seconds=60):
    """The first true value of `condition`, asked again and again, less and less often; a command of it that fails is a no."""
    end, pause = time.monotonic() + seconds, 0.1
    while True:
        why = ""
        try:
            if found := condition():
                return found
        except Failed as error:
            why = f": {error}"
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}{why}")
        time.sleep(pause)
        pause = min(2 * pause, 1)


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def spawn(command, log, end=signal.SIGKILL, **options):
    """A process that writes to `log`, and gets the signal `end` when the tests end, however they do (prctl's PR_SET_PDEATHSIG).
    kube-apiserver would not end on SIGTERM once its etcd is gone."""
    command = [str(part) for part in command]
    libc = ctypes.CDLL(None)
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=lambda: libc.prctl(1, end), **options)


def run(command, env=None, stdin=None, seconds=120):
    done = subprocess.run(
        [str(part) for part in command], env=env, input=stdin, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        what = next((part for part in map(str, command[1:]) if not part.startswith("-")), "")
        raise Failed(f"{pathlib.Path(str(command[0])).name} {what}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Cluster:
    """Started by `running`."""

    def __init__(self, folder, version, etcd):
        self.folder, self.version = pathlib.Path(folder), version
        self.etcd_bin, self.bin = programs.build(f"etcd-{etcd}"), programs.build(f"k8s-{version}")
        self.tokens = {user: secrets.token_hex(16) for user in USERS}
        self.processes = []
        #: Its nodes, where it has some.
        self.machines = None

    def start(self, name, program, *flags):
        log = open(self.folder / f"{name}.log", "wb")
        process = spawn([program, *flags], log, cwd=self.folder)
        log.close()
        self.processes.append((name, process))
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self):
        # The API server does not end while its etcd is gone: the first to be started is the last to go.
        for name, process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.processes.clear()

    def kubeconfig(self, user):
        """A file by which `user` calls the API."""
        path = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certs/apiserver.crt")}
        parts = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(parts))
        return path

    def start_all(self):
        client, peer, port, managers, scheduler = free_ports(5)
        self.url = f"https://127.0.0.1:{port}"
        data = self.folder / "etcd"
        self.start(
            "etcd", self.etcd_bin / "etcd", f"--data-dir={data}", "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )  # fmt: skip
        key = self.folder / "service-accounts.key"
        run(["openssl", "genrsa", "-out", key, "2048"])
        tokens = self.folder / "tokens.csv"
        tokens.write_text("".join(f'{self.tokens[user]},{user},{user},"{groups}"\n' for user, groups in USERS.items()))
        self.start(
            "kube-apiserver", self.bin / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={self.folder}/certs",
            f"--service-cluster-ip-range={SERVICE_RANGE}", f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", "--authorization-mode=Node,RBAC",
            # A loopback address cannot be that of the Service `kubernetes`.
            "--endpoint-reconciler-type=none", "--anonymous-auth=false",
        )  # fmt: skip
        self.config = self.kubeconfig("admin")
        eventually("kube-apiserver is ready", self.is_ready, START_SECONDS)
        self.start(
            "kube-controller-manager", self.bin / "kube-controller-manager", "--leader-elect=false",
            f"--kubeconfig={self.kubeconfig('system:kube-controller-manager')}", "--use-service-account-credentials",
            f"--service-account-private-key-file={key}", f"--root-ca-file={self.folder}/certs/apiserver.crt",
            # As often as a test wants to wait, in place of every 15 s.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--bind-address=127.0.0.1", f"--secure-port={managers}", f"--cert-dir={self.folder}/certs-managers",
        )  # fmt: skip
        self.start(
            "kube-scheduler", self.bin / "kube-scheduler", "--leader-elect=false",
            f"--kubeconfig={self.kubeconfig('system:kube-scheduler')}",
            "--bind-address=127.0.0.1", f"--secure-port={scheduler}", f"--cert-dir={self.folder}/certs-scheduler",
        )  # fmt: skip
        eventually("service accounts are made", lambda: self.get("serviceaccount", "default", namespace="default"), START_SECONDS)

    def is_ready(self):
        for name, process in self.processes:
            assert process.poll() is None, f"{name} ended:\n{self.log(name)[-2000:]}"
        try:
            return self.raw("/readyz") == "ok"
        except Failed:
            return False

    def raw(self, path):
        """What the API answers to a GET."""
        # The certificate is there once the server is.
        try:
            context = ssl.create_default_context(cafile=self.folder / "certs/apiserver.crt")
            request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.tokens['admin']}"})
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Failed(f"GET {path}: {error.code} {error.reason}: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise Failed(f"GET {path}: {error}") from None

    def kubectl(self, *arguments, namespace=None, stdin=None, seconds=120):
        where = ["-n", namespace] if namespace else []
        # Its caches would go to the home folder.
        command = [self.bin / "kubectl", f"--kubeconfig={self.config}", f"--cache-dir={self.folder}/kubectl", *where]
        return run([*command, *arguments], stdin=stdin, seconds=seconds)

    def shell(self, command):
        """A line as people type it, with this cluster's kubectl."""
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "KUBECONFIG": str(self.config), "HOME": str(self.folder)}
        return run(["bash", "-euc", command], env=env)

    def kubeconfig_of_account(self, account, namespace):
        """A file by which a service account calls the API."""
        user = f"{namespace}-{account}"
        self.tokens[user] = self.kubectl("create", "token", account, namespace=namespace).strip()
        return self.kubeconfig(user)

    def get(self, kind, name=None, namespace=None, selector=None):
        """An object, or None; without a name the list of all."""
        try:
            if kind in PATHS:
                path = "/" + PATHS[kind].format(f"namespaces/{namespace}/" if namespace else "") + (f"/{name}" if name else "")
                found = json.loads(self.raw(path + (f"?labelSelector={urllib.parse.quote(selector)}" if selector else "")))
            else:
                options = [*([name] if name else []), *([f"--selector={selector}"] if selector else []), "-o", "json"]
                found = json.loads(self.kubectl("get", kind, *options, namespace=namespace))
        except Failed as error:
            if name and "NotFound" in str(error):
                return None
            raise
        return found if name else found["items"]

    def apply(self, *objects):
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(items))


@contextlib.contextmanager
def running(folder, version, etcd="3.6"):
    cluster = Cluster(folder, version, etcd)
    try:
        cluster.start_all()
        yield cluster
    finally:
        cluster.stop()


class Helm:
    """One version of Helm, in one namespace of a cluster."""

    def __init__(self, major, cluster, folder):
        self.program = programs.build(f"helm-{major}") / "helm"
        self.major, self.cluster, self.folder = major, cluster, pathlib.Path(folder)

    def __call__(self, *arguments, namespace, values=None, seconds=600, kubeconfig=None):
        own = {f"HELM_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        command = [self.program, *arguments, "--namespace", namespace]
        if values is not None:
            path = self.folder / "values.json"
            path.write_text(json.dumps(values))
            command += ["--values", path]
        return run(command, env={**os.environ, **own, "KUBECONFIG": str(kubeconfig or self.cluster.config)}, seconds=seconds)

    def __str__(self):
        return f"helm-{self.major}"
