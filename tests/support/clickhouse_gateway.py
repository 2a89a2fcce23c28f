"""A gateway process and ways to talk to it, for tests. The fixtures are in `clickhouse_fixtures`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import psutil

TESTS = Path(__file__).parents[1]
PLUGINS = TESTS.parent / "plugins"
USER, PASSWORD = "trilake", "a pass:word/with %41 and 'signs'"
# What hangs fails then. A machine that others use may be many times slower than one that is free.
PATIENCE_S = 120.0


def wait_until(what: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Poll until something is true, and give it back."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def error_code(response: httpx.Response) -> int:
    """ClickHouse's number of the error that an answer tells, in its header and its text."""
    assert response.status_code != 200, response.text
    found = int(response.headers["X-ClickHouse-Exception-Code"])
    assert response.text.startswith(f"Code: {found}. DB::Exception: ")
    return found


class RunningGateway:
    """A gateway process and ways to talk to it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.data = folder / "data with space"
        self.config = folder / "clickhouse.json"
        document = {
            "host": "127.0.0.1",
            "port": self.port,
            "data": str(self.data),
            "users": {USER: PASSWORD},
            "named_collections": {
                "lake": {
                    "url": "http://127.0.0.1:9/lake/",
                    "access_key_id": "k<&",
                    "secret_access_key": "hidden-secret",
                }
            },
            **changes,
        }
        self.config.write_text(json.dumps(document))
        self.log = folder / "clickhouse.log"
        self.process: subprocess.Popen[bytes] | None = None

    def connection(self, *, schema: str = "analytics") -> str:
        """As AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT has it."""
        shards = [{"database": "shard_1"}, {"database": "shard_2"}]
        address = {"host": "127.0.0.1", "port": self.port, "login": USER, "password": PASSWORD, "schema": schema}
        return json.dumps({"conn_type": "clickhouse_cluster", **address, "extra": {"shards": shards}})

    def start(self) -> RunningGateway:
        self.process = self.spawn()
        wait_until(self.answers, PATIENCE_S)
        return self

    def spawn(self, config: Path | None = None, stderr: Any = None) -> subprocess.Popen[bytes]:
        """Start a process without waiting for it."""
        command = [sys.executable, "-m", "trilake.platform.embedded.clickhouse", "--config", str(config or self.config)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PLUGINS)}, stderr=stderr or log)

    def answers(self) -> bool:
        assert self.process is None or self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + "ping").text == "Ok.\n"
        return False

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def post(self, sql: str | bytes | Iterator[bytes], headers: Any = None, **params: Any) -> httpx.Response:
        return httpx.post(
            self.url, content=sql, params=params, headers=headers, auth=(USER, PASSWORD), timeout=PATIENCE_S
        )

    def get(self, sql: str, **params: Any) -> httpx.Response:
        return httpx.get(self.url, params={"query": sql, **params}, auth=(USER, PASSWORD), timeout=PATIENCE_S)

    def sql(self, sql: str, **params: Any) -> str:
        """Run a statement that must succeed; its answer as text."""
        response = self.post(sql, **params)
        assert response.status_code == 200, response.text
        return response.text.rstrip("\n")

    def client(self, **changes: Any) -> Any:
        return clickhouse_connect.get_client(
            **{
                "host": "127.0.0.1",
                "port": self.port,
                "username": USER,
                "password": PASSWORD,
                "database": "analytics",
                **changes,
            }
        )

    def connect(self, request: bytes) -> socket.socket:
        """A bare connection that has sent some bytes."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        s.sendall(request)
        return s

    def running(self, query_id: str) -> bool:
        return self.sql("SELECT count() FROM system.processes WHERE query_id = {id:String}", param_id=query_id) != "0"


class PeakMemory:
    """The most resident memory of a process while the block runs, in bytes above what it was before."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway = gateway
        self.growth = 0

    def __enter__(self) -> PeakMemory:
        self._before = self._gateway.memory
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.growth = max(self.growth, self._gateway.memory - self._before)

    def __exit__(self, *args: object) -> None:
        self._done.set()
        self._thread.join()
