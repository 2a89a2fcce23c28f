"""What tests of the lake's maintenance do inside a driver: see `spark_session.py`."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from pyspark.sql import functions as F

from support.concurrent_jobs import SCHEMA, Table
from trilake.endpoints import Endpoints
from trilake.spark.maintenance import keep_up


def fill(spark: Any, table: str, commits: str) -> Any:
    """A small file a commit, all of one partition. Gives the snapshots, oldest first."""
    name = f"lake.{table}"
    spark.sql("CREATE NAMESPACE IF NOT EXISTS lake.curated")
    spark.sql(f"CREATE TABLE {name} (k int NOT NULL, d date NOT NULL) USING iceberg PARTITIONED BY (months(d))")
    for number in range(int(commits)):
        spark.sql(f"INSERT INTO {name} VALUES ({number}, DATE'2013-01-05')")
    return [row[0] for row in spark.sql(f"SELECT snapshot_id FROM {name}.snapshots ORDER BY committed_at").collect()]


def write_and_hang(spark: Any, table: str) -> Any:
    """A job that has written a file, and never comes to its commit."""

    def hang(rows: Any) -> Any:
        for batch in rows:
            yield batch
            if batch["k"].iloc[0] == 1000:
                time.sleep(600)

    schema = "k int, d date"
    frame = spark.range(1000, 1002, numPartitions=2).select(
        F.col("id").cast("int").alias("k"), F.lit("2013-01-06").cast("date").alias("d")
    )
    frame.mapInPandas(hang, schema).writeTo(f"lake.{table}").option("distribution-mode", "none").append()


def maintain(spark: Any, table: str, snapshot_days: str, quiet_hours: str) -> Any:
    stay, quiet = timedelta(days=float(snapshot_days)), timedelta(hours=float(quiet_hours))
    done = keep_up(spark, Endpoints.from_environment(), snapshots_stay=stay, quiet=quiet, tables=[table])
    return {name: asdict(found) for name, found in done.items()}


def keep_up_beside_a_job(spark: Any) -> Any:
    """Maintenance runs while a job runs, and when it has ended; each time there are small files to rewrite."""
    table = Table(spark)
    table.land("a", 1)
    table.run("first")

    def fill() -> None:
        for _ in range(6):
            spark.sql(f"INSERT INTO lake.{table.data_set.curated} VALUES (1, DATE'2013-01-05')")

    def upkeep_of_both() -> list[Any]:
        names = (table.data_set.curated, table.data_set.quarantine)
        done = keep_up(spark, Endpoints.from_environment(), quiet=timedelta(), tables=names)
        return [[done[name].rewritten, done[name].left] for name in names]

    fill()
    with table.start("slow") as job:
        batch = job.read(SCHEMA)
        told: dict[str, Any] = {"while it is at work": upkeep_of_both()}
        told["the job"] = table.commit(job, batch)
    fill()
    told["when it has ended"] = upkeep_of_both()
    table.drop()
    return told


def look(spark: Any, table: str, *snapshots: str) -> Any:
    """The table's rows now, and at snapshots (None: there is no such snapshot any more)."""

    def rows(snapshot: str | None) -> Any:
        at = f" VERSION AS OF {snapshot}" if snapshot else ""
        try:
            return sorted(row.k for row in spark.sql(f"SELECT k FROM lake.{table}{at}").collect())
        except Exception as e:
            if "Cannot find snapshot" not in str(e):
                raise
            return None

    return [rows(None), *map(rows, snapshots)]
