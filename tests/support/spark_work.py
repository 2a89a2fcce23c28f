"""What tests of Spark's ways to PostgreSQL and ClickHouse do inside a driver: see `spark_session.py`."""

from __future__ import annotations

import os
import signal
import time
from datetime import date
from typing import Any
from unittest.mock import patch

from trilake import s3
from trilake.clickhouse.export import Source
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake import DataSet, Window
from trilake.lake.data_set import EXPORTS_BUCKET
from trilake.postgres.connection import connect
from trilake.spark import postgres
from trilake.spark.clickhouse import PREFIX, ClickHouseReader
from trilake.spark.postgres import write_postgres

KINDS = """
    SELECT cast(number, 'Int32') AS k, toDate('2013-02-28') + number AS day,
        toDateTime64('2013-02-28 23:59:59.123456', 6, 'UTC') AS at, toDateTime('2013-02-28 01:02:03', 'UTC') AS second,
        toDateTime64('2013-07-01 12:00:00.5', 3, 'Europe/Berlin') AS berlin,
        toLowCardinality('x') AS low, cast(if(number = 1, NULL, 'y'), 'LowCardinality(Nullable(String))') AS low_null,
        number = 1 AS comparison, cast(number = 1, 'Bool') AS flag,
        cast(if(number = 1, NULL, true), 'Nullable(Bool)') AS f0,
        toDecimal64('-12.3400', 4) AS price, cast(if(number = 1, NULL, '0.1'), 'Nullable(Decimal(38, 18))') AS wide,
        cast(if(number = 1, NULL, number), 'Nullable(Int32)') AS n, toUInt8(255) AS u8, toUInt16(65535) AS u16,
        toUInt32(4294967295) AS u32, toUInt64(18446744073709551615) AS u64, toInt8(-128) AS i8, toInt16(-1) AS i16,
        toInt64(-9223372036854775808) AS i64, toFloat32(0.5) AS f32, cast('nan', 'Float64') AS f64,
        cast('a', 'Enum8(\\'a\\' = 1)') AS enum, [1, NULL]::Array(Nullable(Int32)) AS list, '' AS empty,
        toDate32('1925-01-01') AS old
    FROM numbers(2)
"""


def read_kinds(spark: Any) -> Any:
    with ClickHouseReader(Endpoints.from_environment(), run_id="kinds") as reader:
        frame = reader.read_table(spark, Source(KINDS, every_shard=False))
        inferred = spark.read.parquet(*frame.inputFiles())
        rows = [{name: repr(value) for name, value in row.asDict().items()} for row in frame.orderBy("k").collect()]
        return {"types": dict(frame.dtypes), "inferred": dict(inferred.dtypes), "rows": rows}


def read_some(spark: Any, data_set: str) -> Any:
    """Partitions, columns and a condition of a table on two shards; what is left in S3 while it is read, and after."""
    endpoints, table = Endpoints.from_environment(), DataSet.from_json(data_set)
    with ClickHouseReader(endpoints, run_id="some") as reader:
        month = reader.read_table(spark, table, partitions=["2013-02"], columns=["k", "note"])
        condition = "k >= {least:Int32} AND note IS NULL"
        where = reader.read_table(spark, table, where=condition, parameters={"least": 2})
        nothing = reader.read_table(spark, table, partitions=["2031-01"])
        doubled = {}
        try:
            reader.read_table(spark, Source("SELECT generateUUIDv4() AS id FROM {shard}." + table.local_table))
        except TrilakeError as e:
            doubled["refused"] = str(e)
        return {
            "month": sorted(map(tuple, month.collect())),
            "columns": month.columns,
            "where": sorted(row.k for row in where.collect()),
            "nothing": [nothing.count(), nothing.columns],
            "held": len(exports(reader.session)),
            "session": reader.session,
            **doubled,
        }


def read_and_hang(spark: Any, data_set: str) -> Any:
    with ClickHouseReader(Endpoints.from_environment()) as reader:
        reader.read_table(spark, DataSet.from_json(data_set))
        print("SESSION", reader.session, flush=True)
        time.sleep(600)


def exports(session: str) -> list[str]:
    return s3.list_keys(s3.client(Endpoints.from_environment().s3), EXPORTS_BUCKET, f"{PREFIX}/{session}/")


def write_all_ways(spark: Any, table: str) -> Any:
    """Rows as they come and go: all replaced, a window replaced, merged, refused."""
    told: dict[str, Any] = {}

    def rows(*columns: str) -> list[Any]:
        with connect(Endpoints.from_environment().oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY k")
            return cursor.fetchall()

    some = spark.range(5).selectExpr(
        "cast(id AS int) k", "make_date(2013, 2, cast(id AS int) + 1) d", "if(id = 1, NULL, id / 4) n",
        "if(id = 1, NULL, if(id = 2, '', concat('a,\"\\n\\\\.', id))) note",
        "timestamp'2013-02-28 23:59:59.123456' at", "cast('-12.34' AS decimal(9, 2)) price", "id = 1 flag",
        "if(id = 1, NULL, cast('\\0x' AS binary)) raw",
        "if(id = 1, NULL, named_struct('a', array(1, NULL), 'at', timestamp'2013-02-28 23:59:59.123456')) extra",
    )  # fmt: skip
    told["all"] = vars(write_postgres(some.repartition(3), table))
    told["rows"] = [list(map(repr, row)) for row in rows("k", "d", "n", "note", "at", "price", "flag", "raw", "extra")]
    window = Window.parse("day", "2013-02-02", "2013-02-03")
    fewer = some.where("k = 2").selectExpr("k", "d", "'new' note")
    told["window"] = vars(write_postgres(fewer, table, date="d", window=window))
    told["after window"] = rows("k", "note", "kept")
    merged = spark.createDataFrame(
        [(2, date(2013, 2, 3), "again"), (9, date(2013, 3, 1), "nine")], "k int, d date, note string"
    )
    told["merge"] = vars(write_postgres(merged, table, key=["k", "d"]))
    told["after merge"] = rows("k", "note")
    one = some.where("k = 0")
    refused = {
        "outside": (some.selectExpr("k + 50 k", "d"), {"date": "d", "window": window}),
        "doubled": (merged.union(merged), {"key": ["k", "d"]}),
        "null": (some.selectExpr("k", "cast(NULL AS date) d"), {}),
        "wrong type": (some.selectExpr("k", "d", "'x' price"), {}),
        "no column": (some.selectExpr("k", "d", "1 elsewhere"), {}),
        "unclear": (some, {"date": "d"}),
        "interval": (some.selectExpr("k", "d", "interval 1 day n"), {}),
        "rounded": (one.selectExpr("k", "d", "1.005BD price"), {}),
        "fraction": (one.selectExpr("1.5D k", "d"), {}),
        "nul": (one.selectExpr("k", "d", "concat('a', char(0), 'b') note"), {}),
        "bytes as text": (one.selectExpr("k", "d", "cast('x' AS binary) note"), {}),
        "no zone": (one.selectExpr("k", "d", "timestamp_ntz'2013-01-01 00:00:00' at"), {}),
        "time of day": (one.selectExpr("k", "timestamp'2013-01-01 10:00:00' d"), {}),
    }
    for name, (frame, options) in refused.items():
        try:
            write_postgres(frame, table, **options)
        except TrilakeError as e:
            told[name] = f"{type(e).__name__}: {e}"
    told["after refusals"] = rows("k", "note")
    told["empty"] = vars(write_postgres(some.where("k > 99"), table, date="d", window=window))
    told["staging"] = staging(table)
    told["plan"] = (
        some.mapInArrow(postgres._copier("postgres_oltp", "s", ["k"]), "a long")._jdf.queryExecution().toString()
    )
    return told


def write_in_a_storm(spark: Any, table: str) -> Any:
    """Each task's first copy is killed right after its COMMIT, and of one a late twin commits before the swap."""
    usual = postgres._copier

    def copier(*options: Any) -> Any:
        copy = usual(*options)

        def killed(batches: Any) -> Any:
            from pyspark import TaskContext

            context = TaskContext.get()
            assert context
            told = list(copy(batches))
            if context.attemptNumber() == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from told

        return killed

    swap, seen = postgres.replace_from, {}

    def count_first(connection: Any, *options: Any, **more: Any) -> int:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {staging(table)[0]}")
            seen["staged"] = cursor.fetchone()[0]
        return swap(connection, *options, **more)

    frame = spark.range(0, 1000, 1, 2).selectExpr("cast(id AS int) k", "date'2013-02-01' d")
    with patch.object(postgres, "_copier", copier), patch.object(postgres, "replace_from", count_first):
        written = write_postgres(frame, table)
    return {"written": written.rows, **seen, "left": staging(table)}


def write_and_hang(spark: Any, table: str) -> Any:
    from pyspark.sql import functions as F

    # late enough that rows are on their way to PostgreSQL by then: Spark hands them on in blocks, and blocks in buffers
    slow = F.udf(lambda k: (time.sleep(600 if k == 300_000 else 0), k)[1], "int")
    write_postgres(
        spark.range(0, 400_000, 1, 1).select(slow("id").alias("k"), F.lit(date(2013, 2, 1)).alias("d")), table
    )


def staging(table: str) -> list[str]:
    """What there is of staging tables in the table's schema."""
    with connect(Endpoints.from_environment().oltp) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = %s AND tablename LIKE %s",
            (table.partition(".")[0], f"{postgres.STAGING}%"),
        )
        return [name for (name,) in cursor.fetchall()]
