"""An agent's query in Spark SQL on the lake: what its files hold, and what a refusal leaves."""

from __future__ import annotations

import secrets
from typing import Any

import psycopg2
import pytest

from support.agent_sql_work import ROWS, TABLE
from support.running_platform import Platform
from support.spark_session import run
from trilake.endpoints import LAKE_CONNECTION, Endpoints, PostgresEndpoint, as_environment
from trilake.lake.catalog import grant_catalog
from trilake.platform.embedded import postgres
from trilake.postgres.connection import connect
from trilake.postgres.databases import CATALOG_READER, make_catalog_reader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def first_snapshot(platform: Platform) -> int:
    return int(run(platform, "support.agent_sql_work:make")[0])


def ask(platform: Platform, sql: str, key: str, max_bytes: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = run(platform, "support.agent_sql_work:ask", sql, key, str(max_bytes))[0]
    return found


def test_a_query_reads_the_lake_and_its_old_snapshots_and_a_later_try_replaces_its_files(
    platform: Platform, first_snapshot: int
) -> None:
    both = ask(platform, f"SELECT /*+ REPARTITION(4) */ * FROM {TABLE}", "all")
    assert (both["rows"], len(both["files"])) == (2 * ROWS, 4)
    assert both["columns"] == [["id", "bigint"], ["at", "timestamp"]]
    old = ask(platform, f"SELECT count(*) AS n FROM lake.curated.{TABLE} VERSION AS OF {first_snapshot}", "all")
    assert old["files"] == ["all/part-00000.parquet"]
    # the files of the first query are gone, and the agent's own file is not
    assert old["left"] == {"manifest.json": 1, "own.txt": None, "part-00000.parquet": 1}


def test_a_result_without_rows_is_a_file_with_the_columns(platform: Platform, first_snapshot: int) -> None:
    none = ask(platform, f"SELECT id FROM curated.{TABLE} WHERE id < 0", "none")
    assert none["left"] == {"manifest.json": 0, "own.txt": None, "part-00000.parquet": 0}


@pytest.mark.parametrize(
    ("sql", "max_bytes", "why"),
    [
        (f"SELECT /*+ REPARTITION(4) */ * FROM {TABLE}", 20_000, "more than 20000 bytes"),
        (f"SELECT id, id AS ID FROM {TABLE}", 0, "Two columns are named id"),
        (f"SELECT id, make_interval(1) AS i FROM {TABLE}", 0, "Column i is interval, which Parquet does not have"),
        (f"SELECT 1 / (id - id) AS x FROM {TABLE}", 0, "DIVIDE_BY_ZERO"),
        (f"SELECT nothing FROM {TABLE}", 0, "Spark cannot run the query"),
        (f"SELECT * FROM lake.curated.{TABLE}.files", 0, "is not one of the tables"),
        (f"SELECT * FROM {TABLE} VERSION AS OF 1", 0, "Spark cannot run the query"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_refused_query_says_why_and_leaves_no_result(
    platform: Platform, first_snapshot: int, sql: str, max_bytes: int, why: str
) -> None:
    said = ask(platform, sql, "refused", max_bytes)
    assert said["refused"] == "QueryRefusedError"
    assert why in said["says"]
    assert "manifest.json" not in said["left"]


def test_the_user_of_the_catalog_that_agents_applications_have_on_the_hosts_reads_the_lake_and_changes_nothing(
    platform: Platform, endpoints: Endpoints, first_snapshot: int
) -> None:
    superuser = postgres.superuser(platform.home.ports()["postgres"], platform.home.secrets())
    lake, password = endpoints.lake, secrets.token_hex(16)
    for _ in range(2):  # both can be repeated
        make_catalog_reader(superuser, password)
        grant_catalog(lake, endpoints.s3)
    reader = PostgresEndpoint(lake.host, lake.port, lake.database, CATALOG_READER, password)
    try:
        given = as_environment({LAKE_CONNECTION: reader.connection()})
        found, said = run(platform, "support.agent_sql_work:read_and_try_to_change", **given)
        assert found["rows"] == 2 * ROWS
        assert len(found["refused"]) == 5, said[-4000:]
        with connect(reader) as connection, connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")  # its rights hold without it
            connection.commit()
            for statement in ("SELECT 1 FROM publications", "DELETE FROM iceberg_tables", "CREATE TABLE own (x int)"):
                with pytest.raises(psycopg2.Error, match="permission denied"):
                    cursor.execute(statement)
                connection.rollback()
        other = PostgresEndpoint(lake.host, lake.port, endpoints.oltp.database, CATALOG_READER, password)
        with pytest.raises(Exception, match="permission denied for database"), connect(other):
            pass
    finally:
        with connect(lake) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"REVOKE ALL ON public.iceberg_tables, public.iceberg_namespace_properties FROM {CATALOG_READER}"
            )
        with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f"REVOKE ALL ON DATABASE lake FROM {CATALOG_READER}")
            cursor.execute(f"DROP ROLE {CATALOG_READER}")
