"""Write, audit, publish: what readers see, and what is refused. On a real ClickHouse, PostgreSQL and S3."""

from __future__ import annotations

import io
import secrets
from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.publication_table import DAY, MONTH, Table, forget
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.publication import pull
from trilake.clickhouse.publication.checks import Check, CheckFailedError
from trilake.clickhouse.publication.columns import Columns
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.partitions import PartitionByError
from trilake.clickhouse.publication.publisher import AuditError, Publisher
from trilake.clickhouse.publication.pulls import pull_of
from trilake.clickhouse.publication.staging import Staging
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, open_catalog
from trilake.lake.catalog import plan as plan_snapshot
from trilake.lake.dimensions import replace_table
from trilake.lake.plan import DataFile
from trilake.postgres.connection import connect


def test_each_shard_gets_the_rows_of_its_bucket_once(table: Table) -> None:
    plan = table.plan(table.file(0, (1, DAY, "a"), (2, DAY, None)), table.file(1, (3, DAY, "c")))
    report = table.publisher().publish(plan, run_id="r")
    assert report.published == (MONTH,)
    assert report.rows == {MONTH: {1: 2, 2: 1}}
    assert table.seen() == [(1, 1, "a"), (1, 2, None), (2, 3, "c")]
    again = table.publisher().publish(plan, run_id="r")
    assert (again.published, again.current) == ((), (MONTH,))
    assert table.seen() == [(1, 1, "a"), (1, 2, None), (2, 3, "c")]
    assert not table.staging()
    assert not table.ledger.attempts(table.data_set.table)


def test_a_later_snapshot_replaces_an_earlier_one_and_not_the_other_way_round(table: Table) -> None:
    old, new = table.plan(table.file(0, (1, DAY, "old"))), table.plan(table.file(0, (1, DAY, "new")))
    table.publisher().publish(new, run_id="r")
    assert table.publisher().publish(old, run_id="r").current == (MONTH,)
    assert table.seen() == [(1, 1, "new")]
    assert table.publisher().publish(old, run_id="r", force=True).published == (MONTH,)
    assert table.seen() == [(1, 1, "old")]


def test_an_empty_partition_is_published_and_others_stay(table: Table) -> None:
    table.publisher().publish(table.plan(table.file(0, (1, DAY, "a"))), run_id="r")
    table.publisher().publish(table.plan(table.file(1, (2, date(2013, 2, 1), "b")), partition="2013-02"), run_id="r")
    table.publisher().publish(table.plan(), run_id="r")
    assert table.seen() == [(2, 2, "b")]


@pytest.mark.parametrize(
    ("rows", "claimed", "says"),
    [
        ([(1, DAY, "a")], 2, "the snapshot has 2 rows, but staging holds 1"),
        ([(1, DAY, "a"), (2, date(2013, 2, 1), "b")], None, "rows of other partitions: 201302"),
    ],
)
def test_staging_that_is_not_the_snapshot_is_never_seen(
    table: Table, rows: list[tuple[int, date, str | None]], claimed: int | None, says: str
) -> None:
    table.publisher().publish(table.plan(table.file(0, (9, DAY, "before"))), run_id="r")
    with pytest.raises((AuditError, ClickHouseError), match=says):
        table.publisher().publish(table.plan(table.file(0, *rows, claimed=claimed)), run_id="r")
    assert table.seen() == [(1, 9, "before")]
    assert not table.staging()


@pytest.mark.parametrize(
    ("kind", "key", "grain", "problem"),
    [
        ("Date", "toYYYYMM(d)", "month", ""),
        ("Date32", "toYYYYMM(d)", "month", ""),
        ("Date", "tuple(toYYYYMM(d))", "month", ""),
        ("Date", "d", "day", ""),
        ("Date32", "toYYYYMMDD(d)", "day", ""),
        ("Date32", "d", "day", r"PARTITION BY d, but 2013-01-05 has another id.*PARTITION BY toYYYYMMDD\(d\)"),
        (
            "Date",
            "toStartOfMonth(d)",
            "month",
            r"toStartOfMonth\(d\), but .* in its partition 20130101, and not in 201301",
        ),
        ("Date", "toMonday(d)", "day", r"toMonday\(d\), but 2013-01-05 is in its partition 20121231"),
        ("Date", "(toYYYYMM(d), k % 2)", "month", r"k % 2\), but it needs other columns than d"),
        ("Date", "toString(d)", "day", "has another id"),
        ("Date", "tuple()", "month", "no PARTITION BY, but the data set is published by month"),
    ],
)
def test_a_table_with_other_partitions_than_the_data_set_is_refused_by_its_expression(
    table: Table, kind: str, key: str, grain: Any, problem: str
) -> None:
    table.data_set = DataSet(table.data_set.name, grain=grain, date="d", shard_by="k")
    for shard in table.cluster.shards:
        table.cluster.on_shard(
            shard,
            Statement(
                f"CREATE OR REPLACE TABLE {{shard}}.{table.data_set.local_table} "
                f"(k Int32, d {kind}, note Nullable(String)) ENGINE = MergeTree PARTITION BY {key} ORDER BY k"
            ),
        )
    plan = table.plan(table.file(0, (1, DAY, "a")), partition=MONTH if grain == "month" else DAY.isoformat())
    if problem:
        with pytest.raises(PartitionByError, match=problem) as caught:
            table.publisher().publish(plan, run_id="r")
        assert "Create the table with PARTITION BY" in (caught.value.hint or "")
        assert not table.staging()
    else:
        table.publisher().publish(plan, run_id="r")
        assert table.seen() == [(1, 1, "a")]


def test_values_that_were_changed_on_the_way_are_found_even_beside_nulls(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table.plan(table.file(0, (1, DAY, None), (2, DAY, None)))

    def corrupt(self: Staging, *arguments: Any) -> int:
        client = arguments[-2]
        command = client.command

        def changed(sql: str, **options: Any) -> Any:
            return command(sql.replace(") SELECT `k`,", ") SELECT `k` + 1,", 1), **options)

        monkeypatch.setattr(client, "command", changed)
        return original(self, *arguments)

    original = Staging._write_cell
    monkeypatch.setattr(Staging, "_write_cell", corrupt)
    with pytest.raises(ClickHouseError, match="values in staging differ from those"):
        table.publisher().publish(plan, run_id="r")
    assert table.seen() == []


def test_a_null_where_the_table_has_none_is_an_error_and_no_zero(table: Table) -> None:
    schema = pa.schema([("k", pa.int32()), ("d", pa.date32()), ("note", pa.string())])
    content = io.BytesIO()
    pq.write_table(pa.table({"k": [None], "d": [DAY], "note": ["a"]}, schema=schema), content)
    key = f"warehouse/test/{table.data_set.name}/null.parquet"
    table.s3.put_object(Bucket="lake", Key=key, Body=content.getvalue())
    with pytest.raises(ClickHouseError):
        table.publisher().publish(table.plan(DataFile(key, 1, 1, 0)), run_id="r")
    assert table.seen() == []


def test_a_date_that_the_column_cannot_hold_is_named(table: Table) -> None:
    with pytest.raises(ClickHouseError, match=r"column d has the date 1950-01-05, and Date holds 1970-01-01"):
        table.publisher().publish(table.plan(table.file(0, (1, date(1950, 1, 5), "a"))), run_id="r")
    with pytest.raises(PartitionByError, match=r"Column d of \w+ is Date, which cannot hold 1950-01-01"):
        table.publisher().publish(table.plan(partition="1950-01"), run_id="r")
    assert table.seen() == []


def test_a_blocking_check_stops_before_anyone_reads_and_a_warning_does_not(table: Table) -> None:
    plan = table.plan(table.file(0, (1, DAY, "bad")), table.file(1, (2, DAY, "good")))
    finds = "SELECT k FROM {table} WHERE note = 'bad' -- what nobody may read"
    with pytest.raises(CheckFailedError, match=f"no_bad of {table.data_set.table} finds 1 rows in partition {MONTH}"):
        table.publisher(Check("no_bad", finds)).publish(plan, run_id="r")
    assert table.seen() == []
    assert not table.staging()
    report = table.publisher(Check("no_bad", finds, blocking=False)).publish(plan, run_id="r")
    assert report.warnings == (f"check no_bad of {table.data_set.table} finds 1 rows in partition {MONTH}",)
    assert len(table.seen()) == 2


def test_an_empty_dimension_table_is_published_the_first_time(endpoints: Endpoints) -> None:
    data_set = DataSet(f"t_{secrets.token_hex(4)}")
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    with Cluster(endpoints.clickhouse) as cluster, connect(endpoints.oltp) as oltp, oltp.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE {data_set.name} (k int)")
        cursor.execute("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
        source = f"{cursor.fetchone()[0]}.{data_set.name}"  # type: ignore[index]
        local = f"{{shard}}.{data_set.local_table}"
        cluster.every_shard(Statement(f"CREATE TABLE {local} (k Nullable(Int32)) ENGINE = MergeTree ORDER BY tuple()"))
        try:
            publisher = Publisher(cluster, Ledger(endpoints.lake))
            for rows in (0, 3, 0):
                cursor.execute(f"DELETE FROM {source}")
                cursor.execute(f"INSERT INTO {source} SELECT generate_series(1, {rows})")
                snapshot_id, written = replace_table(catalog, data_set, oltp, source, run_id="r")
                planned = plan_snapshot(load_table(catalog, data_set.curated), data_set, [], snapshot_id)
                report = publisher.publish(planned, run_id="r")
                assert (written, report.published, report.total_rows) == (rows, ("all",), rows)
                held = cluster.every_shard(Statement(f"SELECT count() FROM {local}"))
                assert set(map(tuple, held.values())) == {((rows,),)}
        finally:
            cluster.every_shard(Statement(f"DROP TABLE {local} SYNC"))
            catalog.drop_table(data_set.curated)
            catalog.close()
            with connect(endpoints.lake) as connection:
                forget(connection, data_set)


def test_a_column_that_the_table_would_cut_is_refused_before_anything_is_written(table: Table) -> None:
    """Both sides of the audit would read it cut alike."""
    plan = replace(table.plan(table.file(0, (1, date(2013, 1, 1), "a"))), types={"k": "long", "d": "date"})
    with pytest.raises(AuditError, match="k is long in the lake and Int32 in ClickHouse"):
        table.publisher().publish(plan, run_id="r")
    assert table.seen() == []
    assert table.ledger.publications(table.data_set.table) == []
    assert (table.staging(), table.ledger.attempts(table.data_set.table)) == ([], [])
    fitting = replace(plan, types={"k": "int", "d": "date", "note": "string"})
    assert table.publisher().publish(fitting, run_id="r").published == (MONTH,)


def test_a_partition_of_more_files_than_one_statement_can_name_is_published(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "MAX_SOURCE_CHARACTERS", 500)
    files = [table.file(0, (number, DAY, "a" if number % 2 else None)) for number in range(1, 8)]
    assert table.publisher().publish(table.plan(*files), run_id="r").rows == {MONTH: {1: 7, 2: 0}}
    assert [row[1] for row in table.seen()] == list(range(1, 8))
    many = [DataFile(f"warehouse/{number:0200}.parquet", 1, 1, 0) for number in range(2_000)]
    monkeypatch.undo()
    columns = Columns(("k",), ("Int32",))
    sources = pull_of(table.plan(*many), columns, shards=2).sources(many, 1)
    assert max(len(source) for source in sources) < 200_000  # of the 262,144 bytes that ClickHouse parses by default
    assert sum(source.count(".parquet") for source in sources) == 2_000
