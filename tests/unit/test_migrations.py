"""Steps of sql/: their order, and the tables that are derived from one CREATE TABLE."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.schema.migrations import MigrationError, Step, local_ddl, overall_ddl, read_steps

SQL = Path(__file__).resolve().parents[2] / "sql"
ONE_SERVER = ClickHouseEndpoint(
    (ClickHouseShard(1, "a", 8123, "shard_1"), ClickHouseShard(2, "a", 8123, "shard_2")), "u", "p"
)
TWO_SERVERS = ClickHouseEndpoint(
    (ClickHouseShard(1, "a", 8123, "shard_1"), ClickHouseShard(2, "b", 8123, "shard_2")), "u", "p"
)
SHARDED = "-- CREATE TABLE other: no\nCREATE TABLE t (a Int32) ENGINE = MergeTree PARTITION BY a ORDER BY a;\n"
DIMENSION = "-- not PARTITION BY anything\nCREATE TABLE t (a Int32) ENGINE = MergeTree ORDER BY a\n"


def step(sql: str, path: str = "clickhouse/t/table.sql") -> Step:
    return Step(path, "t", "clickhouse", sql)


def test_the_local_table_is_the_same_statement_under_another_name() -> None:
    assert local_ddl(step(SHARDED), TWO_SERVERS.shards[1]) == (
        "CREATE TABLE IF NOT EXISTS `shard_2`.`t_local` (a Int32) ENGINE = MergeTree PARTITION BY a ORDER BY a"
    )


@pytest.mark.parametrize(
    ("sql", "endpoint", "engine"),
    [
        (SHARDED, ONE_SERVER, "Merge(REGEXP('^(shard_1|shard_2)$'), '^t_local$')"),
        (SHARDED, TWO_SERVERS, "Distributed('trilake', '', 't_local')"),
        (DIMENSION, ONE_SERVER, "Merge('shard_1', '^t_local$')"),
        (DIMENSION, TWO_SERVERS, "Merge('shard_1', '^t_local$')"),
    ],
)
def test_the_table_over_all_shards_is_derived(sql: str, endpoint: ClickHouseEndpoint, engine: str) -> None:
    assert overall_ddl(step(sql), endpoint, endpoint.shards[0]) == (
        f"CREATE OR REPLACE TABLE `analytics`.`t` AS `shard_1`.`t_local` ENGINE = {engine}"
    )


@pytest.mark.parametrize("sql", ["CREATE TABLE other (a Int32) ENGINE = MergeTree ORDER BY a", "DROP TABLE t", ""])
def test_a_step_that_is_not_about_its_table_is_refused(sql: str) -> None:
    with pytest.raises(MigrationError, match="CREATE or ALTER TABLE t"):
        local_ddl(step(sql), ONE_SERVER.shards[0])


def test_tables_come_first_and_numbered_steps_by_number(tmp_path: Path) -> None:
    for path in ("b/002_x.sql", "b/001_y.sql", "a/001_z.sql", "a/table.sql", "b/table.sql", "b/query.sql"):
        file = tmp_path / "postgres" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("SELECT 1")
    assert [s.path.removeprefix("postgres/") for s in read_steps(tmp_path)] == [
        "a/table.sql", "b/table.sql", "a/001_z.sql", "b/001_y.sql", "b/002_x.sql",
    ]  # fmt: skip


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "a").mkdir(parents=True)
    (tmp_path / "postgres" / "a" / "001_x.sql").write_text("SELECT 1")
    with pytest.raises(MigrationError, match=r"no table\.sql"):
        read_steps(tmp_path)


@pytest.mark.parametrize("name", ["1_x.sql", "01_x.sql", "001-x.sql", "001_X.sql"])
def test_a_file_that_is_almost_a_step_is_refused_and_not_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "postgres" / "a").mkdir(parents=True)
    for file in ("table.sql", name):
        (tmp_path / "postgres" / "a" / file).write_text("SELECT 1")
    with pytest.raises(MigrationError, match="is named like a step and is none"):
        read_steps(tmp_path)


def test_every_step_of_this_project_can_be_derived() -> None:
    steps = read_steps(SQL)
    assert {"clickhouse/flights/table.sql", "postgres/publications/table.sql"} <= {s.path for s in steps}
    for found in steps:
        if found.database == "clickhouse":
            assert local_ddl(found, ONE_SERVER.shards[0])
