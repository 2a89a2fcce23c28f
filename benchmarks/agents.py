"""What the agents' door costs: a question over the bare statement, a run, and the UI beside eight agents that ask.

    python benchmarks/agents.py [--questions 60] [--agents 8]

Needs a running platform with the flights of `make demo`. It creates users `bench-N` with the role Agent, and ends them
after it. Bare is the same statement over HTTP to ClickHouse with one kept connection, taken in turns with the question.
The UI's request is the list of DAGs, as the home page asks for it. Memory is the API server's own (PSS): a second API
server is started without the door, and both are asked for the same pages first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import psutil
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from platform_of_benchmarks import endpoints, markdown

from trilake.agents.connect import PATH, Login, TokenAuth
from trilake.platform.airflow_users import ask
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import LOOPBACK, Home, free_port

TITLE = "The agents' door"
SQL = "SELECT carrier, count(), avg(arr_delay) FROM flights GROUP BY carrier ORDER BY carrier"
UI = "/ui/dags?limit=50"


def table(questions: int = 60, agents: int = 8) -> str:
    """The figures as a table in Markdown."""
    home = Home.locate()
    environment = {**os.environ, **home.environment()}
    url, _, _ = administrator(home)
    names = [f"bench-{number}" for number in range(agents)]
    logins = [Login(url, name, f"password of {name}") for name in names]
    for login in logins:
        ask(environment, ["set", login.user, "Agent", login.password])
    try:
        bare, asked, submits = asyncio.run(_questions(logins[0], questions))
        alone, beside, per_second = asyncio.run(_ui(home, logins, questions))
    finally:
        for name in names:
            ask(environment, ["deactivate", name])
    more = _memory(home, environment)
    over = [one - other for one, other in zip(asked, bare, strict=True)]
    return markdown(
        ("", "measured", "target"),
        [
            ("a question over the bare statement, p50", f"{1000 * statistics.median(over):.0f} ms", "25 ms"),
            ("bare, p50; through the door, p50", f"{1000 * statistics.median(bare):.0f} ms; "
             f"{1000 * statistics.median(asked):.0f} ms", ""),
            ("the same run submitted again, p50", f"{1000 * statistics.median(submits):.0f} ms", "200 ms"),
            (f"the UI's list of DAGs beside {agents} agents ({per_second:.0f} questions/s), p95",
             f"{_p95(beside) / _p95(alone):.2f} times its idle one ({1000 * _p95(alone):.0f} ms)", "2 times"),
            ("the API server's memory with the door", f"+{more / 2**20:.0f} MiB", "+25 MiB"),
        ],
    )  # fmt: skip


async def _questions(login: Login, number: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the bare statement, of the question, and of submitting a run that exists."""
    clickhouse = endpoints().clickhouse
    shard = clickhouse.shards[0]
    key = f"bench-{int(time.time())}"
    bare, asked, submits = [], [], []
    async with _agent(login) as client, httpx2.AsyncClient(trust_env=False) as http:
        run = {"what": "agent_export", "parameters": {"sql": "SELECT 1"}, "key": key}
        await _call(client, "submit", run)
        for _ in range(number):
            began = time.perf_counter()
            answer = await http.post(
                f"http://{shard.host}:{shard.port}/",
                params={"database": clickhouse.database, "default_format": "JSONCompact"},
                content=SQL,
                headers={"X-ClickHouse-User": clickhouse.user, "X-ClickHouse-Key": clickhouse.password},
            )
            answer.raise_for_status()
            bare.append(time.perf_counter() - began)
            asked.append(await _timed(client, "query", {"sql": SQL}))
            submits.append(await _timed(client, "submit", run))
    return bare, asked, submits


async def _ui(home: Home, logins: list[Login], requests: int) -> tuple[list[float], list[float], float]:
    """Seconds of the UI's request alone, and beside agents that ask without a pause; and their questions a second."""
    url, user, password = administrator(home)
    async with httpx2.AsyncClient(auth=TokenAuth(Login(url, user, password)), trust_env=False, timeout=60) as http:

        async def request() -> float:
            began = time.perf_counter()
            (await http.get(url + UI)).raise_for_status()
            return time.perf_counter() - began

        await request()
        alone = [await request() for _ in range(requests)]
        ended, answered = asyncio.Event(), 0

        async def agent(login: Login) -> None:
            nonlocal answered
            async with _agent(login) as client:
                while not ended.is_set():
                    await _call(client, "query", {"sql": SQL})
                    answered += 1

        asking = [asyncio.create_task(agent(login)) for login in logins]
        await asyncio.sleep(2)
        began, before = time.perf_counter(), answered
        beside = [await request() for _ in range(requests)]
        rate = (answered - before) / (time.perf_counter() - began)
        ended.set()
        await asyncio.gather(*asking)
    return alone, beside, rate


def _memory(home: Home, environment: dict[str, str]) -> float:
    """Bytes that an API server needs more with the door."""
    needed = []
    for door in (True, False):
        with _api_server(environment, door=door) as (process, url):
            for _ in range(20):
                httpx.get(f"{url}/api/v2/monitor/health", trust_env=False, timeout=60)
                httpx.post(f"{url}/agents/mcp", json={}, trust_env=False, timeout=60)
            family = [process, *process.children(recursive=True)]
            needed.append(sum(one.memory_full_info().pss for one in family))
    return float(needed[0] - needed[1])


@contextmanager
def _api_server(environment: dict[str, str], *, door: bool) -> Iterator[tuple[psutil.Process, str]]:
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    # what imports the plugin under another name than `api-server` gets it without the door
    first = "" if door else "sys.argv = ['airflow']; import trilake.plugin; "
    program = f"import sys; {first}sys.argv = ['airflow', 'api-server']; from airflow.__main__ import main; main()"
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**environment, "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                if httpx.get(f"{url}/api/v2/monitor/health", trust_env=False, timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)
        yield psutil.Process(started.pid), url
    finally:
        started.terminate()
        started.wait(30)


def _agent(login: Login) -> Client:
    http = httpx2.AsyncClient(auth=TokenAuth(login), trust_env=False, timeout=120)
    return Client(streamable_http_client(login.url + PATH, http_client=http))


async def _call(client: Client, tool: str, arguments: dict[str, Any]) -> Any:
    result = await client.call_tool(tool, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    if result.is_error:
        raise SystemExit(f"{tool} was refused: {text}")
    return json.loads(text)


async def _timed(client: Client, tool: str, arguments: dict[str, Any]) -> float:
    began = time.perf_counter()
    await _call(client, tool, arguments)
    return time.perf_counter() - began


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--agents", type=int, default=8)
    chosen = parser.parse_args()
    print(table(chosen.questions, chosen.agents))
