"""A service that is being started is waited for; one that refuses us is not."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from trilake.endpoints import PostgresEndpoint
from trilake.errors import RefusedError, UnreachableError
from trilake.platform.embedded.home import LOOPBACK, free_port
from trilake.postgres.connection import connect
from trilake.retry import retry_while_unreachable


def ask(port: int) -> None:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError as e:
        raise UnreachableError(f"{port}: {e}") from None


def test_a_server_that_begins_to_listen_is_reached() -> None:
    port, server = free_port(), socket.socket()

    def begin() -> None:
        server.bind((LOOPBACK, port))
        server.listen()

    with server:
        later = threading.Timer(0.5, begin)
        later.start()
        retry_while_unreachable(lambda: ask(port), seconds=120)
        later.join()


def test_one_that_never_does_is_named_when_the_time_is_over() -> None:
    port = free_port()
    with pytest.raises(UnreachableError, match=str(port)):
        retry_while_unreachable(lambda: ask(port), seconds=0.1)


def test_one_that_does_not_let_us_in_is_asked_once() -> None:
    asked: list[float] = []

    def refused() -> None:
        asked.append(time.monotonic())
        raise RefusedError("The password is wrong.")

    with pytest.raises(RefusedError):
        retry_while_unreachable(refused)
    assert len(asked) == 1


def test_a_database_that_does_not_answer_is_no_refusal() -> None:
    with pytest.raises(UnreachableError) as caught, connect(PostgresEndpoint(LOOPBACK, free_port(), "d", "u", "p")):
        pass
    assert not isinstance(caught.value, RefusedError)
