"""Two runs of one job over the same partitions: what `test_concurrent_jobs.py` runs in a process of its own.

A Spark session is one a process, and those of other tests have no S3.
"""

from __future__ import annotations

import json
import secrets
import sys
from datetime import timedelta
from pathlib import Path

from trilake import s3
from trilake.arrivals import Arrivals, overdue
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.spark.job import Job, OvertakenError
from trilake.spark.session import build_session

SCHEMA = "k int NOT NULL, d date NOT NULL"


def main(jars: Path) -> None:
    """A slow run reads, a quick one reads more and commits, the slow one tries to commit. Prints what came of it."""
    endpoints = Endpoints.from_environment()
    conf = {"spark.master": "local[1]", "spark.driver.extraClassPath": f"{jars}/*", "spark.ui.enabled": "false"}
    spark = build_session(endpoints, "tests", {**conf, "spark.sql.shuffle.partitions": "1"})
    data_set = DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")
    store = s3.client(endpoints.s3)

    def land(name: str, key: int) -> None:
        store.put_object(Bucket="raw", Key=data_set.raw_key("2013-01", name), Body=f"k,d\n{key},2013-01-05\n".encode())

    def start(run: str) -> Job:
        arguments = ["--data-set", data_set.to_json(), "--start", "2013-01", "--run", run]
        return Job(arguments, endpoints=endpoints, spark=spark)

    def rows(job: Job) -> list[int]:
        spark.catalog.refreshTable(f"lake.{data_set.curated}")
        return sorted(row.k for row in job.table(data_set).collect())

    arrivals = Arrivals(endpoints.lake, store, data_set, settle_seconds=0)

    def hands() -> list[object]:
        """The months that are due, and those that a run took and none has committed."""
        waits = [one.partition for one in overdue(endpoints.lake, timedelta()) if one.data_set == data_set.name]
        return [list(arrivals.due()), waits]

    told: dict[str, object] = {"refused": None}
    land("a.csv", 1)
    arrivals.take("slow")
    slow = start("slow")
    early = slow.read(SCHEMA)
    land("b.csv", 2)
    quick = start("quick")
    late = quick.read(SCHEMA)
    told["when both have read"] = hands()
    quick.commit(late.rows, late)
    told["when the quick one has committed"] = hands()
    try:
        slow.commit(early.rows, early)
    except OvertakenError as e:
        told["refused"] = str(e)
    told["after the slow run"] = rows(quick)
    again = start("again")
    batch = again.read(SCHEMA)
    land("c.csv", 1)
    again.commit(batch.rows, batch)
    told["when more has come before a commit"] = hands()
    told["after another run"] = rows(again)
    for table in (data_set.curated, data_set.quarantine):
        spark.sql(f"DROP TABLE lake.{table} PURGE")
    spark.stop()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
