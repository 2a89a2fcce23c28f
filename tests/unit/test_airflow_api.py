"""Airflow's client on a busy machine: a question is asked again, a request that changes something is sent once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trilake.errors import UnreachableError
from trilake.platform import airflow_api
from trilake.platform.airflow_api import AirflowApi


class Slow(BaseHTTPRequestHandler):
    """Answers the first request of each kind only when the test is over."""

    seen: list[str] = []
    over = threading.Event()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        first = self.command not in self.seen
        self.seen.append(self.command)
        token = self.path == "/auth/token"
        if first and not token:
            self.over.wait(60)
        body = b'{"access_token": "t"}' if token else b'{"state": "success"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if token:
            self.seen.clear()

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - as http.server names them

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Slow.over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Slow.over.set()
        server.shutdown()


def test_a_question_that_times_out_is_asked_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "TIMEOUT_S", 0.5)
    with AirflowApi(url, "u", "p") as api:
        assert api.run("flights", "r")["state"] == "success"
    assert Slow.seen == ["GET", "GET"]


def test_a_request_that_starts_a_run_is_sent_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "TIMEOUT_S", 0.5)
    with AirflowApi(url, "u", "p") as api, pytest.raises(UnreachableError, match="does not answer"):
        api.trigger("flights")
    assert Slow.seen == ["POST"]


def test_a_server_that_stays_silent_is_named_in_the_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(airflow_api, "BUSY_S", 0)
    with AirflowApi(url, "u", "p") as api, pytest.raises(UnreachableError, match="ReadTimeout"):
        api.run("flights", "r")
