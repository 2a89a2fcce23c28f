"""The verbs of a cluster when hosts fail."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from trilake.clickhouse.cluster import ClickHouseError, Cluster, ClusterError
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard

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
