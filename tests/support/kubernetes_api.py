"""A Kubernetes API server of our own, as a process, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pyspark

PROJECT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "spark_submit_stand_in.py"
TOKEN = "test-token"
NAMESPACE = "spark"
SECRET_TEXT = "open sesame"
# What hangs fails then. A machine that others use may be many times slower than one that is free.
PATIENCE_S = 120.0

Found = TypeVar("Found")


def await_true(what: Callable[[], Found], seconds: float = PATIENCE_S) -> Found:
    """Poll until `what` gives something; the last thing it gave is in the error."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, f"not within {seconds} s: {found!r}"
        time.sleep(0.02)
    return found


@dataclass
class KubernetesServer:
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    # one for all: making one costs 20 ms
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=PATIENCE_S, trust_env=False))

    @property
    def config(self) -> Path:
        return self.folder / "kubernetes.json"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "embedded",
            "clusters": [{"name": "embedded", "cluster": {"server": self.url}}],
            "users": [{"name": "airflow", "user": {"token": TOKEN}}],
            "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "airflow"}}],
        }

    @property
    def connection(self) -> str:
        """As AIRFLOW_CONN_KUBERNETES_DEFAULT has it."""
        extra = {"kube_config": json.dumps(self.kubeconfig), "namespace": NAMESPACE}
        return json.dumps({"conn_type": "kubernetes", "extra": extra})

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        self.config.write_text(
            json.dumps(
                {
                    "port": self.port,
                    "data": str(self.folder / "data"),
                    "token": TOKEN,
                    "namespace": NAMESPACE,
                    "spark_home": str(Path(pyspark.__file__).parent),
                    "python": sys.executable,
                    "image_files": {"/opt/trilake/run_job.py": str(PROJECT / "plugins/trilake/spark/image/run_job.py")},
                    "secrets": {"trilake-jobs": {"AIRFLOW_CONN_AWS_DEFAULT": SECRET_TEXT}},
                    "spark_submit": [sys.executable, str(STAND_IN)],
                    "grace_seconds": 1.0,
                    **self.options,
                }
            )
        )
        environment = os.environ | {"PYTHONPATH": str(PROJECT / "plugins")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trilake.platform.embedded.kubernetes", "--config", str(self.config)],
                stderr=log,
                stdout=log,
                env=environment,
            )
        await_true(self._ready)

    def _ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log
        try:
            return self.client.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    # --- requests, as short as tests want them

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        return self.client.request(method, self.url + path, headers=headers, **options)

    def applications(self, name: str = "") -> str:
        base = f"/apis/sparkoperator.k8s.io/v1beta2/namespaces/{NAMESPACE}/sparkapplications"
        return f"{base}/{name}" if name else base

    @staticmethod
    def pods(name: str = "") -> str:
        return f"/api/v1/namespaces/{NAMESPACE}/pods" + (f"/{name}" if name else "")

    def create(self, name: str, *arguments: str, **spec: Any) -> dict[str, Any]:
        answer = self.request("POST", self.applications(), json=manifest(name, *arguments, **spec))
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def get(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = self.request("GET", self.applications(name)).json()
        return document

    def state(self, name: str) -> str:
        return str((self.get(name).get("status") or {}).get("applicationState", {}).get("state", ""))

    def await_state(self, name: str, *states: str, seconds: float = PATIENCE_S) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            document = self.get(name)
            return document if document.get("status", {}).get("applicationState", {}).get("state") in states else None

        return await_true(reached, seconds)

    def driver_log(self, name: str, **parameters: Any) -> str:
        return self.request("GET", self.pods(f"{name}-driver") + "/log", params=parameters).text

    def processes(self) -> list[int]:
        """Every process whose command line names this server's data: watchers and drivers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (not self.process or int(entry.name) != self.process.pid):
                try:
                    if str(self.folder / "data").encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def manifest(name: str, *arguments: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sparkoperator.k8s.io/v1beta2",
        "kind": "SparkApplication",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"test": "yes"}},
        "spec": {
            "type": "Python",
            "mode": "cluster",
            "sparkVersion": "4.1.4",
            "image": "trilake/spark:4.1.4",
            "mainApplicationFile": "local:///opt/trilake/run_job.py",
            "arguments": list(arguments),
            "driver": {"cores": 1, "memory": "512m", "labels": {"test": "yes"}},
            "executor": {"instances": 1, "cores": 1, "memory": "512m"},
            **spec,
        },
    }


@contextmanager
def kubernetes_server(folder: Path, **options: Any) -> Iterator[KubernetesServer]:
    server = KubernetesServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        until = time.monotonic() + PATIENCE_S
        while left := [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.processes()]:
            assert time.monotonic() < until, left
            time.sleep(0.02)
