"""Two runs of one job over the same partitions, on real Spark, Iceberg and S3."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from pyspark.sql.types import DateType, IntegerType, StructField, StructType
from running_platform import PROJECT

from trilake import s3
from trilake.embedded import jars
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.spark.job import Job, OvertakenError
from trilake.spark.session import build_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = StructType([StructField("k", IntegerType(), False), StructField("d", DateType(), False)])


@pytest.fixture
def spark(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[SparkSession]:
    folder = jars.folder_of(PROJECT, "spark")
    monkeypatch.setitem(os.environ, "PYSPARK_PYTHON", sys.executable)
    conf = {
        "spark.master": "local[1]",
        "spark.driver.extraClassPath": f"{folder}/*",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
    }
    session = build_session(endpoints, "tests", conf)
    yield session
    session.stop()


def test_a_run_that_pinned_its_input_earlier_cannot_replace_one_that_knew_more(
    endpoints: Endpoints, spark: SparkSession
) -> None:
    data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
    store = s3.client(endpoints.s3)

    def land(name: str, key: int) -> None:
        store.put_object(Bucket="raw", Key=data_set.raw_key("2013-01", name), Body=f"k,d\n{key},2013-01-05\n".encode())

    def start(run: str) -> Job:
        return Job(
            ["--data-set", data_set.to_json(), "--start", "2013-01", "--run", run], endpoints=endpoints, spark=spark
        )

    def rows(job: Job) -> list[int]:
        spark.catalog.refreshTable(f"lake.{data_set.curated}")
        return sorted(row.k for row in job.table(data_set).collect())

    land("a.csv", 1)
    slow = start("slow")
    early = slow.read(SCHEMA)
    land("b.csv", 2)
    quick = start("quick")
    late = quick.read(SCHEMA)
    quick.commit(late.rows, late)
    with pytest.raises(OvertakenError, match="while run slow was at work"):
        slow.commit(early.rows, early)
    assert rows(quick) == [1, 2]
    again = start("again")
    batch = again.read(SCHEMA)
    again.commit(batch.rows, batch)
    assert rows(again) == [1, 2]
    for table in (data_set.curated, data_set.quarantine):
        spark.sql(f"DROP TABLE lake.{table} PURGE")
