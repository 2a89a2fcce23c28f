"""An agent: a user of Airflow with the role Agent, and the official client of the protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from support.running_platform import Platform
from trilake.agents.connect import PATH, Login, TokenAuth
from trilake.platform.airflow_users import ask
from trilake.platform.embedded.airflow import API_SERVER, url

_TIMEOUT_S = 120


@dataclass(frozen=True)
class Said:
    """What a tool answered.

    :param refused: the refusal's short name; empty if the call was done.
    :param size: bytes of the text.
    """

    answer: dict[str, Any]
    refused: str
    size: int


@dataclass
class Agent:
    """:ivar sent: bytes of all arguments and answers so far, which is what a model would have to read."""

    login: Login
    mode: str = "auto"
    sent: int = 0
    calls: int = 0
    _kept: list[Said] = field(default_factory=list)

    @classmethod
    def made(cls, platform: Platform, name: str, role: str = "Agent") -> Agent:
        """A user that is created, or gets a new password."""
        password = f"of {name}, for the tests"
        ask(platform.env, ["set", name, role, password])
        return cls(Login(url(platform.home.ports()[API_SERVER]), name, password))

    def call(self, tool: str, **arguments: Any) -> Said:
        return self.call_all([(tool, arguments)])[0]

    def call_all(self, calls: Sequence[tuple[str, dict[str, Any]]], *, at_once: bool = False) -> list[Said]:
        """Several calls by one client, one after another or all at once."""

        async def run() -> list[Said]:
            found: dict[int, Said] = {}

            async def one(client: Client, number: int) -> None:
                found[number] = self._said(calls[number], await client.call_tool(*calls[number]))

            async with self._client() as client:
                if at_once:
                    async with anyio.create_task_group() as group:
                        for number in range(len(calls)):
                            group.start_soon(one, client, number)
                else:
                    for number in range(len(calls)):
                        await one(client, number)
            return [found[number] for number in range(len(calls))]

        return anyio.run(run)

    def tools(self) -> list[dict[str, Any]]:
        """What the server tells about its tools."""

        async def run() -> list[dict[str, Any]]:
            async with self._client() as client:
                listed = await client.list_tools()
                return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed.tools]

        return anyio.run(run)

    def token(self) -> str:
        """A token for requests by hand."""
        body = {"username": self.login.user, "password": self.login.password}
        answer = httpx.post(f"{self.login.url}/auth/token", json=body, timeout=_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def rest(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A request to Airflow with the agent's own token."""
        return httpx.request(
            method,
            self.login.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.token()}", **headers},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    def _client(self) -> Client:
        http = httpx2.AsyncClient(auth=TokenAuth(self.login), timeout=_TIMEOUT_S, trust_env=False)
        return Client(streamable_http_client(self.login.url + PATH, http_client=http), mode=self.mode)

    def _said(self, call: tuple[str, dict[str, Any]], result: Any) -> Said:
        text = result.content[0].text
        self.calls += 1
        self.sent += len(json.dumps(call[1])) + len(text.encode())
        if not result.is_error:
            return Said(json.loads(text), "", len(text.encode()))
        refusal = json.loads(text[text.index("{") :]) if "{" in text else {"error": "arguments", "says": text}
        return Said(refusal, refusal["error"], len(text.encode()))
