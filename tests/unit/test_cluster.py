"""The verbs of a cluster when hosts fail."""

from __future__ import annotations

import threading
import traceback
from typing import Any
from unittest.mock import Mock

import pytest

from trilake.clickhouse.cluster import ClickHouseError, Cluster, ClusterError
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, EnvironmentConnection
from trilake.errors import UnreachableError

SHARDS = tuple(ClickHouseShard(number, f"h{number}", 8123, f"shard_{number}") for number in range(1, 5))


@pytest.mark.parametrize("verb", ["every_shard", "every_host"])
def test_a_host_that_fails_at_once_keeps_no_other_from_its_turn(verb: str) -> None:
    """How fast a thread fails decides whether the next had begun: so try often."""
    cluster = Cluster(ClickHouseEndpoint(SHARDS, "u", "p"), connect=lambda *_: Mock())
    for _ in range(50):
        reached = []

        def operation(_client: Any, shard: ClickHouseShard, reached: list[int] = reached) -> None:
            reached.append(shard.number)
            raise ClickHouseError(f"{shard} refused.")

        with pytest.raises(ClusterError) as caught:
            getattr(cluster, verb)(operation)
        assert sorted(reached) == [1, 2, 3, 4]
        assert len(caught.value.errors) == 4


def test_hosts_are_connected_to_side_by_side() -> None:
    together = threading.Barrier(len(SHARDS), timeout=120)

    def connect(*_: Any) -> Any:
        together.wait()
        return Mock()

    cluster = Cluster(ClickHouseEndpoint(SHARDS, "u", "p"), connect=connect)
    assert len(cluster.every_host(lambda _, shard: shard.number)) == 4


def test_shards_of_one_host_share_one_connection() -> None:
    shards = tuple(ClickHouseShard(number, "h", 8123, f"shard_{number}") for number in range(1, 9))
    made = []
    cluster = Cluster(ClickHouseEndpoint(shards, "u", "p"), connect=lambda *_: made.append(Mock()) or made[-1])
    cluster.every_shard(lambda _client, _shard: None)
    assert len(made) == 1


@pytest.mark.parametrize("verb", ["every_shard", "on_shards", "any_host"])
def test_a_fault_of_the_program_is_no_silent_host(verb: str) -> None:
    def faulty(_client: Any, _shard: ClickHouseShard) -> None:
        raise KeyError("of ours")

    cluster = Cluster(ClickHouseEndpoint(SHARDS, "u", "p"), connect=lambda *_: Mock())
    with pytest.raises(KeyError, match="of ours") as caught:
        getattr(cluster, verb)([(SHARDS[0], faulty)] if verb == "on_shards" else faulty)
    assert "in faulty" in "".join(traceback.format_exception(caught.value))


def test_any_host_that_finds_none_tells_of_each() -> None:
    def refuse(_endpoint: Any, shard: ClickHouseShard, _comment: str) -> Any:
        raise ConnectionRefusedError(f"no {shard.host}")

    cluster = Cluster(ClickHouseEndpoint(SHARDS, "u", "p"), connect=refuse)
    with pytest.raises(ClusterError) as caught:
        cluster.any_host(lambda _client, _shard: None)
    assert [type(error) for _, error in caught.value.errors] == [UnreachableError] * 4
    assert all(f"shard {n} (h{n}:8123" in caught.value.message for n in range(1, 5))


def test_the_connections_switches_reach_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import clickhouse_connect

    given: dict[str, Any] = {}
    monkeypatch.setattr(clickhouse_connect, "get_client", lambda **options: given.update(options) or Mock())
    extra = {
        "shards": [{"database": "shard_1"}],
        "secure": "true",
        "verify": "false",
        "client_kwargs": '{"send_receive_timeout": 7, "ca_cert": "/ca.pem", "host": "elsewhere"}',
    }
    connection = EnvironmentConnection("c", host="h", login="u", password="p", extra_dejson=extra)
    Cluster(ClickHouseEndpoint.from_connection(connection)).any_host(lambda _client, _shard: None)
    wanted = {
        "host": "h",
        "port": 8443,
        "secure": True,
        "verify": False,
        "send_receive_timeout": 7,
        "ca_cert": "/ca.pem",
    }
    assert given | wanted == given
    assert given["connect_timeout"] > 0
    assert Cluster(ClickHouseEndpoint.of_servers(connection)).endpoint.verify is False
