"""Rendered pods, run as processes of this machine: each gets an address of its own from the loopback range, as it would get one
in a cluster, so that names, ports and commands stay what the chart makes of them.
"""

import base64
import contextlib
import os
import pathlib
import re
import subprocess

from certificates import write_secrets
from chart import WORKLOADS

#: Own addresses for every pod, away from those that other tests use.
NETWORK = "127.77"


class Pods:
    """The pods of rendered objects. Paths of mounts become folders below `folder`, names become addresses."""

    def __init__(self, objects, folder):
        self.folder, self.objects = folder, objects
        self.maps = {item["metadata"]["name"]: item for item in objects if item["kind"] == "ConfigMap"}
        self.specs, self.addresses, self.names = {}, {}, {}
        number = 1
        for item in objects:
            if item["kind"] == "Pod":
                replicas = [(item["metadata"]["name"], item["spec"], None)]
            elif item["kind"] in WORKLOADS:
                spec, name = item["spec"], item["metadata"]["name"]
                # The autoscaler's minimum is 1 unless it says otherwise.
                count = spec.get("replicas", 1)
                replicas = [(f"{name}-{i}", spec["template"]["spec"], spec["serviceName"]) for i in range(count)]
            else:
                continue
            for name, spec, service in replicas:
                address = f"{NETWORK}.{number // 250}.{number % 250 + 1}"
                number += 1
                self.specs[name], self.addresses[name] = spec, address
                if service:
                    self.names[f"{name}.{service}.{item['metadata']['namespace']}.svc"] = address

    def container(self, name):
        (container,) = self.specs[name]["containers"]
        return container

    def mounts(self, name):
        """(path in the pod, path here), the longest first. Claims are shared by all, other volumes are the pod's own."""
        volumes = {volume["name"]: volume for volume in self.specs[name].get("volumes", [])}
        found = []
        for mount in self.container(name)["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "secret" in volume:
                here = self.folder / "secrets" / volume["secret"]["secretName"]
                assert here.exists(), f"{name} mounts a secret that nothing makes: {here.name}"
            elif "configMap" in volume:
                here = self.folder / "maps" / volume["configMap"]["name"]
            elif "persistentVolumeClaim" in volume:
                here = self.folder / "claims" / volume["persistentVolumeClaim"]["claimName"]
            else:
                here = self.folder / "pods" / name / mount["name"]
            here.mkdir(parents=True, exist_ok=True)
            found.append((mount["mountPath"], str(here)))
        return sorted(found, key=lambda pair: -len(pair[0]))

    def here(self, name, text):
        """A value of the pod in this machine's terms."""
        claims = str(self.folder / "claims")
        # The controller names the object store to the nodes by a path that it does not mount itself.
        shared = {path: here for pod in self.specs for path, here in self.mounts(pod) if here.startswith(claims)}
        folders = shared | dict(self.mounts(name))
        # In one go: a folder here may contain what is a path there.
        paths = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w.-])({paths})(?![\w-])", lambda match: folders[match[1]], text)
        for dns, address in self.names.items():
            text = text.replace(dns, address)
        return text.replace("0.0.0.0", self.addresses[name])

    def write_maps(self):
        """Every ConfigMap and every certificate's secret as a folder; paths of test subjects in this machine's terms."""
        write_secrets(self.objects, self.folder / "secrets", self.names)
        for name, item in self.maps.items():
            folder = self.folder / "maps" / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in item.get("binaryData", {}).items():
                (folder / file).write_bytes(base64.b64decode(content))
            for file, content in item.get("data", {}).items():
                curator = next(pod for pod in self.specs if "-curator-" in pod)
                (folder / file).write_text(self.here(curator, content))

    def environment(self, name):
        # Nothing of this machine's own: what a pod needs the chart has to give.
        result = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        fields = {"metadata.name": name, "status.podIP": self.addresses[name]}
        for variable in self.container(name).get("env", []):
            if "value" in variable:
                value = variable["value"]
                for key, known in result.items():
                    value = value.replace(f"$({key})", known)
            else:
                value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            result[variable["name"]] = self.here(name, value)
        return result

    def command(self, name, programs):
        environment = self.environment(name)
        program, *arguments = self.container(name)["command"]
        for key, value in environment.items():
            arguments = [argument.replace(f"$({key})", value) for argument in arguments]
        return [programs[program], *(self.here(name, argument) for argument in arguments)]

    @contextlib.contextmanager
    def running(self, name, programs):
        log = self.folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                self.command(name, programs),
                env=self.environment(name),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=pathlib.Path(self.folder),
            )
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()
