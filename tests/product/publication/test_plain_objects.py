"""Plain Parquet and CSV objects published by S3ToClickHouseOperator, on a real ClickHouse, PostgreSQL and S3."""

from __future__ import annotations

import gzip
import io
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk import DAG

from support.publication_table import drop_tables, tables_of
from trilake import s3
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.publication.ledger import Ledger, SourceChangedError
from trilake.clickhouse.publication.publisher import Publisher
from trilake.clickhouse.publication.staging import Staging
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError, TrilakeError
from trilake.lake import DataSet
from trilake.lake.objects import ObjectError
from trilake.lake.plan import LoadPlan, PartitionPlan
from trilake.operators.project import ProjectOperator
from trilake.postgres.connection import connect
from trilake.transfers.s3_to_clickhouse import S3ToClickHouseOperator

MONTH, NEXT = "2013-01", "2013-02"
DAY, NEXT_DAY = date(2013, 1, 5), date(2013, 2, 5)
Row = tuple[int | None, date, str | None]


class Table:
    """A table of one test's own, objects for it, and tasks that publish them."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster, data_set: DataSet, sql_folder: Path) -> None:
        self.endpoints, self.cluster, self.data_set = endpoints, cluster, data_set
        self.ledger = Ledger(endpoints.lake)
        self.s3 = s3.client(endpoints.s3)
        self.checks = sql_folder / "clickhouse" / data_set.table / "checks"
        layout = "PARTITION BY toYYYYMM(d)" if data_set.grain else ""
        for shard in cluster.shards:
            ddl = f"CREATE TABLE {{shard}}.{data_set.local_table} (k Int32, d Date, note Nullable(String)) "
            cluster.on_shard(shard, Statement(f"{ddl} ENGINE = MergeTree {layout} ORDER BY k"))

    def drop(self) -> None:
        drop_tables(self.cluster, self.data_set.name)
        with connect(self.endpoints.lake) as connection, connection.cursor() as cursor:
            for table in ("publications", "publication_attempts"):
                cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (self.data_set.table,))

    def put(self, name: str, content: bytes) -> str:
        key = f"{self.data_set.name}/{name}"
        self.s3.put_object(Bucket="raw", Key=key, Body=content)
        return key

    def parquet(self, name: str, *rows: Row, key_type: Any = None) -> str:
        schema = pa.schema(
            [("other", pa.int8()), ("d", pa.date32()), ("k", key_type or pa.int64()), ("note", pa.string())]
        )
        columns = {"other": [1] * len(rows), "d": [row[1] for row in rows], "k": [row[0] for row in rows]}
        content = io.BytesIO()
        pq.write_table(pa.table({**columns, "note": [row[2] for row in rows]}, schema=schema), content)
        return self.put(name, content.getvalue())

    def csv(self, name: str, *lines: str, header: str = "note,other,d,k") -> str:
        text = "".join(f"{line}\n" for line in (header, *lines)).encode()
        return self.put(name, gzip.compress(text) if name.endswith(".gz") else text)

    def publish(self, objects: Any, *, due: int = 0, end: str = MONTH, **options: Any) -> dict[str, Any]:
        """As a task of the run that was due `due` seconds after the first one."""
        window = {"start": MONTH, "end": end} if self.data_set.grain else {}
        with DAG("loads", schedule=None):
            task = S3ToClickHouseOperator(
                task_id="publish", data_set=self.data_set, objects=objects, **window, **options
            )
        self.events: list[str] = []
        ti = SimpleNamespace(dag_id="loads", task_id="publish", run_id=f"due_{due}", map_index=-1, try_number=1)
        run = SimpleNamespace(run_after=datetime(2013, 3, 1, 0, 0, due, tzinfo=UTC))
        events = {outlet: SimpleNamespace(add_partitions=self.events.extend) for outlet in task.outlets}
        context: Any = {"ti": ti, "run_id": ti.run_id, "dag_run": run, "outlet_events": events, "task": task}
        return json.loads(json.dumps(task.execute(context)))  # as XCom has it

    def seen(self) -> list[Row]:
        """What readers see on all shards together."""
        return sorted(row for found in self.by_shard().values() for row in found)

    def by_shard(self) -> dict[int, list[Row]]:
        found = self.cluster.every_shard(
            Statement(f"SELECT k, d, note FROM {{shard}}.{self.data_set.local_table} ORDER BY k")
        )
        return {number: [(row[0], row[1], row[2]) for row in rows] for number, rows in found.items()}

    def nothing_is_left(self) -> bool:
        names = [name for found in self.cluster.every_shard(tables_of).values() for _, name in found]
        return not [n for n in names if "staging" in n and n.startswith(self.data_set.name)] and not (
            self.ledger.attempts(self.data_set.table)
        )


@pytest.fixture
def make(endpoints: Endpoints, platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in platform.env.items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(ProjectOperator, "sql_folder", property(lambda _self: tmp_path))
    with Cluster(endpoints.clickhouse) as cluster, ExitStack() as made:

        def table(data_set: DataSet) -> Table:
            one = Table(endpoints, cluster, data_set, tmp_path)
            made.callback(one.drop)
            return one

        yield table


@pytest.fixture
def table(make: Any) -> Table:
    return make(DataSet(f"o_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k"))


@pytest.fixture
def dimension(make: Any) -> Table:
    return make(DataSet(f"o_{secrets.token_hex(4)}"))


ROWS: list[Row] = [(number, DAY, None if number % 3 else f"n{number}") for number in range(1, 21)]


def test_parquet_of_several_partitions_is_split_by_the_shards_as_iceberg_splits_it(table: Table) -> None:
    first, second = table.parquet("a.parquet", *ROWS[:15]), table.parquet("b.parquet", *ROWS[15:])
    later = table.parquet("d=1999-01-01/c.parquet", (7, NEXT_DAY, "x"))  # a path that looks like a partition of Hive's
    report = table.publish({MONTH: {first: 15, second: 5}, NEXT: {later: 1}}, end=NEXT)
    assert report["published"] == table.events == [MONTH, NEXT]
    assert report["total_rows"] == 21
    assert {one.run_id for one in table.ledger.publications(table.data_set.table)} == {"loads/due_0"}
    assert table.seen() == sorted([*ROWS, (7, NEXT_DAY, "x")])
    for number, rows in table.by_shard().items():
        keys = ", ".join(str(row[0]) for row in rows)
        assert len(rows) > 3
        assert table.cluster.any_host(
            Statement(f"SELECT DISTINCT icebergBucket(2, toInt32(k)) FROM (SELECT arrayJoin([{keys}]) AS k)")
        ) == [(number - 1,)]
    assert table.nothing_is_left()


def test_what_the_loads_took_is_told(table: Table) -> None:
    report = table.publish({MONTH: {table.parquet("a.parquet", *ROWS): 20}})
    assert report["written_rows"] == 20
    assert report["read_rows"] >= 20  # each shard looks at all, and need not read what is another's
    assert len(report["query_ids"]) == 2
    assert min(report[name] for name in ("read_bytes", "written_bytes", "memory_bytes", "seconds")) > 0


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_is_read_by_its_header_with_empty_fields_and_quotes_as_they_are_meant(table: Table, name: str) -> None:
    key = table.csv(name, ",9,2013-01-05,1", '"",9,2013-01-06,2', '"a, ""b""",9,2013-01-07,3', "\\N,9,2013-01-07,4")
    assert table.publish({MONTH: {key: 4}})["total_rows"] == 4
    assert table.seen() == [
        (1, date(2013, 1, 5), None), (2, date(2013, 1, 6), ""), (3, date(2013, 1, 7), 'a, "b"'),
        (4, date(2013, 1, 7), None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "header", "says"),
    [
        (
            ["x,9,2013-01-05,99999999999"],
            "note,other,d,k",
            "a.csv: column k has the value '99999999999', which Int32 cannot hold exactly",
        ),
        (["x,9,2013-01-05,"], "note,other,d,k", "column k has no value"),
        (["x,9,2013-01-05"], "note,other,d,k", "Cannot parse input"),
        (["9,2013-01-05,1"], "other,d,k", "has no column note: its first line is 'other,d,k'"),
        ([], "", "has no column k, d, note"),
    ],
)
def test_csv_that_would_lose_something_is_refused(table: Table, lines: list[str], header: str, says: str) -> None:
    with pytest.raises(ClickHouseError, match=says):
        table.publish({MONTH: {table.csv("a.csv", *lines, header=header): len(lines)}})
    assert table.seen() == []
    assert table.nothing_is_left()


def test_text_that_may_not_be_null_may_be_empty_in_csv_and_may_not_be_null(table: Table) -> None:
    local = f"{{shard}}.{table.data_set.local_table}"
    table.cluster.every_shard(Statement(f"ALTER TABLE {local} ADD COLUMN tag LowCardinality(String)"))
    header = "k,d,note,tag"
    with pytest.raises(ClickHouseError, match="column tag has the value"):
        table.publish({MONTH: {table.csv("null.csv", "1,2013-01-05,a,\\N", header=header): 1}})
    table.publish({MONTH: {table.csv("empty.csv", "1,2013-01-05,a,", "2,2013-01-05,a,x", header=header): 2}})
    tags = table.cluster.every_shard(Statement(f"SELECT tag FROM {local}"))
    assert sorted(tag for found in tags.values() for (tag,) in found) == ["", "x"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_an_object_whose_name_and_compression_differ_is_named(table: Table, name: str) -> None:
    text = b"k,d,note\n1,2013-01-05,a\n"
    key = table.put(name, text if name.endswith(".gz") else gzip.compress(text))
    with pytest.raises(ClickHouseError, match=f"{key} (is compressed with gzip|cannot be read as CSVWithNames)"):
        table.publish({MONTH: {key: 1}})
    assert table.nothing_is_left()


NESTED: dict[str, tuple[str, Any, list[Any], Any]] = {
    "array": ("Array(Nullable(Int32))", pa.list_(pa.int32()), [[], [1, None]], None),
    "array inside": ("Array(Array(Nullable(Int32)))", pa.list_(pa.list_(pa.int32())), [[], [[], [1]]], [[1], None]),
    "map": ("Map(String, Nullable(Int32))", pa.map_(pa.string(), pa.int32()), [[], [("a", None)]], None),
    "tuple": ("Tuple(x Nullable(Int32))", pa.struct([("x", pa.int32())]), [{"x": None}, {"x": 1}], None),
    "array in a tuple": (
        "Tuple(x Array(Nullable(Int32)))", pa.struct([("x", pa.list_(pa.int32()))]), [{"x": []}, {"x": [1]}],
        {"x": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "map",
        "array in a tuple",
        *(pytest.param(case, marks=pytest.mark.nightly) for case in ("array", "array inside", "tuple")),
    ],
)
def test_a_nested_value_of_parquet_is_loaded_and_one_that_is_null_is_refused_and_not_made_empty(
    table: Table, case: str
) -> None:
    kind, of_parquet, good, bad = NESTED[case]
    local = f"{{shard}}.{table.data_set.local_table}"
    table.cluster.every_shard(Statement(f"ALTER TABLE {local} ADD COLUMN v {kind}"))

    def publish(values: list[Any]) -> None:
        content, rows = io.BytesIO(), range(len(values))
        columns = {"k": pa.array(rows, pa.int32()), "d": [DAY] * len(values), "note": ["a"] * len(values)}
        pq.write_table(pa.table({**columns, "v": pa.array(values, of_parquet)}), content)
        table.publish({MONTH: {table.put("a.parquet", content.getvalue()): len(values)}})

    with pytest.raises(ClickHouseError, match=r"column v has an array, map or struct that is NULL in row 3"):
        publish([*good, bad])
    assert table.seen() == []
    publish(good)
    found = table.cluster.every_shard(Statement(f"SELECT k, v FROM {local}"))
    shown = [value for _, value in sorted(row for rows in found.values() for row in rows)]
    assert shown == [dict(value) if case == "map" else value for value in good]


@pytest.mark.parametrize(
    ("key", "says"), [(2**40, "column k has the value '1099511627776'"), (None, "column k has no value")]
)
def test_parquet_whose_values_the_table_cannot_hold_is_refused(table: Table, key: int | None, says: str) -> None:
    with pytest.raises(ClickHouseError, match=says):
        table.publish({MONTH: {table.parquet("a.parquet", (key, DAY, "a")): 1}})
    assert table.seen() == []
    assert table.nothing_is_left()


@pytest.mark.parametrize("counted", [19, 21])
def test_a_wrong_count_publishes_nothing_though_the_sum_is_right(table: Table, counted: int) -> None:
    table.publish({MONTH: {table.parquet("before.parquet", (1, DAY, "before")): 1}})
    first, second = table.parquet("a.parquet", *ROWS), table.parquet("b.parquet", *ROWS)
    with pytest.raises(TrilakeError, match=rf"a\.parquet should have {counted} rows, but 20 were read"):
        table.publish({MONTH: {first: counted, second: 40 - counted}})
    assert table.seen() == [(1, DAY, "before")]
    assert table.nothing_is_left()


def test_a_row_of_another_partition_publishes_nothing(table: Table) -> None:
    with pytest.raises(TrilakeError, match="rows of other partitions: 201302"):
        table.publish({MONTH: {table.parquet("a.parquet", *ROWS, (7, NEXT_DAY, "x")): 21}})
    assert table.seen() == []
    assert table.nothing_is_left()


def test_a_missing_object_is_named(table: Table) -> None:
    with pytest.raises(ObjectError, match=r"s3://raw/nowhere/a\.parquet cannot be read \(404\)"):
        table.publish({MONTH: {"nowhere/a.parquet": 1}})


@pytest.mark.parametrize("name", ["{a,b}.parquet", "*.parquet", "a b.parquet", "../a.parquet", "a//b.parquet", "é"])
def test_a_key_that_would_be_read_as_another_is_refused(table: Table, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"could read the key .* as a pattern"):
        table.publish({MONTH: {f"{table.data_set.name}/{name}": 1}})


@pytest.mark.parametrize("name", ["a+b.parquet", "a=1,b=2.parquet", "_a-b.c.parquet"])
def test_a_key_of_every_sign_that_is_let_through_is_read_as_itself(table: Table, name: str) -> None:
    assert table.publish({MONTH: {table.parquet(name, (1, DAY, "a")): 1}})["total_rows"] == 1


def test_an_object_that_is_not_the_one_that_was_counted_is_refused(table: Table) -> None:
    key = table.parquet("a.parquet", (1, DAY, "a"))
    etag = table.s3.head_object(Bucket="raw", Key=key)["ETag"]
    given = [{"partition": MONTH, "key": key, "rows": 1, "etag": etag}]
    table.parquet("a.parquet", (1, DAY, "b"))
    with pytest.raises(ObjectError, match="is not the object that was counted"):
        table.publish(given)


def test_an_object_that_changes_before_it_is_read_publishes_nothing(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = table.parquet("a.parquet", (1, DAY, "a"))
    write = Staging.write

    def changed_first(self: Staging, *arguments: Any) -> Any:
        table.parquet("a.parquet", (1, DAY, "b"))
        return write(self, *arguments)

    monkeypatch.setattr(Staging, "write", changed_first)
    with pytest.raises(ClickHouseError, match=r"a\.parquet was changed while it was read"):
        table.publish({MONTH: {key: 1}})
    assert table.seen() == []
    assert table.nothing_is_left()


def test_a_data_set_without_a_grain_stands_whole_on_every_shard_and_counts_once(dimension: Table) -> None:
    key = dimension.parquet("a.parquet", *ROWS)
    report = dimension.publish({key: 20})
    assert report["rows"] == {"all": {"1": 20, "2": 20}}
    assert report["total_rows"] == 20
    assert dimension.by_shard() == {1: ROWS, 2: ROWS}
    assert dimension.ledger.publications(dimension.data_set.table)[0].total_rows == 20
    with pytest.raises(TrilakeError, match="should have 19 rows, but 20 were read"):
        dimension.publish({key: 19}, due=1)


def test_a_data_set_without_a_grain_can_be_empty_from_the_first(dimension: Table) -> None:
    assert dimension.publish({})["published"] == ["all"]
    assert dimension.publish({dimension.parquet("a.parquet", *ROWS): 20}, due=1)["total_rows"] == 20
    assert dimension.publish({dimension.parquet("b.parquet"): 0}, due=2)["total_rows"] == 0
    assert dimension.seen() == []


def test_a_partition_without_an_object_is_published_empty(table: Table) -> None:
    table.publish({MONTH: {table.parquet("a.parquet", *ROWS): 20}})
    assert table.publish({MONTH: {}}, due=1)["published"] == [MONTH]
    assert table.seen() == []


def test_objects_and_window_have_to_name_the_same_partitions(table: Table) -> None:
    with pytest.raises(ConfigurationError, match="it does not have 2013-03; they do not name 2013-02"):
        table.publish({MONTH: {}, "2013-03": {}}, end=NEXT)


def test_a_rerun_changes_nothing_and_one_with_other_objects_replaces_them(table: Table) -> None:
    key = table.parquet("a.parquet", (1, DAY, "a"))
    table.publish({MONTH: {key: 1}})
    again = table.publish({MONTH: {key: 1}})
    assert (again["published"], again["current"], table.events) == ([], [MONTH], [MONTH])
    table.parquet("a.parquet", (1, DAY, "written again"))
    assert table.publish({MONTH: {key: 1}})["published"] == [MONTH]
    assert table.seen() == [(1, DAY, "written again")]


def test_a_run_that_was_due_earlier_does_not_replace_a_later_one_unless_forced(table: Table) -> None:
    old, new = table.parquet("old.parquet", (1, DAY, "old")), table.parquet("new.parquet", (1, DAY, "new"))
    table.publish({MONTH: {new: 1}}, due=2)
    assert table.publish({MONTH: {old: 1}}, due=1)["current"] == [MONTH]
    assert table.seen() == [(1, DAY, "new")]
    assert table.publish({MONTH: {old: 1}}, due=1, force=True)["published"] == [MONTH]
    assert table.seen() == [(1, DAY, "old")]


def test_a_version_may_be_a_number_or_a_moment(table: Table) -> None:
    old, new = table.parquet("old.parquet", (1, DAY, "old")), table.parquet("new.parquet", (1, DAY, "new"))
    assert table.publish({MONTH: {old: 1}}, version="7")["snapshot_id"] == 7
    assert table.publish({MONTH: {new: 1}}, version="2013-01-01T00:00:00.000001+00:00")["published"] == [MONTH]
    assert table.ledger.publications(table.data_set.table)[0].sequence_number == 1_356_998_400_000_001
    assert table.publish({MONTH: {old: 1}}, version=8)["current"] == [MONTH]
    with pytest.raises(ConfigurationError, match="'yesterday' is not a version"):
        table.publish({MONTH: {old: 1}}, version="yesterday")


def snapshot(table: Table, number: int, uuid: str) -> LoadPlan:
    """An empty month of an Iceberg table."""
    return LoadPlan(table.data_set, number, number, 2, (PartitionPlan(MONTH),), source=f"Iceberg table {uuid}")


def test_rows_of_another_source_are_replaced_only_by_force(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(table.cluster, table.ledger)
    key = table.parquet("a.parquet", (1, DAY, "a"))
    publisher.publish(snapshot(table, 9, "first"), run_id="r")
    with pytest.raises(SourceChangedError, match=r"rows of Iceberg table first .* rows are of plain objects.* --force"):
        table.publish({MONTH: {key: 1}})
    assert table.seen() == []
    assert table.publish({MONTH: {key: 1}}, force=True)["published"] == [MONTH]
    assert table.publish({MONTH: {key: 1}})["current"] == [MONTH]
    with pytest.raises(SourceChangedError):
        publisher.publish(snapshot(table, 10, "first"), run_id="r")
    monkeypatch.setattr(Publisher, "_due", lambda _self, plan, force: (list(plan.partitions), [], {}))
    with pytest.raises(SourceChangedError):  # the decision sees what came after the first look
        publisher.publish(snapshot(table, 10, "first"), run_id="r")
    assert table.seen() == [(1, DAY, "a")]
    assert table.nothing_is_left()


def test_an_iceberg_table_that_was_made_anew_is_not_taken_for_older(table: Table) -> None:
    publisher = Publisher(table.cluster, table.ledger)
    publisher.publish(snapshot(table, 9, "first"), run_id="r")
    with pytest.raises(SourceChangedError, match=r"Iceberg table first .* Iceberg table second"):
        publisher.publish(snapshot(table, 1, "second"), run_id="r")
    assert publisher.publish(snapshot(table, 1, "second"), run_id="r", force=True).published == (MONTH,)
    assert publisher.publish(snapshot(table, 2, "second"), run_id="r").published == (MONTH,)


def test_a_publication_whose_source_was_not_written_down_is_of_any_iceberg_table(table: Table) -> None:
    publisher = Publisher(table.cluster, table.ledger)
    publisher.publish(snapshot(table, 1, "first"), run_id="r")
    with connect(table.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE publications SET source = DEFAULT WHERE table_name = %s", (table.data_set.table,))
    assert publisher.publish(snapshot(table, 2, "first"), run_id="r").published == (MONTH,)


def test_a_check_runs_on_plain_objects_too(table: Table) -> None:
    table.checks.mkdir(parents=True)
    (table.checks / "no_bad.sql").write_text("SELECT k FROM {table} WHERE note = 'bad'")
    with pytest.raises(TrilakeError, match=r"check no_bad .* finds 1 rows"):
        table.publish({MONTH: {table.parquet("a.parquet", (1, DAY, "bad")): 1}})
    assert table.seen() == []


def test_a_count_is_written_as_json_or_as_a_list_too(table: Table) -> None:
    key = table.parquet("a.parquet", (1, DAY, "a"))
    listed: list[Mapping[str, Any]] = [{"partition": MONTH, "key": key, "rows": 1, "bytes": 7}]
    assert table.publish(json.dumps({MONTH: {key: 1}}))["published"] == [MONTH]
    assert table.publish(listed)["current"] == [MONTH]
    assert table.publish({MONTH: listed})["current"] == [MONTH]
    assert table.publish(json.dumps(listed))["current"] == [MONTH]
