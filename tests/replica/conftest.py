"""The three hosts in containers: a replica that TRILAKE_REPLICA names, or only host containers and the VPN.

The latter take COMPOSE_PROJECT_NAME and TRILAKE_SUBNET from the environment, so that several can be on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hosts_network import Container, Network, await_true, holders_and_vpn, running, why_no_docker
from vpn_client import Client
from whole_replica import FLIGHTS, HEALTHY_S, REFERENCE, REPORT, WINDOW, Replica, known

from support.rotation import describe_turn, keep_turn

REPLICA = os.environ.get("TRILAKE_REPLICA", "")
OWN_PROJECT = "trilake-test"
OWN_SUBNET = "10.77.250.0/24"


def pytest_report_header() -> list[str]:
    why = why_no_docker()
    where = f"replica: {f'skipped, {why}' if why else REPLICA or 'host containers and VPN of our own'}"
    return [where, describe_turn()]


@pytest.hookimpl(trylast=True)  # what is marked full is deselected by then, if it is
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keep_turn(config, items, Path(__file__).parent)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if why := why_no_docker():
        pytest.skip(why)
    if REPLICA:
        with running(REPLICA) as found:
            yield found
        return
    project = os.environ.get("COMPOSE_PROJECT_NAME", OWN_PROJECT)
    subnet = os.environ.get("TRILAKE_SUBNET", OWN_SUBNET)
    with holders_and_vpn(project, subnet, tmp_path_factory.mktemp("replica")) as made:
        yield made


@pytest.fixture(scope="session")
def outside(network: Network) -> Container:
    """Somebody beside vps-1's public address, who knows the private addresses and tries them through vps-1."""
    somebody = network.container(network.edge, "--ulimit", "nofile=40000")
    for address in network.address.values():
        network.ip(somebody.id, "route", "add", address, "via", network.edge_address)
    return somebody


@pytest.fixture(scope="session")
def inside(network: Network) -> dict[str, Container]:
    """In each host's network, by host."""
    return {host: network.on(host) for host in network.address}


@pytest.fixture
def client(network: Network) -> Iterator[Client]:
    one = Client(network)
    yield one
    one.end()


@pytest.fixture
def another_client(network: Network) -> Iterator[Client]:
    one = Client(network)
    yield one
    one.end()


@pytest.fixture(scope="session")
def stores() -> Replica:
    """A replica of which only the stores have to be up."""
    if why := why_no_docker():
        pytest.skip(why)
    if not REPLICA:
        pytest.skip("TRILAKE_REPLICA names no replica that runs: `make replica`, then its Compose project's name")
    return Replica(REPLICA)


@pytest.fixture(scope="session")
def replica(stores: Replica) -> Replica:
    """All of it, as `make replica` leaves it: what it keeps is the tests' from here on."""
    stores.await_healthy()
    await_true(lambda: known(stores), HEALTHY_S, "Airflow to know the DAGs")
    print(stores.run_inside("overall_views"))
    return stores


@pytest.fixture(scope="session")
def flights(replica: Replica) -> dict[str, Any]:
    """What the replica holds when the reference tables and the flights of `WINDOW` have gone through it."""
    replica.await_end(REFERENCE, replica.start_reference())
    began = datetime.now(UTC)
    with replica.api() as api:
        api.unpause(REPORT)
    replica.await_end(FLIGHTS, replica.start(FLIGHTS, WINDOW))
    replica.await_end(REPORT, replica.appears(REPORT, began))
    return replica.held()


@pytest.fixture(scope="session")
def published(replica: Replica, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same, for tests that need flights to be there and not to have come just now."""
    try:
        found = replica.held()
    except AssertionError:  # there is no table of it yet
        found = {}
    if found and found["reports"] and all(sum(rows for _, rows, _ in s) for s in found["shards"].values()):
        return found
    made: dict[str, Any] = request.getfixturevalue("flights")
    return made
