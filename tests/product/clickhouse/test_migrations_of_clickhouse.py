"""Migrations of ClickHouse that die half-way, on a real engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.schema import clickhouse_steps
from trilake.schema.clickhouse_steps import migrate_clickhouse
from trilake.schema.steps import Step

TABLE = Step("clickhouse/t/table.sql", "t", "clickhouse", "CREATE TABLE t (a Int32) ENGINE = MergeTree ORDER BY a")
COLUMN = Step("clickhouse/t/001_b.sql", "t", "clickhouse", "ALTER TABLE t ADD COLUMN IF NOT EXISTS b Int32")


@pytest.fixture
def cluster(endpoints: Endpoints) -> Iterator[Cluster]:
    """The running server with databases of this test alone."""
    name = f"m_{secrets.token_hex(4)}"
    first = endpoints.clickhouse.shards[0]
    shards = tuple(ClickHouseShard(n, first.host, first.port, f"{name}_{n}") for n in (1, 2))
    with Cluster(replace(endpoints.clickhouse, shards=shards, database=name)) as cluster:
        yield cluster
        for database in (name, *(shard.database for shard in shards)):
            cluster.any_host(Statement(f"DROP DATABASE IF EXISTS {database} SYNC"))


def columns(cluster: Cluster) -> list[str]:
    return [row[0] for row in cluster.any_host(Statement(f"DESCRIBE TABLE {cluster.endpoint.database}.t"))]


def die(*_: object) -> str:
    raise KeyboardInterrupt


def test_the_table_over_all_shards_follows_though_the_first_try_died_before_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps, expected in (([TABLE], ["a"]), ([TABLE, COLUMN], ["a", "b"])):
        with monkeypatch.context() as dying:
            dying.setattr(clickhouse_steps, "overall_ddl", die)
            with pytest.raises(KeyboardInterrupt):
                migrate_clickhouse(cluster, steps, dry_run=False)
        assert {item.state for item in migrate_clickhouse(cluster, steps, dry_run=False)} == {"applied"}
        assert columns(cluster) == expected


def test_a_dropped_table_is_created_again_with_all_its_steps(cluster: Cluster) -> None:
    migrate_clickhouse(cluster, [TABLE, COLUMN], dry_run=False)
    second = cluster.shards[1]
    cluster.on_shard(second, Statement("DROP TABLE {shard}.t_local SYNC"))
    cluster.any_host(Statement(f"DROP TABLE {cluster.endpoint.database}.t SYNC"))
    planned = migrate_clickhouse(cluster, [TABLE, COLUMN], dry_run=True)
    assert [item.target for item in planned if item.state == "pending"] == [str(second)] * 2
    migrate_clickhouse(cluster, [TABLE, COLUMN], dry_run=False)
    assert columns(cluster) == ["a", "b"]
    there = cluster.on_shard(second, Statement("SELECT name FROM system.columns WHERE database = "
                                               f"'{second.database}' AND table = 't_local'"))  # fmt: skip
    assert there == [("a",), ("b",)]
    assert {item.state for item in migrate_clickhouse(cluster, [TABLE, COLUMN], dry_run=True)} == {"applied"}


def test_a_table_over_all_shards_that_is_up_to_date_is_left_alone(cluster: Cluster) -> None:
    sql = f"SELECT uuid FROM system.tables WHERE database = '{cluster.endpoint.database}'"
    migrate_clickhouse(cluster, [TABLE], dry_run=False)
    made = cluster.any_host(Statement(sql))
    migrate_clickhouse(cluster, [TABLE], dry_run=False)
    assert cluster.any_host(Statement(sql)) == made
