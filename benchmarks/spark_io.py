"""What Spark's ways to PostgreSQL and ClickHouse cost over the bare ones, on the same rows in one Spark session.

    python benchmarks/spark_io.py [--rows 1000000] [--rounds 3]

Needs a running platform with the flights of `make demo`. In each round, one after another: `write_postgres` (a COPY a
task into staging, then one transaction) and a bare JDBC write of the same frame into a table without constraints,
which neither stages nor swaps nor counts; `read_table` (every shard exports, Spark reads and counts) and Spark reading
Parquet files of the same rows that are there already; the publication of a month of flights ordered by a driver
(`trilake.spark.publish`) and by `IcebergToClickHouseOperator`'s task. Ratios are of the same round; the table shows
the medians.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from platform_of_benchmarks import endpoints, markdown

from trilake.clickhouse.export import read_manifest
from trilake.lake import DataSet
from trilake.platform.embedded import jars
from trilake.postgres.connection import connect
from trilake.s3 import client as s3_client
from trilake.s3 import list_keys
from trilake.spark.clickhouse import PREFIX, ClickHouseReader
from trilake.spark.postgres import write_postgres
from trilake.spark.publish import publish
from trilake.spark.session import build_session

TITLE = "Spark to PostgreSQL, from ClickHouse, and publishing from a driver"
HEADER = ("this", "against", "rows", "this, s", "against, s", "ratio")
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
MONTH = "2013-01"
TASKS = 2
COLUMNS = "id bigint, day date, name text, value double precision, flag boolean, at timestamptz"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Measure:
    """A Spark session, a table of PostgreSQL, and what is measured with them."""

    def __init__(self, rows: int) -> None:
        self.endpoints, self.rows = endpoints(), rows
        # Spark's Python workers import what this process does
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1] / "plugins"), *sys.path])
        folder = jars.folder_of("spark")
        conf = {"spark.master": f"local[{TASKS}]", "spark.driver.extraClassPath": f"{folder}/*"}
        self.spark = build_session(self.endpoints, "benchmark", {**conf, "spark.ui.enabled": "false"})
        self.spark.sparkContext.setLogLevel("ERROR")
        self.table = f"marts.bench_{secrets.token_hex(3)}"
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            for table in (self.table, f"{self.table}_bare"):
                cursor.execute(f"CREATE SCHEMA IF NOT EXISTS marts; CREATE TABLE {table} ({COLUMNS})")
        self.frame = self.spark.range(0, rows, 1, TASKS).selectExpr(
            *("id", "date_add(date'2013-01-01', cast(id % 365 AS int)) day", "concat('station ', id % 100) name"),
            *("id / 3 value", "id % 2 = 0 flag", "timestamp_micros(1356998400000000 + id * 1000000) at"),
        )

    def close(self) -> None:
        self.spark.stop()
        with connect(self.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {self.table}, {self.table}_bare")

    # --- PostgreSQL

    def write(self) -> None:
        assert write_postgres(self.frame, self.table).rows == self.rows

    def write_bare(self, **options: str) -> None:
        oltp = self.endpoints.oltp
        options |= {"user": oltp.user, "password": oltp.password, "driver": "org.postgresql.Driver"}
        self.frame.write.mode("append").jdbc(oltp.jdbc_url, f"{self.table}_bare", properties=options)

    def empty(self) -> None:
        with connect(self.endpoints.oltp, autocommit=True) as connection, connection.cursor() as cursor:
            for table in (self.table, f"{self.table}_bare"):
                cursor.execute(f"TRUNCATE {table}")

    def writes(self) -> tuple[float, float, float]:
        """`write_postgres`, JDBC as it is, JDBC with its driver's multi-row inserts."""
        figures = []
        for work in (self.write, self.write_bare, lambda: self.write_bare(reWriteBatchedInserts="true")):
            self.empty()
            figures.append(seconds(work))
        return figures[0], figures[1], figures[2]

    # --- ClickHouse

    def reads(self) -> tuple[float, float]:
        """`read_table` of all flights, and Spark alone on the files that that has left."""
        store = s3_client(self.endpoints.s3)

        def consume(frame: Any) -> None:
            frame.write.format("noop").mode("overwrite").save()

        with ClickHouseReader(self.endpoints) as reader:
            ours = seconds(lambda: consume(reader.read_table(self.spark, FLIGHTS)))
            below = f"{PREFIX}/{reader.session}/"
            manifest = next(key for key in list_keys(store, "exports", below) if key.endswith("manifest.json"))
            self.flights = read_manifest(store, manifest).rows
            files = [f"s3a://exports/{item.key}" for item in read_manifest(store, manifest).objects]
            return ours, seconds(lambda: consume(self.spark.read.parquet(*files)))

    def publications(self) -> tuple[float, float]:
        """By a driver, and by the operator's task."""
        from datetime import UTC, datetime
        from types import SimpleNamespace

        from airflow.sdk import DAG

        from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator

        def driver() -> None:
            self.month = publish(self.endpoints, FLIGHTS, [MONTH], run_id="benchmark", force=True).total_rows

        def operator() -> None:
            names = {"dag_id": "benchmark", "task_id": "publish", "run_id": "benchmark", "map_index": -1}
            ti = SimpleNamespace(**names, try_number=1, start_date=datetime.now(UTC))
            with DAG("benchmark", schedule=None):
                task = IcebergToClickHouseOperator(
                    task_id="publish", data_set=FLIGHTS, start=MONTH, force=True, outlets=[]
                )
            task.execute({"ti": ti, "run_id": "benchmark", "params": {}})  # type: ignore[typeddict-item]

        return seconds(driver), seconds(operator)


def table(rows: int, rounds: int) -> str:
    """The results as Markdown."""
    measure = Measure(rows)
    lines = []
    try:

        def add(this: str, against: str, count: int, pairs: list[tuple[float, float]]) -> None:
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            lines.append((this, against, f"{count:,}", f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.2f} x"))

        measure.writes(), measure.reads(), measure.publications()  # the first of each warms up
        writes = [measure.writes() for _ in range(rounds)]
        add("write_postgres", "JDBC write", rows, [(ours, bare) for ours, bare, _ in writes])
        batched = [(ours, bare) for ours, _, bare in writes]
        add("write_postgres", "JDBC write, reWriteBatchedInserts", rows, batched)
        reads = [measure.reads() for _ in range(rounds)]
        add("read_table", "Parquet files that are there", measure.flights, reads)
        publications = [measure.publications() for _ in range(rounds)]
        add("publish from a driver", "IcebergToClickHouseOperator", measure.month, publications)
    finally:
        measure.close()
    return markdown(HEADER, lines)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(table(arguments.rows, arguments.rounds))
