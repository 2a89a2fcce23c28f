"""A job that does what its steps say, on executors and in the driver: for tests of what goes around a job.

["say", TEXT] prints; ["flood", LINES] prints numbered lines, every thousandth a long one; ["rows", ROWS, PARTITIONS,
SECONDS] counts rows in Python on executors, each partition taking that long; ["await", NAME] waits for
s3://artifacts/gates/NAME; ["fail", TEXT] raises; ["kill_executor"] ends an executor's Java as the kernel does.
"""

import argparse
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.sql import SparkSession

from trilake import s3
from trilake.endpoints import Endpoints
from trilake.spark.session import build_session


def count(spark: SparkSession, rows: int, partitions: int, seconds: float) -> dict[str, Any]:
    def work(part: Iterator[int]) -> Iterator[tuple[str, int]]:
        time.sleep(seconds)
        yield socket.gethostname(), sum(1 for _ in part)

    found = spark.sparkContext.parallelize(range(rows), partitions).mapPartitions(work).collect()
    return {"rows": sum(rows for _, rows in found), "executors": sorted({host for host, _ in found})}


def kill_executor(spark: SparkSession) -> None:
    def work(part: Iterator[int]) -> Iterator[int]:
        # this worker's parent is pyspark's daemon, and that one's the executor
        with open(f"/proc/{os.getppid()}/stat") as file:
            os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
        time.sleep(60)
        yield from part

    spark.sparkContext.parallelize([0], 1).mapPartitions(work).count()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("run", "steps", "result"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args(arguments)
    endpoints = Endpoints.from_environment()
    store, result = s3.client(endpoints.s3), {"host": socket.gethostname()}
    spark = build_session(endpoints, "probe")
    for step, *values in json.loads(options.steps):
        if step == "say":
            print(*values, flush=True)
        elif step == "flood":
            for number in range(*values):
                print(f"line {number} " + "x" * (40_000 if number % 1000 == 0 else 40))
        elif step == "rows":
            result |= count(spark, *values)
        elif step == "await":
            print("awaiting", *values, flush=True)
            while not s3.list_keys(store, "artifacts", f"gates/{values[0]}"):
                time.sleep(0.5)
        elif step == "kill_executor":
            kill_executor(spark)
        elif step == "fail":
            raise RuntimeError(*values)
        else:
            raise ValueError(f"no step {step}")
    spark.stop()
    bucket, _, key = options.result.removeprefix("s3://").partition("/")
    store.put_object(Bucket=bucket, Key=key, Body=json.dumps(result).encode())
