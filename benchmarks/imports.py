"""What importing costs over its official parts: each DAG file, and each module of operators, sensors and transfers.

    python benchmarks/imports.py [--rounds 9]

CPU milliseconds, in a fresh process that has imported the official parts just before, and beside it what those cost in
that process. A DAG file's are an empty DAG with the same official operators and one asset (making any asset has Airflow
load every provider's handler of asset addresses; Amazon's brings boto3); a module's are the official class that it
stands on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from platform_of_benchmarks import markdown

PROJECT = Path(__file__).resolve().parents[1]
TITLE = "Importing, over the official parts"
HEADER = ("import", "official parts, ms", "this over them, ms", "ratio")
EMPTY_DAG = """
import airflow.providers.clickhousedb.hooks.clickhouse
import airflow.providers.cncf.kubernetes.operators.spark_kubernetes
import airflow.providers.cncf.kubernetes.triggers.pod
import airflow.providers.common.sql.operators.sql
from airflow.sdk import DAG, Asset
from airflow.timetables.interval import CronDataIntervalTimetable
with DAG("empty", schedule=CronDataIntervalTimetable("@monthly", "UTC")):
    Asset("clickhouse://analytics/empty")
"""
OPERATOR = "from airflow.sdk import DAG, BaseOperator\n"
CLICKHOUSE = OPERATOR + "import airflow.providers.clickhousedb.hooks.clickhouse\n"
SPARK = (
    OPERATOR
    + """
import airflow.providers.cncf.kubernetes.hooks.kubernetes
import airflow.providers.cncf.kubernetes.operators.spark_kubernetes
import airflow.providers.cncf.kubernetes.triggers.pod
"""
)
SENSOR = OPERATOR + "from airflow.sdk import BaseSensorOperator\n"

# A collection takes 100 ms, and falls where it falls.
TIMED = """
import gc, time
gc.disable()
start = time.process_time()
{official}
middle = time.process_time()
import {name}
print()
print(middle - start, time.process_time() - middle)
"""


def official_parts(name: str) -> str:
    """What a module of ours stands on."""
    if "spark" in name:
        return SPARK
    if "sensors" in name:
        return SENSOR + CLICKHOUSE
    return CLICKHOUSE if "clickhouse" in name else OPERATOR


def measure(name: str, official: str) -> tuple[float, float]:
    """CPU seconds of the official parts, and of module `name` after them, in a fresh Python."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(official=official, name=name)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(PROJECT / folder) for folder in ("plugins", "dags"))},
    )
    before, ours = done.stdout.split()[-2:]
    return float(before), float(ours)


def table(rounds: int) -> str:
    """The results as Markdown."""
    dags = {path.stem: EMPTY_DAG for path in sorted((PROJECT / "dags").glob("*.py"))}
    modules = {
        name: official_parts(name)
        for folder in ("operators", "sensors", "transfers")
        for path in sorted((PROJECT / "plugins" / "trilake" / folder).glob("[!_]*.py"))
        for name in [f"trilake.{folder}.{path.stem}"]
    }
    lines = []
    for name, official in {**dags, **modules}.items():
        measure(name, official)  # bytecode and page cache
        pairs = [measure(name, official) for _ in range(rounds)]
        before, ours = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
        shown = f"dags/{name}.py" if name in dags else name
        lines.append((shown, f"{before:,.0f}", f"{ours:.0f}", f"{(before + ours) / before:.3f} x"))
    return markdown(HEADER, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    print(table(parser.parse_args().rounds))
