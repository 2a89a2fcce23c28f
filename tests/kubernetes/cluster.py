"""The Kubernetes that KUBECONFIG names, with what k8s/ puts on it, as tests see it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trilake.errors import UnreachableError
from trilake.platform.private_files import write_private
from trilake.spark.application import IMAGE, NAMESPACE

K8S = Path(__file__).parents[2] / "k8s"
# Kubernetes' own, and the overlay's
_PERMANENT = {"services": ("vps-1", "vps-3"), "configmaps": ("hosts", "kube-root-ca.crt")}
# Who else uses this cluster's namespace keeps it, and the drivers' account in it.
_KEPT = {"Namespace", "ServiceAccount/spark", "Role/spark-driver", "RoleBinding/spark-driver"}

# A kubelet tells of an image some time after it was imported: it looks every 30 s, and tells every 10.
_IMAGE_TOLD_S = 300

Found = TypeVar("Found")


def await_true(what: Callable[[], Found], seconds: float, why: str) -> Found:
    """Poll until `what` gives something. An Airflow that does not answer, as one that was killed, is asked again."""
    until, found = time.monotonic() + seconds, None
    while True:
        with suppress(UnreachableError):
            if found := what():
                return found
        assert time.monotonic() < until, f"not within {seconds} s: {why}; found {found!r}"
        time.sleep(0.3)


class KubectlError(Exception):
    """What kubectl said when it failed."""


@dataclass(frozen=True)
class Cluster:
    """:param kubeconfig: with the rights of an administrator."""

    kubeconfig: Path

    def kubectl(
        self,
        *arguments: str,
        text: str | None = None,
        kubeconfig: Path | None = None,
        seconds: float = 120,
        namespace: str | None = NAMESPACE,
    ) -> str:
        """:param namespace: None for an overlay, which has objects of several.
        :raises KubectlError: it ended with another code than 0.
        """
        done = subprocess.run(
            ["kubectl", *(["--namespace", namespace] if namespace else []), *arguments],
            input=text,
            env=os.environ | {"KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise KubectlError(f"{done.stderr}{done.stdout}".strip())
        return done.stdout

    def get(self, what: str, selector: str = "", *, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """Objects of a kind, as Kubernetes shows them."""
        options = ["--selector", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(
            self.kubectl("get", what, "--namespace", namespace, "--output", "json", *options)
        )["items"]
        return items

    def names(self, what: str, selector: str = "") -> list[str]:
        return [item["metadata"]["name"] for item in self.get(what, selector)]

    def application(self, run: str) -> dict[str, Any] | None:
        """The run's one application."""
        found = [
            a for a in self.get("sparkapplications") if any(text.endswith(f"/{run}") for text in a["spec"]["arguments"])
        ]
        assert len(found) <= 1, [a["metadata"]["name"] for a in found]
        return found[0] if found else None

    def state(self, run: str) -> str:
        return str(((self.application(run) or {}).get("status") or {}).get("applicationState", {}).get("state", ""))

    def pods(self, run: str, role: str = "", phase: str = "Running") -> list[str]:
        """The run's pods that are in a phase."""
        application = self.application(run)
        if application is None:
            return []
        selector = f"sparkoperator.k8s.io/app-name={application['metadata']['name']}"
        found = self.get("pods", selector + (f",spark-role={role}" if role else ""))
        return [p["metadata"]["name"] for p in found if p["status"].get("phase") == phase]

    def left(self) -> list[str]:
        """What is in the namespace of which no application should leave anything."""
        kinds = ("sparkapplications", "pods", "services", "configmaps", "persistentvolumeclaims", "jobs.batch")
        return [f"{kind}/{name}" for kind in kinds for name in self.names(kind) if name not in _PERMANENT.get(kind, ())]

    def await_nothing_left(self, seconds: float = 300) -> None:
        await_true(lambda: not self.left(), seconds, f"something is left: {self.left()}")

    # --- k8s/

    def _images(self) -> set[str]:
        """What the nodes say that they have."""
        return {
            name.removeprefix("docker.io/")
            for node in json.loads(self.kubectl("get", "nodes", "--output", "json"))["items"]
            for image in node["status"].get("images", ())
            for name in image.get("names") or ()  # null, of an image whose name another one has now
        }

    def why_not(self) -> str:
        """What keeps tests from running here; empty if nothing does."""
        try:
            self.kubectl("get", "--raw", "/readyz")
            self.kubectl("get", "crd", "sparkapplications.sparkoperator.k8s.io")
        except (KubectlError, subprocess.TimeoutExpired) as e:
            return str(e)
        until = time.monotonic() + _IMAGE_TOLD_S
        while IMAGE not in self._images():
            if time.monotonic() > until:
                return f"no node has the image {IMAGE} (docker/spark/Dockerfile)"
            time.sleep(2)
        return f"its namespace {NAMESPACE} is in use" if self._in_use() else ""

    def _in_use(self) -> bool:
        """Whether the namespace serves somebody, whose connections and quota these tests would replace."""
        hosts = [c["data"].get("vps_1") for c in self.get("configmaps") if c["metadata"]["name"] == "hosts"]
        return bool(self.get("sparkapplications")) or any(host != self.own_address() for host in hosts)

    def own_address(self) -> str:
        """This machine's, as the nodes reach it."""
        nodes = json.loads(self.kubectl("get", "nodes", "--output", "json"))["items"]
        node = next(a["address"] for a in nodes[0]["status"]["addresses"] if a["type"] == "InternalIP")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((node, 9))  # sends nothing: it finds the way
            return str(probe.getsockname()[0])

    def apply(self, overlay: Path) -> None:
        self.kubectl("apply", "--kustomize", str(overlay), namespace=None)

    def remove(self, overlay: Path) -> None:
        """Take away what `apply` made, but for what others need here."""
        import yaml

        rendered = self.kubectl("kustomize", str(overlay))
        ours = [
            d for d in yaml.safe_load_all(rendered) if not _KEPT & {d["kind"], f"{d['kind']}/{d['metadata']['name']}"}
        ]
        text = yaml.safe_dump_all(ours)
        self.kubectl("delete", "--ignore-not-found", "--filename", "-", text=text, namespace=None)

    def airflow_kubeconfig(self, file: Path) -> Path:
        """The kubeconfig of the account `airflow`: its token, and nothing of the administrator's."""

        def token() -> dict[str, str] | None:
            found = json.loads(self.kubectl("get", "secret", "airflow-token", "--output", "json"))
            data: dict[str, str] = found.get("data") or {}
            return data if "token" in data else None

        secret = await_true(token, 30, "the account's token")
        server = json.loads(self.kubectl("config", "view", "--minify", "--output", "json"))["clusters"][0]["cluster"]
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "vps-2",
                    "cluster": {"server": server["server"], "certificate-authority-data": secret["ca.crt"]},
                }
            ],
            "users": [{"name": "airflow", "user": {"token": base64.b64decode(secret["token"]).decode()}}],
            "contexts": [
                {"name": "airflow", "context": {"cluster": "vps-2", "user": "airflow", "namespace": NAMESPACE}}
            ],
            "current-context": "airflow",
        }
        write_private(file, json.dumps(document))
        return file


def write_overlay(folder: Path, name: str, hosts: Mapping[str, str], jobs: Iterable[str]) -> Path:
    """A copy of k8s/ whose overlay `name` has these addresses and the pods' connections; gives the overlay's folder."""
    jobs = list(jobs)
    shutil.copytree(K8S, folder, dirs_exist_ok=True)
    overlay = folder / "overlays" / name
    (overlay / "hosts.env").write_text("".join(f"{host}={address}\n" for host, address in hosts.items()))
    for file in ("jobs.env", "agents.env"):
        write_private(overlay / file, "".join(f"{line}\n" for line in jobs))
    return overlay


def jobs_environment(environment: Mapping[str, str]) -> list[str]:
    """The jobs' connections as pods need them: the hosts' names and ports in place of this machine's."""
    lines = []
    for conn_id in ("aws_default", "postgres_lake", "postgres_oltp", "clickhouse_cluster_default"):
        name = f"AIRFLOW_CONN_{conn_id.upper()}"
        document = json.loads(environment[name])
        if conn_id == "aws_default":
            document["extra"]["endpoint_url"] = "http://vps-1:7070"
        elif conn_id.startswith("postgres"):
            document |= {"host": "vps-1", "port": 5432}
        else:
            document |= {"host": "vps-3", "port": 8123}
            # one port for both: the embedded platform's shards are databases of one server
            for shard in document["extra"]["shards"]:
                shard |= {"host": "vps-3", "port": 8123}
        lines.append(f"{name}={json.dumps(document, separators=(',', ':'))}")
    return lines
