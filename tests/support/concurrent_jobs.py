"""Two runs of one job over the same partitions: what `test_concurrent_jobs.py` does inside a driver.

Each file that lands has a good line and a refused one.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from trilake import s3
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.arrivals import Arrivals, overdue
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace
from trilake.spark import job as spark_job
from trilake.spark.inputs import InputError
from trilake.spark.job import Job
from trilake.spark.overwrite import OvertakenError

SCHEMA = "k int NOT NULL, d date NOT NULL"
MONTH = "2013-01"
WAIT_S = 300


class Table:
    """A data set of the test's own, and runs of its job."""

    def __init__(self, spark: Any, name: str = "") -> None:
        self._spark, self._endpoints = spark, Endpoints.from_environment()
        self.data_set = DataSet(
            name or f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k", max_refused=1.0
        )

    def land(self, name: str, *keys: int) -> None:
        lines = ["k,d", *(f"{key},2013-01-05" for key in keys), f"refused in {name}"]
        body = "".join(f"{line}\n" for line in lines).encode()
        key = self.data_set.raw_key(MONTH, f"{name}.csv")
        s3.client(self._endpoints.s3).put_object(Bucket="raw", Key=key, Body=body)

    def start(self, run: str) -> Job:
        arguments = ["--data-set", self.data_set.to_json(), "--start", MONTH, "--run", run]
        return Job(arguments, endpoints=self._endpoints, spark=self._spark)

    def run(self, run: str) -> str:
        with self.start(run) as job:
            return self.commit(job, job.read(SCHEMA))

    def commit(self, job: Job, batch: Any) -> str:
        try:
            job.commit(batch.rows, batch)
        except (OvertakenError, InputError) as e:
            return str(e)
        return "committed"

    def write(self, job: Job, batch: Any, mart: str) -> str:
        try:
            job.write_postgres(batch.rows, mart)
        except OvertakenError as e:
            return str(e)
        return "written"

    def held(self) -> dict[str, list[Any]]:
        """Keys, and the refused lines with the run that refused them."""
        return {"rows": self._rows(self.data_set.curated, "k"), "refused": self._rows(self.data_set.quarantine)}

    def _rows(self, table: str, *columns: str) -> list[Any]:
        self._spark.catalog.refreshTable(f"lake.{table}")
        rows = self._spark.table(f"lake.{table}").select(*columns or ("raw", "run")).collect()
        return sorted(row[0] if columns else list(row) for row in rows)

    @property
    def arrivals(self) -> Arrivals:
        return Arrivals(self._endpoints.lake, s3.client(self._endpoints.s3), self.data_set, settle_seconds=0)

    def hands(self) -> list[list[str]]:
        """The months that are due, and those that a run took and none has committed."""
        waits = overdue(self._endpoints.lake, timedelta())
        return [list(self.arrivals.due()), [one.partition for one in waits if one.data_set == self.data_set.name]]

    def await_waiting(self) -> None:
        """Until a run waits for its turn."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            with connect(self._endpoints.lake) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_locks WHERE classid = %s AND NOT granted", (LockSpace.PARTITION,))
                if cursor.fetchall():
                    return
            time.sleep(0.2)
        raise TimeoutError("No run waits for its turn.")

    def drop(self) -> None:
        for table in (self.data_set.curated, self.data_set.quarantine):
            self._spark.sql(f"DROP TABLE lake.{table} PURGE")


def between(act: Callable[[], None]) -> None:
    """Have the next run do something when refused rows are replaced and good ones are not yet."""
    create = spark_job.create_curated

    def acting(*options: Any, **named: Any) -> None:
        cast("Any", spark_job).create_curated = create
        act()
        create(*options, **named)

    cast("Any", spark_job).create_curated = acting


def meet(spark: Any) -> Any:
    """By how they meet; without a good line, the refused ones alone tell of the quick run."""
    return {"good lines": overtake(spark, [1], [2]), "no good line": overtake(spark, [], []), "a turn": wait(spark),
            "a mart": write(spark), "a new file": change(spark)}  # fmt: skip


def overtake(spark: Any, earlier: list[int], later: list[int]) -> Any:
    """A slow run reads, a quick one reads more and commits, the slow one tries to commit; then another one does."""
    table = Table(spark)
    table.land("a", *earlier)
    table.arrivals.take("slow")
    slow = table.start("slow")
    early = slow.read(SCHEMA)
    table.land("b", *later)
    told: dict[str, Any] = {"hands while one reads": table.hands(), "quick": table.run("quick")}
    told["hands when the quick one has committed"] = table.hands()
    told["slow"] = table.commit(slow, early)
    told["after the slow run"] = table.held()
    told["again"] = table.run("again")
    told["after another run"] = table.held()
    more = table.start("more")
    batch = more.read(SCHEMA)
    table.land("c", *earlier)
    table.commit(more, batch)
    told["hands when more has come before a commit"] = table.hands()
    table.drop()
    return told


def wait(spark: Any) -> Any:
    """A run begins, reads more and comes to its commit while another one is in the midst of its own."""
    table, told = Table(spark), dict[str, Any]()
    table.land("a", 1)
    first = table.start("first")
    batch = first.read(SCHEMA)
    threads = []

    def begin() -> None:
        table.land("b", 2)
        threads.append(threading.Thread(target=lambda: told.update(second=table.run("second"))))
        threads[0].start()
        table.await_waiting()

    between(begin)
    told["first"] = table.commit(first, batch)
    threads[0].join(WAIT_S)
    told["after both"] = table.held()
    table.drop()
    return told


def write(spark: Any) -> Any:
    """A run has committed and comes to write its mart when another one has committed more, and written."""
    table, oltp = Table(spark), Endpoints.from_environment().oltp
    mart = f"marts.{table.data_set.name}"
    with connect(oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {mart} (k int, d date)")
    runs = []
    for name, key in (("a", 1), ("b", 2)):
        table.land(name, key)
        job = table.start(name)
        runs.append((job, job.read(SCHEMA)))
        table.commit(*runs[-1])
    told: dict[str, Any] = {"later": table.write(*runs[1], mart), "earlier": table.write(*runs[0], mart)}
    with connect(oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT k FROM {mart} ORDER BY k")
        told["rows"] = [k for (k,) in cursor.fetchall()]
        cursor.execute(f"DROP TABLE {mart}")
    table.drop()
    return told


def change(spark: Any) -> Any:
    """Between a run's check of its input and its commit a file is replaced by one of as many lines, and the executors
    that hold the lines of the old one die: they are read again."""
    table = Table(spark)
    table.land("a", 1)
    job = table.start("first")
    batch = job.read(SCHEMA)

    def act() -> None:
        table.land("a", 2)
        spark.catalog.clearCache()

    between(act)
    told: dict[str, Any] = {"first": table.commit(job, batch), "after it": table.held()}
    told["retry"] = table.run("retry")
    told["after the retry"] = table.held()
    table.drop()
    return told


def die_between(spark: Any, name: str) -> None:
    """A run is killed when refused rows are replaced and good ones are not yet."""
    table = Table(spark, name)
    table.land("a", 1)
    table.run("first")
    table.land("b", 2)
    dead = table.start("dead")
    batch = dead.read(SCHEMA)
    between(lambda: os.kill(os.getpid(), signal.SIGKILL))
    table.commit(dead, batch)


def go_on(spark: Any, name: str) -> Any:
    table = Table(spark, name)
    told: dict[str, Any] = {"before": table.held()}
    table.land("c", 3)
    told["retry"] = table.run("retry")
    told["after"] = table.held()
    # the same job may commit once more
    twice = table.start("twice")
    batch = twice.read(SCHEMA)
    told["twice"] = [table.commit(twice, batch), table.commit(twice, batch)]
    table.drop()
    return told
