"""Reads the metrics of a Spark application from its event log in S3: rows, bytes, shuffle and seconds.

Spark writes one event per line as JSON. `SparkListenerTaskEnd` has a task's metrics, see Spark's "Monitoring and
Instrumentation". The file exists once the application has stopped its session.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trilake.lake.data_set import EVENTS_BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

EVENT_LOG = f"s3a://{EVENTS_BUCKET}/"
# One compressed file for each application, as `read` expects it.
EVENT_LOG_CONF = {
    "spark.eventLog.dir": EVENT_LOG,
    "spark.eventLog.rolling.enabled": "false",
    "spark.eventLog.compress": "true",
    "spark.eventLog.compression.codec": "zstd",
}
SUFFIX = ".zstd"
_TASK_END = b'"Event":"SparkListenerTaskEnd"'


@dataclass(frozen=True)
class SparkMetrics:
    """Sums over all tasks, including tasks that failed or ran twice. So they measure the work, not the result's rows.

    Bytes are bytes in storage or on the network. Seconds are added up over executors that work in parallel.
    """

    tasks: int = 0
    failed_tasks: int = 0
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    shuffle_read_bytes: int = 0
    shuffle_written_bytes: int = 0
    spilled_bytes: int = 0
    run_seconds: float = 0.0
    cpu_seconds: float = 0.0
    gc_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(client: S3Client, application_id: str) -> SparkMetrics | None:
    """The metrics of an application that has ended; None if it has no log.

    :param application_id: Spark's id of the application, as the driver has it.
    """
    import pyarrow

    try:
        body = client.get_object(Bucket=EVENTS_BUCKET, Key=f"{application_id}{SUFFIX}")["Body"]
    except client.exceptions.NoSuchKey:
        return None
    with pyarrow.CompressedInputStream(pyarrow.PythonFile(body, mode="r"), "zstd") as stream:
        return summarise(io.BufferedReader(stream))


def summarise(lines: Iterable[bytes]) -> SparkMetrics:
    """The sums of an event log's lines. An incomplete last line is ignored."""
    totals: dict[str, Any] = dict.fromkeys((*SparkMetrics.__dataclass_fields__, "cpu_ns", "run_ms", "gc_ms"), 0)
    for line in lines:
        if _TASK_END not in line[:64]:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        totals["tasks"] += 1
        totals["failed_tasks"] += bool(event["Task Info"].get("Failed"))
        metrics = event.get("Task Metrics") or {}
        read, written = metrics.get("Input Metrics") or {}, metrics.get("Output Metrics") or {}
        shuffle_read = metrics.get("Shuffle Read Metrics") or {}
        shuffle_written = metrics.get("Shuffle Write Metrics") or {}
        for name, value in {
            "read_rows": read.get("Records Read"),
            "read_bytes": read.get("Bytes Read"),
            "written_rows": written.get("Records Written"),
            "written_bytes": written.get("Bytes Written"),
            "shuffle_written_bytes": shuffle_written.get("Shuffle Bytes Written"),
            "spilled_bytes": metrics.get("Disk Bytes Spilled"),
            "cpu_ns": metrics.get("Executor CPU Time"),
            "run_ms": metrics.get("Executor Run Time"),
            "gc_ms": metrics.get("JVM GC Time"),
        }.items():
            totals[name] += value or 0
        totals["shuffle_read_bytes"] += shuffle_read.get("Remote Bytes Read", 0)
        totals["shuffle_read_bytes"] += shuffle_read.get("Local Bytes Read", 0)
    cpu, run, gc = (totals.pop(name) for name in ("cpu_ns", "run_ms", "gc_ms"))
    return SparkMetrics(
        **{**totals, "run_seconds": run / 1e3, "cpu_seconds": round(cpu / 1e9, 3), "gc_seconds": gc / 1e3}
    )
