"""An agent at its door in the replica: with its file, as a program uses it, on the store with rights of its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_replica import Replica

from support.agent import Agent
from trilake.agents.connect import Login
from trilake.platform.hosts.access import access_of

ROWS = 3_000_000  # an upload of several parts


@pytest.fixture
def agent(replica: Replica, tmp_path: Path) -> Iterator[Agent]:
    access, name = access_of(replica.project, replica.env), f"test-{secrets.token_hex(4)}"
    access.add(name, "agent", tmp_path / "a")
    given = json.loads((tmp_path / "a").read_text())["airflow"]
    yield Agent(Login(replica.url, given["user"], given["password"]))
    if any(person.name == name and person.state != "revoked" for person in access.people()):
        access.revoke(name)


@pytest.mark.rotates(6)
def test_an_agent_asks_starts_a_run_and_gets_its_file(replica: Replica, agent: Agent) -> None:
    assert agent.call("health").answer["well"]
    assert {"flights", "agent_export"} <= {item["name"] for item in agent.call("find", limit=50).answer["found"]}
    assert agent.call("query", sql="SELECT 1 AS x").answer["rows"] == [[1]]
    assert agent.call("query", sql="SELECT * FROM system.users").refused == "unknown_table"
    parameters = {"sql": f"SELECT number, toString(number) AS t FROM numbers({ROWS})"}
    run = agent.call("submit", what="agent_export", parameters=parameters, key="numbers").answer["run"]
    state = agent.call("status", run=run, wait_seconds=20, log_lines=20).answer
    while state["state"] in ("queued", "running"):
        state = agent.call("status", run=run, wait_seconds=20, log_lines=20).answer
    assert state["state"] == "success", state
    exported = state["result"]["export"]
    assert exported["rows"] == ROWS
    url = agent.call("file_url", name="numbers/rows.parquet").answer["url"]

    def bytes_of(address: str) -> int:
        """What a process on vps-1 gets from this address; 0: it is refused."""
        script = 'wget -q -O - "$1" | wc -c'
        return int(replica.compose("exec", "-T", "s3", "sh", "-c", script, "-", address))

    assert bytes_of(url) == exported["bytes"]
    name = agent.login.user
    assert bytes_of(url.replace(f"agents/{name}/", "agents/another/")) == 0
    for path in ("/api/v2/dags/agent_export/dagRuns", "/api/v2/assets/events"):
        assert agent.rest("POST", path, {}).status_code == 403
