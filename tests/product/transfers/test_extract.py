"""A query of PostgreSQL as an object of S3: types, NULLs and counts come over; whole, or not there. On real servers."""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.clickhouse_gateway import wait_until
from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake import s3
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake import DataSet
from trilake.postgres.connection import PostgresError, connect
from trilake.postgres.extract import Extracted, ExtractError, Format, extract, one_moment
from trilake.s3 import PART_BYTES, ObjectWriter, S3Error
from trilake.transfers.postgres_to_s3 import PostgresToS3Operator

BUCKET = "raw"


class Target:
    """Where one test's objects lie, and the database they come from."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self.client = s3.client(endpoints.s3)
        self.prefix = f"t_{secrets.token_hex(4)}/"
        self.key = f"{self.prefix}file"

    def extract(self, sql: str, file_format: Format = "parquet", **parameters: Any) -> Extracted:
        with connect(self.endpoints.oltp) as connection, one_moment(connection) as cursor:
            return extract(cursor, sql, parameters, self.client, BUCKET, self.key, file_format=file_format)

    def content(self, key: str = "") -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key or self.key)["Body"].read()

    def table(self, key: str = "") -> pa.Table:
        return pq.read_table(io.BytesIO(self.content(key)))

    def uploads(self) -> list[Any]:
        return list(self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix).get("Uploads", []))

    def listed(self) -> list[str]:
        return s3.list_keys(self.client, BUCKET, self.prefix)


@pytest.fixture
def target(endpoints: Endpoints) -> Iterator[Target]:
    made = Target(endpoints)
    yield made
    s3.remove(made.client, BUCKET, made.listed())


# --- types and values

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
MOMENT = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
COLUMNS: dict[str, tuple[str, Any]] = {
    "flag": ("boolean", st.booleans()),
    "small": ("smallint", st.integers(-(2**15), 2**15 - 1)),
    "whole": ("integer", st.integers(-(2**31), 2**31 - 1)),
    "large": ("bigint", st.integers(-(2**63), 2**63 - 1)),
    "single": ("real", st.floats(width=32, allow_nan=False)),
    "double": ("double precision", st.floats(allow_nan=False)),
    "exact": ("numeric(38, 9)", st.decimals(-(10**28), 10**28, allow_nan=False, places=9)),
    "text": ("text", TEXT),
    "bytes": ("bytea", st.binary(max_size=20)),
    "uuid": ("uuid", st.uuids().map(str)),
    "day": ("date", st.dates()),
    "moment": ("timestamp", MOMENT),
    "moment_tz": ("timestamptz", MOMENT.map(lambda moment: moment.replace(tzinfo=UTC))),
    "hour": ("time", st.times()),
}
ROWS = st.lists(st.tuples(*(st.none() | values for _, values in COLUMNS.values())), max_size=8)


@settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=ROWS)
def test_what_postgresql_holds_is_what_parquet_holds(target: Target, rows: list[tuple[Any, ...]]) -> None:
    with connect(target.endpoints.oltp) as connection, connection.cursor() as cursor:
        declared = ", ".join(f'"{name}" {kind}' for name, (kind, _) in COLUMNS.items())
        cursor.execute(f"CREATE TABLE IF NOT EXISTS public.{target.prefix[:-1]} (n int, {declared})")
        cursor.execute(f"TRUNCATE public.{target.prefix[:-1]}")
        marks = ", ".join(["%s"] * (len(COLUMNS) + 1))
        for number, row in enumerate(rows):
            cursor.execute(f"INSERT INTO public.{target.prefix[:-1]} VALUES ({marks})", (number, *row))
    listed = ", ".join(f'"{name}"' for name in COLUMNS)
    try:
        done = target.extract(f"SELECT {listed} FROM public.{target.prefix[:-1]} ORDER BY n")
    finally:
        with connect(target.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE public.{target.prefix[:-1]}")
    assert done.rows == len(rows)
    assert [tuple(row.values()) for row in target.table().to_pylist()] == rows


def test_types_are_postgresqls_also_of_a_result_without_rows(target: Target) -> None:
    done = target.extract(
        "SELECT 1::int2 a, 1::int4 b, 1::int8 c, 1.5::numeric(7, 2) d, 1500::numeric(2, -2) e, 'x'::varchar f, "
        "'{}'::jsonb g, now() h, now()::timestamp i, current_date j, true k, ''::bytea l WHERE false"
    )
    assert (done.rows, target.table().num_rows) == (0, 0)
    assert [str(field.type) for field in target.table().schema] == [
        *("int16", "int32", "int64", "decimal128(7, 2)", "decimal128(4, 0)", "string", "string"),
        *("timestamp[us, tz=UTC]", "timestamp[us]", "date32[day]", "bool", "binary"),
    ]


def test_null_is_not_the_empty_text_and_json_keeps_its_digits(target: Target) -> None:
    values = """'' a, null::text b, '{"n": 1.10}'::jsonb c, 'NaN'::float8 d, '2013-01-01 12:00+05:30'::timestamptz e"""
    target.extract(f"SELECT {values}")
    row = target.table().to_pylist()[0]
    assert (row["a"], row["b"], row["c"], row["e"]) == (
        "",
        None,
        '{"n": 1.10}',
        datetime(2013, 1, 1, 6, 30, tzinfo=UTC),
    )
    assert math.isnan(row["d"])
    target.extract("SELECT null::int a FROM generate_series(1, 3)")
    assert target.table().to_pylist() == [{"a": None}] * 3


def test_csv_is_as_postgresql_writes_it_and_its_rows_are_counted_through_line_ends_in_values(target: Target) -> None:
    done = target.extract("""SELECT x, E'a"\\n"b' AS "odd\nname", null n, '' e FROM generate_series(1, 3) x""", "csv")
    assert done.rows == 3
    text = target.content().decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["x", "odd\nname", "n", "e"],
        *([str(x), 'a"\n"b', "", ""] for x in (1, 2, 3)),
    ]
    assert text.endswith(',,""\n')


def test_parameters_are_bound_and_a_doubled_percent_sign_is_one(target: Target) -> None:
    target.extract("SELECT %(name)s::text a, '100%%' b, 5 %% 3 c; ", name="o'x %s")
    assert target.table().to_pylist() == [{"a": "o'x %s", "b": "100%", "c": 2}]


@pytest.mark.parametrize(
    ("sql", "error", "says"),
    [
        ("SELECT sum(x::numeric) total FROM generate_series(1, 3) x", ConfigurationError, "Column total is a numeric"),
        ("SELECT now() - now() AS age", ConfigurationError, "Column age has the type interval"),
        ("SELECT 1 a, 2 a", ConfigurationError, "column a twice"),
        (
            "SELECT 'infinity'::timestamp late FROM generate_series(1, 2000000)",
            ExtractError,
            "Column late has .* 'infinity' in row 1",
        ),
        ("SELECT 'NaN'::numeric(4, 2) n", ExtractError, "Column n has a value .* 'NaN' in row 1"),
        (
            "SELECT CASE WHEN x = 700000 THEN 'infinity' ELSE now() END AS late FROM generate_series(1, 800000) x",
            ExtractError,
            "Column late has .* 'infinity' in row 700000",
        ),
        ("SELECT NULL::date d UNION ALL SELECT '0044-03-15 BC'", ExtractError, "'0044-03-15 BC' in row 2"),
        ("SELECT '20000-01-01'::timestamp d", ExtractError, "'20000-01-01 00:00:00' in row 1"),
        ("SELECT '24:00'::time d", ExtractError, "Column d has .* '24:00:00' in row 1"),
        ("SELECT %(missing)s::int a", ConfigurationError, "parameter missing, which is not given. Given: none"),
        ("SELECT %s a", ConfigurationError, "parameter without a name"),
        ("SET lock_timeout = 1; SELECT 1 a", ConfigurationError, "more than one statement"),
        ("SELECT 1 / (x - 900000) FROM generate_series(1, 1000000) x", PostgresError, "division by zero"),
        ("SELECT repeat('x', 80000000) a, 1 FROM generate_series(1, 2)", ExtractError, "A row is larger than 64 MiB"),
    ],
)
def test_what_cannot_be_written_is_an_error_and_the_earlier_object_stays(
    target: Target, sql: str, error: type[Exception], says: str
) -> None:
    target.extract("SELECT 'before' a")
    with pytest.raises(error, match=says):
        target.extract(sql)
    assert target.table().to_pylist() == [{"a": "before"}]
    assert not target.uploads()


def test_rows_are_counted_against_postgresqls(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilake.postgres.extract._with_binary", lambda table, *_: table.slice(1))
    with pytest.raises(CountMismatchError, match=r"PostgreSQL sent 10 rows .* but 9 were written"):
        target.extract("SELECT x FROM generate_series(1, 10) x")
    assert not target.listed()


def test_rows_are_whole_wherever_a_block_ends(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilake.postgres.extract.BLOCK_BYTES", 7)
    done = target.extract("""SELECT x, E'a"\\n,"b\\n' AS t, NULL::text n FROM generate_series(1, 50) x""")
    assert done.rows == 50
    assert target.table().to_pylist() == [{"x": x, "t": 'a"\n,"b\n', "n": None} for x in range(1, 51)]


# --- the object


def test_of_two_writers_of_one_object_the_earlier_one_cannot_commit(target: Target) -> None:
    zombie = ObjectWriter(target.client, BUCKET, target.key)
    zombie.write(b"z" * (PART_BYTES + 1))
    later = ObjectWriter(target.client, BUCKET, target.key)
    later.write(b"later" * PART_BYTES)
    assert later.commit()
    with pytest.raises(S3Error, match="aborted by a later writer"):
        zombie.commit()
    zombie.abort()
    assert target.content()[:5] == b"later"
    assert not target.uploads()


_EXTRACT = """
import os, sys
from trilake import s3
from trilake.endpoints import Endpoints
from trilake.postgres.extract import extract, one_moment
from trilake.postgres.connection import connect
endpoints = Endpoints.from_environment()
def memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def run(sql, key):
    with connect(endpoints.oltp) as connection, one_moment(connection) as cursor:
        return extract(cursor, sql, {}, s3.client(endpoints.s3), "raw", key, file_format=sys.argv[2])
"""
_WIDE = "SELECT x, md5(x::text) a, md5((x + 1)::text) b, random() r FROM generate_series(1, {rows}) x"


def _program(platform: Platform, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _EXTRACT + program, *arguments],
        env={**platform.env, "PYTHONPATH": str(platform.home.project / "plugins")},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("file_format", ["parquet", pytest.param("csv", marks=pytest.mark.nightly)])
def test_memory_does_not_grow_with_the_result(platform: Platform, target: Target, file_format: str) -> None:
    peaks = {}
    for rows in (100_000, 2_000_000):
        program = f"assert run({_WIDE.format(rows=rows)!r}, sys.argv[1]).rows == {rows}; print(memory())"
        done = _program(platform, program, target.key, file_format)
        peaks[rows] = int(done.communicate(timeout=600)[0])
    # in KiB; the text of 2,000,000 rows is 190 MB, of 100,000 it is 9 MB
    assert peaks[2_000_000] - peaks[100_000] < 40_000, peaks


def test_a_killed_process_leaves_no_object_and_the_next_one_ends_its_upload(platform: Platform, target: Target) -> None:
    dying = _program(platform, f"run({_WIDE.format(rows=20_000_000)!r}, sys.argv[1])", target.key, "csv")
    try:
        wait_until(target.uploads)
    finally:
        dying.send_signal(signal.SIGKILL)
        dying.communicate()
    assert target.key not in target.listed()
    # the store may still be at the part that was cut off, and list nothing for a moment
    wait_until(target.uploads)
    target.extract("SELECT 1 a")
    assert target.table().to_pylist() == [{"a": 1}]
    assert not target.uploads()


def test_whoever_leaves_early_does_not_wait_for_the_query(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a task that gets a signal: the query is cancelled, the upload aborted."""
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR1))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    timer.start()
    started = datetime.now(UTC)
    try:
        with pytest.raises(KeyboardInterrupt):
            target.extract("SELECT x, pg_sleep(0.01) FROM generate_series(1, 100000) x", "csv")
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)
    assert (datetime.now(UTC) - started).total_seconds() < 500, "the query takes 1,000 s"
    assert not target.listed()


# --- the operator


@pytest.fixture
def data_set() -> DataSet:
    return DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")


def test_each_partition_is_an_object_and_an_event(
    platform: Platform, target: Target, data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(monkeypatch, platform.env)
    target.prefix = f"{data_set.name}/"
    days = "generate_series('2013-01-30'::date, '2013-02-03', '1 day') d"
    sql = f"SELECT d::date AS d, %(k)s::int AS k FROM {days} WHERE d >= %(start)s AND d < %(stop)s"
    options = {"data_set": data_set, "sql": sql, "start": "2013-01", "end": "2013-03", "parameters": {"k": 7}}
    task = context()
    operator = make(PostgresToS3Operator, **options)
    found = operator.execute(task)
    assert {partition: written["rows"] for partition, written in found.items()} == {
        "2013-01": 2,
        "2013-02": 3,
        "2013-03": 0,
    }
    assert task["outlet_events"][operator.outlets[0]].partitions == ["2013-01", "2013-02", "2013-03"]
    for partition, written in found.items():
        assert written["key"] == f"{data_set.name}/{partition}/{data_set.name}.parquet"
        head = target.client.head_object(Bucket=BUCKET, Key=written["key"])
        assert (head["ContentLength"], head["ETag"].strip('"')) == (written["bytes"], written["etag"])
    assert target.table(found["2013-01"]["key"]).to_pylist() == [
        {"d": date(2013, 1, 30), "k": 7},
        {"d": date(2013, 1, 31), "k": 7},
    ]
    again = make(PostgresToS3Operator, **{**options, "sql": sql + " AND d < '2013-01-31'"}).execute(context())
    assert again["2013-01"]["rows"] == target.table(found["2013-01"]["key"]).num_rows == 1
    assert len(target.listed()) == 3
