"""`trilake access` in the replica: one command gives a person everything, another one ends it with open sessions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_network import VPN_PORT, Network
from vpn_client import Client
from whole_replica import INSIDE, Replica

from trilake.platform.access import Access
from trilake.platform.hosts.access import access_of


@pytest.fixture
def access(stores: Replica, network: Network) -> Access:
    return access_of(stores.project, stores.env, remote=f"{network.edge_address}:{VPN_PORT}")


@pytest.fixture
def name(access: Access) -> Iterator[str]:
    found = f"test-{secrets.token_hex(4)}"
    yield found
    if any(person.name == found and person.state != "revoked" for person in access.people()):
        access.revoke(found)


@pytest.mark.rotates(6)
def test_an_agent_comes_in_with_its_file_and_loses_everything_within_half_a_minute(
    access: Access, network: Network, client: Client, tmp_path: Path, name: str
) -> None:
    access.add(name, "agent", tmp_path / "a")
    given = json.loads((tmp_path / "a").read_text())
    assert set(given) == {"name", "role", "files", "vpn", "airflow"}
    client.connect(given["vpn"])
    assert client.reached(network.targets("vps-1", "vps-3")) == network.allowed("agent", to=["vps-1", "vps-3"])
    began = time.monotonic()
    access.revoke(name)
    assert time.monotonic() - began < 30
    assert client.reached(network.targets("vps-1")) == set()
    assert client.is_refused(given["vpn"])


@pytest.mark.full
def test_an_engineer_reads_with_its_users_of_every_store_and_loses_them(
    access: Access, stores: Replica, tmp_path: Path, name: str
) -> None:
    if (user := stores.run_inside("user_of_clickhouse").strip()) != "etl_writer":
        pytest.skip(f"the ClickHouse of this replica has no users: Airflow is {user} there")
    access.add(name, "engineer", tmp_path / "a", {"s3": True})
    given = json.loads((tmp_path / "a").read_text())

    def inside(program: str) -> str:
        return stores.compose("run", "--rm", "--no-deps", "-T", "setup-tables", "python", "-", stdin=program)

    program = f"given = {given!r}\n" + (INSIDE / "access_of_an_engineer.py").read_text()
    assert json.loads(inside(program).splitlines()[-1]) == ["asks ClickHouse", "reads S3", "reads PostgreSQL"]
    access.revoke(name)
    assert json.loads(inside(program).splitlines()[-1]) == []
