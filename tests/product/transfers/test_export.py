"""Rows of ClickHouse in S3: written by the shards, complete or not there. On a real ClickHouse and S3."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest

from support.clickhouse_gateway import wait_until
from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake import s3
from trilake.clickhouse import export as module
from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement
from trilake.clickhouse.export import ExportError, Source, export, new_attempt, read_manifest, table_sources
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.data_set import EXPORTS_BUCKET
from trilake.transfers.clickhouse_to_s3 import ClickHouseToS3Operator

MONTHS = ["2013-01", "2013-02", "2013-03"]


class Exports:
    """A table of one test with rows in January (two on shard 1, one on shard 2) and February (one on shard 2)."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client = s3.client(endpoints.s3)
        self.data_set = DataSet(f"e_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
        self.prefix = f"{self.data_set.name}/run"
        cluster.every_shard(
            Statement(
                f"CREATE TABLE {{shard}}.{self.data_set.local_table} (k Int32, d Date, note Nullable(String)) "
                "ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k"
            )
        )
        self.insert(1, "(1, '2013-01-01', 'a'), (2, '2013-01-02', NULL)")
        self.insert(2, "(3, '2013-01-03', ''), (4, '2013-02-01', 'd')")

    def insert(self, shard: int, values: str) -> None:
        sql = f"INSERT INTO {{shard}}.{self.data_set.local_table} VALUES {values}"
        self.cluster.on_shard(self.cluster.shards[shard - 1], Statement(sql))

    def drop(self) -> None:
        self.cluster.every_shard(Statement(f"DROP TABLE {{shard}}.{self.data_set.local_table} SYNC"))
        s3.remove(self.client, EXPORTS_BUCKET, self.listed())

    def listed(self) -> list[str]:
        return s3.list_keys(self.client, EXPORTS_BUCKET, f"{self.data_set.name}/")

    def read(self, key: str) -> list[dict[str, Any]]:
        content = self.client.get_object(Bucket=EXPORTS_BUCKET, Key=key)["Body"].read()
        return pq.read_table(io.BytesIO(content)).to_pylist()  # type: ignore[no-any-return]

    def run(self, sources: dict[str, Source] | None = None, **options: Any) -> module.Export:
        sources = table_sources(self.data_set, MONTHS) if sources is None else sources
        return export(self.cluster, self.client, self.prefix, sources, **options)


@pytest.fixture
def exports(endpoints: Endpoints) -> Iterator[Exports]:
    with Cluster(endpoints.clickhouse) as cluster:
        made = Exports(endpoints, cluster)
        yield made
        made.drop()


def failing_on_shard_2(data_set: DataSet) -> dict[str, Source]:
    sql = f"SELECT k, throwIf(k = 3) FROM {{shard}}.{data_set.local_table}"
    return {"all": Source(sql)}


def test_each_shard_writes_its_rows_of_each_partition_and_the_manifest_lists_them(exports: Exports) -> None:
    done = exports.run(run_id="r")
    assert read_manifest(exports.client, done.manifest) == done
    assert [(item.partition, item.shard, item.rows) for item in done.objects] == [
        ("2013-01", 1, 2),
        ("2013-01", 2, 1),
        ("2013-02", 1, 0),
        ("2013-02", 2, 1),
        ("2013-03", 1, 0),
        ("2013-03", 2, 0),
    ]
    assert done.columns == (("k", "Int32"), ("d", "Date"), ("note", "Nullable(String)"))
    assert [(row["k"], row["note"]) for item in done.objects for row in exports.read(item.key)] == [
        (1, "a"),
        (2, None),
        (3, ""),
        (4, "d"),
    ]
    for item in done.objects:
        head = exports.client.head_object(Bucket=EXPORTS_BUCKET, Key=item.key)
        assert (head["ContentLength"], head["ETag"].strip('"')) == (item.bytes, item.etag)
    assert sorted(exports.listed()) == sorted([*(item.key for item in done.objects), done.manifest])


def test_columns_and_a_condition_narrow_an_export_and_a_dimension_is_written_once(exports: Exports) -> None:
    name = exports.data_set.name
    sources = table_sources(
        exports.data_set, columns=["k"], where="k > {above:Int32} -- all but", parameters={"above": 1}
    )
    done = exports.run(sources)
    assert [row for item in done.objects for row in exports.read(item.key)] == [{"k": 2}, {"k": 3}, {"k": 4}]
    dimension = exports.run(table_sources(DataSet(name)))
    assert [(item.partition, item.shard, item.rows) for item in dimension.objects] == [("all", 1, 2)]


def test_types_and_nulls_come_back_as_they_were(exports: Exports) -> None:
    values = {
        "n": "toNullable(toUInt8(7))",
        "none": "CAST(NULL AS Nullable(Int64))",
        "u64": "18446744073709551615::UInt64",
        "dt": "toDateTime('2013-01-01 00:00:01', 'UTC')",
        "us": "toDateTime64('2013-01-01 00:00:00.123456', 6, 'UTC')",
        "d32": "toDate32('1960-02-29')",
        "low": "'x'::LowCardinality(Nullable(String))",
        "uuid": "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')",
        "enum": "CAST('b' AS Enum8('a' = 1, 'b' = 2))",
        "dec": "toDecimal128('12345678901234567890.0123456789', 10)",
        "arr": "[1, NULL]::Array(Nullable(Int8))",
        "map": "map('a', 1)",
        "tup": "tuple(1, 'x')::Tuple(a UInt8, b String)",
        "ip": "toIPv4('1.2.3.4')",
        "fix": "toFixedString('ab', 4)",
        "text": r"'a\'\n\t\0é'",
        "yes": "true",
        "nan": "nan",
    }
    listed = ", ".join(f"{value} AS {name}" for name, value in values.items())
    done = exports.run({"all": Source(f"SELECT {listed} FROM {{shard}}.{exports.data_set.local_table} LIMIT 1")})
    structure = ", ".join(f"{name} {kind}" for name, kind in done.columns)
    back = f"s3({EXPORTS_BUCKET}, filename = '{done.objects[0].key}', format = 'Parquet', structure = $${structure}$$)"
    differ = [
        f"ifNull(toString({name}), 'NULL') != ifNull(toString({value}), 'NULL')" for name, value in values.items()
    ]
    (found,) = exports.cluster.any_host(Statement(f"SELECT {', '.join(differ)} FROM {back}"))
    assert [name for name, differs in zip(values, found, strict=True) if differs] == []


def test_a_shard_that_fails_leaves_no_manifest_and_no_object_and_the_next_try_is_right(exports: Exports) -> None:
    with pytest.raises(ClickHouseError, match=r"shard 2 .*throwIf"):
        exports.run(failing_on_shard_2(exports.data_set))
    assert exports.listed() == []
    assert exports.run().rows == 4


def test_an_object_that_is_not_what_was_written_stops_the_export(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = exports.run()
    write = module._write

    def lose(source: Source, key: str, client: Any, shard: ClickHouseShard) -> tuple[int, int]:
        written, _ = write(source, key, client, shard)
        copy = {"Bucket": EXPORTS_BUCKET, "Key": other.objects[1].key}  # of one row
        exports.client.copy_object(Bucket=EXPORTS_BUCKET, Key=key, CopySource=copy)
        found = Statement(f"SELECT count() FROM s3({EXPORTS_BUCKET}, filename = '{key}', format = 'Parquet')")
        return written, int(found(client, shard)[0][0])

    monkeypatch.setattr(module, "_write", lose)
    with pytest.raises(ExportError, match=r"shard 1 .* wrote 2 rows to .*, but the object holds 1"):
        exports.run()
    assert set(exports.listed()) == {other.manifest, *(item.key for item in other.objects)}


def test_a_rerun_replaces_the_earlier_export_after_its_own_is_complete(exports: Exports) -> None:
    first = exports.run()
    exports.insert(1, "(5, '2013-03-01', 'new')")
    with pytest.raises(ClickHouseError):
        exports.run(failing_on_shard_2(exports.data_set))
    assert read_manifest(exports.client, first.manifest) == first  # as long as there is no newer one
    assert all(exports.read(item.key) or not item.rows for item in first.objects)
    second = exports.run()
    assert second.rows == 5
    assert set(exports.listed()) == {second.manifest, *(item.key for item in second.objects)}


def test_what_a_killed_process_has_left_goes_with_the_next_attempt(exports: Exports) -> None:
    dead = f"{exports.prefix}/{new_attempt()}"
    exports.client.put_object(Bucket=EXPORTS_BUCKET, Key=f"{dead}/2013-01/shard_1.parquet", Body=b"half")
    upload = exports.client.create_multipart_upload(Bucket=EXPORTS_BUCKET, Key=f"{dead}/2013-01/shard_2.parquet")
    exports.client.upload_part(
        Bucket=EXPORTS_BUCKET, Key=upload["Key"], UploadId=upload["UploadId"], PartNumber=1, Body=b"half"
    )
    done = exports.run()
    assert set(exports.listed()) == {done.manifest, *(item.key for item in done.objects)}
    assert not exports.client.list_multipart_uploads(Bucket=EXPORTS_BUCKET, Prefix=dead).get("Uploads")


def slow(data_set: DataSet) -> str:
    """A minute's work, in blocks of one row."""
    there = f"(SELECT count() FROM {{shard}}.{data_set.local_table})"
    return (
        f"SELECT number, sleepEachRow(0.2) FROM numbers(300) WHERE {there} SETTINGS max_block_size = 1, max_threads = 1"
    )


def running(cluster: Cluster, prefix: str) -> int:
    sql = f"SELECT count() FROM system.processes WHERE query_kind = 'Insert' AND position(query, '{prefix}/') > 0"
    return int(cluster.any_host(Statement(sql))[0][0])


def test_a_zombies_statements_end_and_what_it_writes_late_is_in_no_manifest(exports: Exports) -> None:
    """A try whose worker is gone, as far as Airflow knows, works on while the next try runs."""
    errors: list[Exception] = []

    def live_on(endpoints: Any) -> None:
        with Cluster(endpoints) as cluster:
            try:
                export(cluster, exports.client, exports.prefix, {"all": Source(slow(exports.data_set))})
            except Exception as e:
                errors.append(e)

    zombie = threading.Thread(target=live_on, args=(exports.cluster.endpoint,))
    zombie.start()
    wait_until(lambda: running(exports.cluster, exports.prefix) == 2)
    done = exports.run()
    zombie.join(30)
    assert errors
    assert running(exports.cluster, exports.prefix) == 0
    late = f"{exports.prefix}/{new_attempt()}/2013-01/shard_1.parquet"
    exports.client.put_object(Bucket=EXPORTS_BUCKET, Key=late, Body=b"late")
    assert late not in read_manifest(exports.client, done.manifest).by_partition["2013-01"]
    assert exports.run().rows == 4
    assert late not in exports.listed()


def test_an_attempt_that_was_overtaken_removes_nothing_of_its_successors(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still with its manifest written; its successor begins and ends; then it goes on."""
    remove = module.remove_attempts
    successors: list[module.Export | None] = []

    def stall(client: Any, prefix: str, attempts: Any) -> None:
        if any(key.endswith(module.MANIFEST) for key in exports.listed()) and not successors:
            successors.append(None)
            successors.append(exports.run())
        remove(client, prefix, attempts)

    monkeypatch.setattr(module, "remove_attempts", stall)
    exports.run()
    successor = successors[1]
    assert successor is not None
    assert set(exports.listed()) == {successor.manifest, *(item.key for item in successor.objects)}


def test_an_attempt_whose_objects_a_later_one_has_removed_has_no_manifest(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = module._size_and_etag
    successors: list[Any] = []

    def late(client: Any, key: str) -> tuple[int, str]:
        if not successors:
            successors.append(key)
            successors.append(exports.run())
        return look(client, key)

    monkeypatch.setattr(module, "_size_and_etag", late)
    with pytest.raises(ExportError, match="was removed after this attempt wrote it"):
        exports.run()
    assert set(exports.listed()) == {successors[1].manifest, *(item.key for item in successors[1].objects)}


def test_a_query_that_would_give_the_same_rows_on_every_shard_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"does not contain \{shard\}"):
        Source("SELECT 1")
    with pytest.raises(ConfigurationError, match="one statement"):
        Source("DROP TABLE {shard}.x")


# --- the operator


@pytest.fixture
def airflow(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_airflow(monkeypatch, platform.env)


@pytest.mark.usefixtures("airflow")
def test_the_operator_gives_what_a_load_takes(exports: Exports) -> None:
    operator = make(ClickHouseToS3Operator, data_set=exports.data_set, start="2013-01", end="2013-02")
    found = operator.execute(context("scheduled__2013-01-01T00:00:00+00:00"))
    assert (found["rows"], found["shards"]) == (4, {"1": 2, "2": 2})
    assert {partition: sorted(rows.values()) for partition, rows in found["objects"].items()} == {
        "2013-01": [1, 2],
        "2013-02": [0, 1],
    }
    manifest = read_manifest(exports.client, found["manifest"])
    assert manifest.by_partition == found["objects"]
    assert manifest.run_id == "transfers/scheduled__2013-01-01T00:00:00+00:00"
    for objects in found["objects"].values():
        for key, rows in objects.items():
            assert len(exports.read(key)) == rows


@pytest.mark.usefixtures("airflow")
def test_a_query_runs_once_a_partition_bound_to_it(exports: Exports) -> None:
    table = f"{{shard}}.{exports.data_set.local_table}"
    sql = f"SELECT k FROM {table} WHERE d >= {{start:Date}} AND d < {{stop:Date}} AND k != {{no:Int32}};"
    operator = make(
        ClickHouseToS3Operator, data_set=exports.data_set, sql=sql, start="2013-01", end="2013-02", parameters={"no": 1}
    )
    done = read_manifest(exports.client, operator.execute(context())["manifest"])
    assert [(i.partition, [row["k"] for row in exports.read(i.key)]) for i in done.objects] == [
        ("2013-01", [2]),
        ("2013-01", [3]),
        ("2013-02", []),
        ("2013-02", [4]),
    ]


@pytest.mark.usefixtures("airflow")
def test_a_killed_task_leaves_no_statement_and_a_successors_goes_on(exports: Exports) -> None:
    sql = slow(exports.data_set)
    operator = make(ClickHouseToS3Operator, sql=sql, name=exports.data_set.name)
    errors: list[Exception] = []

    def run() -> None:
        try:
            operator.execute(context())
        except Exception as e:
            errors.append(e)

    task = threading.Thread(target=run)
    task.start()
    wait_until(lambda: running(exports.cluster, exports.data_set.name) == 2)
    make(ClickHouseToS3Operator, sql=sql, name=exports.data_set.name).on_kill()  # another process's: knows of nothing
    time.sleep(0.3)
    assert running(exports.cluster, exports.data_set.name) == 2
    operator.on_kill()
    task.join()
    assert errors
    assert running(exports.cluster, exports.data_set.name) == 0
    assert exports.listed() == []
