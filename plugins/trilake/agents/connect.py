"""A bridge from an agent's program to the door: standard input and output here, HTTP with a fresh token there.

Programs such as Claude Code and IDEs start an MCP server as a command and talk to it by its standard input and output.
This is that command. It needs the file that `trilake access add` wrote, and the VPN.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import httpx2

from trilake.errors import ConfigurationError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage

PATH = "/agents/mcp"
_REACH_TIMEOUT_S = 3.0
# The door answers a question within a minute, and may wait for a run.
_ANSWER_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Login:
    """How an agent logs in to Airflow. :param url: such as ``http://vps-1:8080``."""

    url: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> Login:
        """:raises ConfigurationError: it is not a file that `trilake access add` wrote."""
        try:
            airflow = json.loads(file.read_text())["airflow"]
            return cls(str(airflow["url"]).rstrip("/"), str(airflow["user"]), str(airflow["password"]))
        except FileNotFoundError:
            raise ConfigurationError(
                f"There is no file {file}.",
                hint="An administrator makes it: `trilake access add NAME --role agent`. Give its path.",
            ) from None
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise ConfigurationError(
                f"{file} is not what `trilake access add` writes ({type(e).__name__}).", hint="Ask for a new one."
            ) from None


def check_reachable(login: Login) -> None:
    """:raises UnreachableError: the platform cannot be reached. The message names the VPN if its host is not local."""
    parts = urlsplit(login.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=_REACH_TIMEOUT_S):
            return
    except OSError as e:
        reason = e.strerror or type(e).__name__
    local = host in ("127.0.0.1", "localhost", "::1")
    raise UnreachableError(
        f"Airflow ({host}:{port}) cannot be reached: {reason}.",
        hint="Start the platform: `trilake up`."
        if local
        else f"Is the VPN connected? Start it with your .ovpn profile, and make sure that {host} has an address "
        "(docs/guides/agents.md).",
    )


class TokenAuth(httpx2.Auth):
    """Gets a token with the first request, and a new one when Airflow refuses it."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._token = ""

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        if not self._token:
            await self._keep((yield self._asked()))
        request.headers["Authorization"] = f"Bearer {self._token}"
        answer = yield request
        if answer.status_code == 401:  # a token is valid for a day
            await self._keep((yield self._asked()))
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request

    def _asked(self) -> httpx2.Request:
        body = {"username": self._login.user, "password": self._login.password}
        return httpx2.Request("POST", f"{self._login.url}/auth/token", json=body)

    async def _keep(self, answer: httpx2.Response) -> None:
        await answer.aread()
        if answer.status_code not in (200, 201):
            raise RefusedError(
                f"Airflow ({self._login.url}) refuses the login of {self._login.user} ({answer.status_code}).",
                hint="The access may have been revoked. Ask an administrator.",
            )
        self._token = str(answer.json()["access_token"])


async def bridge(login: Login) -> None:
    """Carry messages between standard input and output and the door, until the input ends.

    :raises UnreachableError: the platform cannot be reached.
    :raises RefusedError: Airflow refuses the login.
    """
    from mcp.client.streamable_http import streamable_http_client
    from mcp.server.stdio import stdio_server

    await anyio.to_thread.run_sync(check_reachable, login)
    async with (
        httpx2.AsyncClient(auth=TokenAuth(login), timeout=_ANSWER_TIMEOUT_S, trust_env=False) as client,
        streamable_http_client(login.url + PATH, http_client=client) as (from_door, to_door, *_),
        stdio_server() as (from_program, to_program),
        anyio.create_task_group() as group,
    ):
        group.start_soon(_carry, from_door, to_program)
        await _carry(from_program, to_door)
        group.cancel_scope.cancel()


async def _carry(source: ReadStream[SessionMessage | Exception], target: WriteStream[SessionMessage]) -> None:
    async for message in source:
        if isinstance(message, Exception):  # a line that is not a message
            continue
        await target.send(message)
