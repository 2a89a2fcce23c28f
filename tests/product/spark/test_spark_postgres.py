"""Rows of Spark in PostgreSQL: all of them or none, once, whatever is killed; and the password nowhere."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import spark_session
from support.kubernetes_api import await_true
from support.running_platform import Platform
from trilake.endpoints import Endpoints
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, hold_lock
from trilake.spark.postgres import STAGING, remove_abandoned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(spark_session.TIMEOUT_S)]


@pytest.fixture
def schema(endpoints: Endpoints) -> Iterator[str]:
    """One of the test's own, so that no other test's writer cleans up in it."""
    name = f"s_{secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {name}")
        cursor.execute(
            f"CREATE TABLE {name}.t (k int, d date, n double precision, note text, at timestamptz, "
            "price numeric(9, 2), flag boolean, raw bytea, extra jsonb, kept text NOT NULL DEFAULT 'kept', "
            "id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (k, d))"
        )
        cursor.execute(f"INSERT INTO {name}.t (k, d) VALUES (77, '2012-01-01')")
    yield name
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA {name} CASCADE")


def tables(endpoints: Endpoints, schema: str) -> list[str]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", (schema,))
        return [name for (name,) in cursor.fetchall()]


def test_rows_are_replaced_or_merged_as_they_are_or_nothing_changes(
    platform: Platform, schema: str, tmp_path: Path
) -> None:
    conf = {"enabled": "true", "dir": f"file://{tmp_path}", "compress": "false"}
    told, said = spark_session.run(
        platform,
        "support.spark_work:write_all_ways",
        f"{schema}.t",
        SPARK_TEST_CONF=json.dumps({f"spark.eventLog.{key}": value for key, value in conf.items()}),
        SPARK_TEST_MASTER="local[2]",  # what PostgreSQL refuses once, it refuses always
    )
    assert (told["all"]["rows"], told["all"]["inserted"], told["all"]["updated"]) == (5, 5, 0)
    zero, one, two = told["rows"][:3]
    moment = "datetime.datetime(2013, 2, 28, 23, 59, 59, 123456, tzinfo=datetime.timezone.utc)"
    assert zero[:7] == [
        "0",
        "datetime.date(2013, 2, 1)",
        "0.0",
        repr('a,"\n\\.0'),
        moment,
        "Decimal('-12.34')",
        "False",
    ]
    assert zero[8] == "{'a': [1, None], 'at': '2013-02-28T23:59:59.123456Z'}"
    assert one == [
        "1",
        "datetime.date(2013, 2, 2)",
        "None",
        "None",
        moment,
        "Decimal('-12.34')",
        "True",
        "None",
        "None",
    ]
    assert two[3] == "''", "an empty text is not NULL"
    assert told["after window"] == [
        [0, 'a,"\n\\.0', "kept"], [2, "new", "kept"], [3, 'a,"\n\\.3', "kept"], [4, 'a,"\n\\.4', "kept"],
    ]  # fmt: skip
    assert (told["merge"]["rows"], told["merge"]["inserted"], told["merge"]["updated"]) == (2, 1, 1)
    merged = [[0, 'a,"\n\\.0'], [2, "again"], [3, 'a,"\n\\.3'], [4, 'a,"\n\\.4'], [9, "nine"]]
    assert told["after merge"] == told["after refusals"] == merged
    assert "CountMismatchError" in told["outside"]
    assert "outside of the part that is replaced" in told["outside"]
    assert "DuplicateKeyError" in told["doubled"]
    assert "column d (date) cannot hold NULL (date) in the row with k = " in told["null"]
    assert "invalid input syntax for type numeric" in told["wrong type"]
    assert "Traceback" not in told["wrong type"]
    assert "the table has no column elsewhere" in told["no column"]
    assert "not clear which rows" in told["unclear"]
    assert "column n is interval day in the rows and double precision in the table" in told["interval"]
    for name, says in {
        "rounded": "column price (numeric(9,2)) cannot hold '1.005' (decimal(4,3)) in the row with k = 0",
        "fraction": "column k (integer) cannot hold '1.5' (double) in the row with k = 1.5: invalid input",
        "nul": "column note (text) cannot hold 'a\\\\0b' (string) in the row with k = 0: it is not UTF-8, or has NUL",
        "bytes as text": "column note is binary in the rows and text in the table",
        "no zone": "column at is timestamp_ntz in the rows and timestamp with time zone in the table",
        "time of day": "column d is timestamp in the rows and date in the table",
    }.items():
        assert says in told[name]
    assert told["empty"]["rows"] == 0
    assert told["staging"] == []
    # and the password: in no plan, no line of the driver's and its executors' log, no event
    assert "MapInArrow" in told["plan"]
    events = "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())
    assert "SparkListenerTaskEnd" in events
    for password in {platform.endpoints.oltp.password, platform.endpoints.s3.secret_access_key}:
        assert password not in told["plan"] + said + events


def test_a_task_that_dies_after_its_commit_doubles_no_row(platform: Platform, schema: str) -> None:
    told, _ = spark_session.run(platform, "support.spark_work:write_in_a_storm", f"{schema}.t")
    assert told == {"staged": 2000, "written": 1000, "left": []}
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*), count(DISTINCT k) FROM {schema}.t")
        assert cursor.fetchone() == (1000, 1000)


@pytest.mark.nightly
def test_what_a_killed_driver_leaves_is_removed_by_the_next_and_readers_see_nothing_of_it(
    platform: Platform, schema: str
) -> None:
    driver = spark_session.start(platform, "support.spark_work:write_and_hang", f"{schema}.t")
    try:
        left = await_true(lambda: tables(platform.endpoints, schema)[1:], spark_session.TIMEOUT_S)
        assert remove_abandoned(platform.endpoints.oltp, schema) == [], "its writer lives"
        await_true(lambda: sessions(platform.endpoints, left[0]), spark_session.TIMEOUT_S)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert tables(platform.endpoints, schema) == ["t", *left]
    await_true(lambda: remove_abandoned(platform.endpoints.oltp, schema) == [f"{schema}.{left[0]}"])
    assert tables(platform.endpoints, schema) == ["t"]
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT k FROM {schema}.t")
        assert cursor.fetchall() == [(77,)]


def test_of_two_writers_none_removes_the_others_staging(endpoints: Endpoints, schema: str) -> None:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        for attempt in ("0" * 12, "1" * 12):
            cursor.execute(f"CREATE UNLOGGED TABLE {schema}.{STAGING}{attempt} (k int)")
    with hold_lock(endpoints.oltp, LockSpace.MART_STAGING, "0" * 12):
        assert remove_abandoned(endpoints.oltp, schema) == [f"{schema}.{STAGING}{'1' * 12}"]
    assert remove_abandoned(endpoints.oltp, schema) == [f"{schema}.{STAGING}{'0' * 12}"]


def sessions(endpoints: Endpoints, name: str) -> list[Any]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,))
        return cursor.fetchall()
