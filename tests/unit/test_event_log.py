"""An event log's lines summed up; a line that is cut off at its end does not fail it."""

from __future__ import annotations

import json

from trilake.spark.event_log import SparkMetrics, summarise


def task_end(*, failed: bool = False, **metrics: object) -> bytes:
    event = {"Event": "SparkListenerTaskEnd", "Stage ID": 0, "Task Info": {"Failed": failed}, "Task Metrics": metrics}
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


DONE = task_end(
    **{
        "Executor Run Time": 1500,
        "Executor CPU Time": 1_200_000_000,
        "JVM GC Time": 20,
        "Disk Bytes Spilled": 7,
        "Input Metrics": {"Bytes Read": 100, "Records Read": 10},
        "Output Metrics": {"Bytes Written": 50, "Records Written": 9},
        "Shuffle Read Metrics": {"Remote Bytes Read": 3, "Local Bytes Read": 4},
        "Shuffle Write Metrics": {"Shuffle Bytes Written": 5},
    }
)


def test_tasks_are_summed() -> None:
    other = b'{"Event":"SparkListenerJobStart","Job ID":0}\n'
    assert summarise([other, DONE, DONE, other]) == SparkMetrics(
        tasks=2,
        read_rows=20,
        read_bytes=200,
        written_rows=18,
        written_bytes=100,
        shuffle_read_bytes=14,
        shuffle_written_bytes=10,
        spilled_bytes=14,
        run_seconds=3.0,
        cpu_seconds=2.4,
        gc_seconds=0.04,
    )


def test_a_failed_task_without_metrics_is_counted() -> None:
    lost = b'{"Event":"SparkListenerTaskEnd","Task Info":{"Failed":true}}\n'
    assert summarise([lost]) == SparkMetrics(tasks=1, failed_tasks=1)


def test_a_line_that_is_cut_off_is_left_out() -> None:
    assert summarise([DONE, DONE[:200]]).tasks == 1
