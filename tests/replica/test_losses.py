"""vps_3 loses its disks: the loss is told, nobody reads too few rows, and one command brings all of it back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hosts_network import docker
from whole_replica import Replica

pytestmark = pytest.mark.timeout(3600)
# As docs/operations/hosts.md says
TRILAKE = ("run", "--rm", "--no-deps", "-T", "setup-tables", "trilake")


def lose_disks(replica: Replica, services: list[str]) -> None:
    """Their containers go, with all volumes."""
    volumes = {
        mount["Name"]
        for service in services
        for mount in json.loads(docker("inspect", replica.container(service)))[0]["Mounts"]
        if mount["Type"] == "volume"
    }
    assert volumes
    replica.compose("rm", "--stop", "--force", *services)
    docker("volume", "rm", *volumes)


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    "services", [["clickhouse-1", "clickhouse-2"], pytest.param(["clickhouse-2"], marks=pytest.mark.full)], ids=len
)
def test_what_clickhouse_lost_comes_back_without_spark(
    replica: Replica, published: dict[str, Any], services: list[str]
) -> None:
    before = replica.held()
    lose_disks(replica, services)
    replica.compose("up", "--detach", "--no-build", "--no-deps", *services, seconds=600)
    replica.await_healthy()
    replica.compose(*TRILAKE, "migrate", "--wait", "120", seconds=600)  # as every `up` does
    with pytest.raises(AssertionError, match="published partitions compared"):
        replica.compose(*TRILAKE, "rebuild", "--check", seconds=300)
    with pytest.raises(AssertionError, match="UNKNOWN_TABLE"):  # and not a count that is too small
        replica.held()
    replica.compose(*TRILAKE, "rebuild", seconds=900)
    print(replica.run_inside("overall_views"))  # the tables over all shards are new
    assert replica.held() == before
    assert replica.compose(*TRILAKE, "rebuild", "--check", "--checksums", "--json", seconds=300) == "[]"
    assert not replica.left_in_kubernetes()
