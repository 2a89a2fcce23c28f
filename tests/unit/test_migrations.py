"""Steps of sql/: their order, and the tables that are derived from one CREATE TABLE."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.errors import ConfigurationError
from trilake.schema.clickhouse_steps import local_ddl, overall_ddl
from trilake.schema.resources import open_resource
from trilake.schema.steps import MigrationError, Step, read_steps

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


@pytest.mark.parametrize(
    "head",
    [
        "create table t",
        "CREATE TABLE IF NOT EXISTS t",
        "CREATE OR REPLACE TABLE t",
        "CREATE TABLE `t`",
        'CREATE TABLE "t"',
        "CREATE TABLE analytics.t",
        "CREATE TABLE `analytics` . `t`",
        "/* of /* what */ it is */\nCREATE /* a */ TABLE t",
        "# CREATE TABLE other\nCREATE TABLE -- t\nt",
        "-- a; b\nCREATE TABLE t",
    ],
)
def test_ddl_is_read_as_people_write_it(head: str) -> None:
    columns = " (a Int32 COMMENT 'it''s; \"x\" PARTITION BY\n-- b', d Date) ENGINE = MergeTree ORDER BY a TTL d"
    for tail in ("", ";", " ; -- done", "\n-- done\n", "; # done"):
        found = step(head + columns + tail)
        made = local_ddl(found, ONE_SERVER.shards[0])
        assert made == "CREATE TABLE IF NOT EXISTS `shard_1`.`t_local`" + columns
        assert "Merge('shard_1'" in overall_ddl(found, ONE_SERVER, ONE_SERVER.shards[0]), "it has no PARTITION BY"


def test_an_alter_is_read_as_people_write_it() -> None:
    for head in ("ALTER TABLE t", "/* why */ alter table IF EXISTS `t`", "ALTER TABLE analytics.t"):
        made = local_ddl(step(f"{head} ADD COLUMN b String", "clickhouse/t/001_b.sql"), ONE_SERVER.shards[0])
        assert made == "ALTER TABLE `shard_1`.`t_local` ADD COLUMN b String"


@pytest.mark.parametrize(
    ("sql", "path", "problem"),
    [
        ("CREATE TABLE t (a Int8) ENGINE = Memory; DROP TABLE x", "clickhouse/t/table.sql", "has 2 statements"),
        ("CREATE TABLE other.t (a Int8) ENGINE = Memory", "clickhouse/t/table.sql", "names the database other"),
        ("CREATE OR REPLACE TABLE t (a Int8) ENGINE = Memory", "clickhouse/t/001_x.sql", "remove all its rows"),
    ],
)
def test_ddl_that_would_do_something_else_is_refused(sql: str, path: str, problem: str) -> None:
    with pytest.raises(MigrationError, match=problem):
        local_ddl(step(sql, path), ONE_SERVER.shards[0])


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
    with pytest.raises(MigrationError, match="begins with a digit but is not named like a step"):
        read_steps(tmp_path)


def test_every_step_of_this_project_can_be_derived() -> None:
    steps = read_steps(SQL)
    assert {"clickhouse/flights/table.sql", "postgres/carrier_month/table.sql"} <= {s.path for s in steps}
    for found in steps:
        if found.database == "clickhouse":
            assert local_ddl(found, ONE_SERVER.shards[0])


@pytest.mark.parametrize("table", ["publications", "arrivals"])
def test_a_project_cannot_change_trilakes_own_tables(tmp_path: Path, table: str) -> None:
    folder = tmp_path / "sql" / "postgres" / table
    folder.mkdir(parents=True)
    (folder / "table.sql").write_text(f"CREATE TABLE {table} (a int)")
    assert [s.database for s in read_steps(tmp_path / "sql")] == ["oltp"], "the name is free in the team's own database"
    (folder / "table.sql").write_text(f"-- database: lake\nCREATE TABLE {table} (a int)")
    with pytest.raises(MigrationError, match=rf"sql/postgres/{table}/table\.sql is for table {table} of database lake"):
        read_steps(tmp_path / "sql")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of data that cannot be imported, as some cannot."""
    folder = tmp_path / "somedata"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError\n")
    (folder / "plain.csv").write_text("a\n1\n")
    (folder / "data" / "deep.csv").write_text("a\n2\n")
    with zipfile.ZipFile(folder / "data" / "zipped.csv.zip", "w") as archive:
        archive.writestr("zipped.csv", "a\n3\n")
    (tmp_path / "secret.csv").write_text("no")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize(("name", "value"), [("plain.csv", b"1"), ("deep.csv", b"2"), ("data/zipped.csv", b"3")])
def test_a_resource_is_read_from_any_installed_package(package: Path, name: str, value: bytes) -> None:
    with open_resource(f"somedata:{name}") as file:
        assert file.read().split() == [b"a", value]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("somedata:../secret.csv", "does not have the form package:resource"),
        ("somedata:/etc/hosts", "does not have the form package:resource"),
        ("plain.csv", "does not have the form package:resource"),
        ("somedata:missing.csv", "The package somedata has no file missing.csv"),
        ("no_such_package:x.csv", "The package no_such_package is not installed"),
        ("no_such_package.inner:x.csv", "The package no_such_package.inner is not installed"),
    ],
)
def test_a_resource_that_is_not_there_is_named(package: Path, name: str, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what), open_resource(name):
        pass
