"""Rows of ClickHouse in Spark: by way of S3, all of them, as they are; and nothing stays there."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator

import pytest

from support import spark_session
from support.running_platform import Platform
from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.lake import DataSet

KEPT = {
    **{"k": "int", "day": "date", "at": "timestamp", "second": "timestamp", "berlin": "timestamp"},
    **{"low": "string", "low_null": "string", "comparison": "smallint", "flag": "boolean", "f0": "boolean"},
    **{"price": "decimal(18,4)", "wide": "decimal(38,18)", "n": "int", "u8": "smallint", "u16": "int"},
    **{"u32": "bigint", "u64": "decimal(20,0)", "i8": "tinyint", "i16": "smallint", "i64": "bigint"},
    **{"f32": "float", "f64": "double", "enum": "string", "list": "array<int>", "empty": "string", "old": "date"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(spark_session.TIMEOUT_S)]


@pytest.fixture
def table(endpoints: Endpoints) -> Iterator[DataSet]:
    """Two rows of January and one of February on each shard."""
    data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
    with Cluster(endpoints.clickhouse) as cluster:
        for shard in cluster.shards:
            for sql in (
                f"CREATE TABLE {{shard}}.{data_set.local_table} (k Int32, d Date, note Nullable(String)) "
                "ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k",
                f"INSERT INTO {{shard}}.{data_set.local_table} SELECT {shard.number} + 2 * number, "
                "toDate('2013-01-15') + 20 * (number = 2), if(number = 1, NULL, 'x') FROM numbers(3)",
            ):
                cluster.on_shard(shard, Statement(sql))
        yield data_set
        for shard in cluster.shards:
            cluster.on_shard(shard, Statement(f"DROP TABLE {{shard}}.{data_set.local_table} SYNC"))


def exported(endpoints: Endpoints, session: str) -> list[str]:
    return s3.list_keys(s3.client(endpoints.s3), "exports", f"spark/{session}/")


def test_values_types_and_nulls_are_kept(platform: Platform) -> None:
    told, _ = spark_session.run(platform, "support.spark_work:read_kinds")
    assert told["types"] == told["inferred"] == KEPT
    first, second = told["rows"]
    assert {name: value for name, value in first.items() if value != second[name]} == {
        **{"k": "0", "day": "datetime.date(2013, 2, 28)", "low_null": "'y'", "comparison": "0", "flag": "False"},
        **{"f0": "True", "wide": "Decimal('0.100000000000000000')", "n": "0"},
    }
    assert [name for name, value in second.items() if value == "None"] == ["low_null", "f0", "wide", "n"]
    assert second["at"] == "datetime.datetime(2013, 2, 28, 23, 59, 59, 123456)"
    assert second["berlin"] == "datetime.datetime(2013, 7, 1, 10, 0, 0, 500000)"
    assert second["u64"] == "Decimal('18446744073709551615')"
    assert (second["i64"], second["u32"], second["u8"]) == ("-9223372036854775808", "4294967295", "255")
    assert (second["price"], second["list"], second["empty"]) == ("Decimal('-12.3400')", "[1, None]", "''")
    assert second["old"] == "datetime.date(1925, 1, 1)"


@pytest.mark.nightly
def test_what_is_asked_for_is_read_from_every_shard_and_removed_in_the_end(platform: Platform, table: DataSet) -> None:
    told, said = spark_session.run(platform, "support.spark_work:read_some", table.to_json())
    assert told["columns"] == ["k", "note"]
    assert told["month"] == [[5, "x"], [6, "x"]]
    assert told["where"] == [3, 4]
    assert told["nothing"] == [0, ["k", "d", "note"]]
    assert "Column id has the type UUID, which Spark does not have" in told["refused"]
    assert told["held"] == 9, "three manifests, and two files each"
    assert exported(platform.endpoints, told["session"]) == []
    assert platform.endpoints.clickhouse.password not in said


@pytest.mark.nightly
def test_what_a_killed_session_leaves_is_removed_by_the_next_that_reads(platform: Platform, table: DataSet) -> None:
    driver = spark_session.start(platform, "support.spark_work:read_and_hang", table.to_json())
    assert driver.stdout
    session = next(line.split()[1] for line in driver.stdout if line.startswith("SESSION"))
    try:
        spark_session.run(platform, "support.spark_work:read_some", table.to_json())
        assert len(exported(platform.endpoints, session)) == 3, "its session lives"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    spark_session.run(platform, "support.spark_work:read_some", table.to_json())
    assert exported(platform.endpoints, session) == []
