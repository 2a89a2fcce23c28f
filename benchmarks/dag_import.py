"""What parsing a DAG file costs over an empty DAG that imports the same official operators.

    python benchmarks/dag_import.py [--runs 9]

CPU milliseconds of the import alone, in a fresh process that has imported and made the empty DAG just before; beside it
what the empty DAG cost in that process. The empty DAG has one asset, because making any asset has Airflow load every
provider's handler of asset addresses (Amazon's brings boto3), and that is not this project's to save.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
EMPTY = """
import airflow.providers.clickhousedb.hooks.clickhouse
import airflow.providers.cncf.kubernetes.operators.spark_kubernetes
import airflow.providers.cncf.kubernetes.triggers.pod
import airflow.providers.common.sql.operators.sql
from airflow.sdk import DAG, Asset
from airflow.timetables.interval import CronDataIntervalTimetable
with DAG("empty", schedule=CronDataIntervalTimetable("@monthly", "UTC")):
    Asset("clickhouse://analytics/empty")
"""


TIMED = """
import time
start = time.process_time()
{empty}
middle = time.process_time()
import {name}
print()
print(middle - start, time.process_time() - middle)
"""


def measure(name: str) -> tuple[float, float]:
    """CPU seconds of the empty DAG, and of the DAG file `name` after it, in a fresh Python."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(empty=EMPTY, name=name)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(PROJECT / folder) for folder in ("plugins", "dags"))},
    )
    empty, ours = done.stdout.split()[-2:]
    return float(empty), float(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    print(f"{'DAG file':<24}{'empty DAG, ms':>15}{'this file over it, ms':>24}{'ratio':>8}")
    for file in sorted(path for path in (PROJECT / "dags").glob("*.py") if path.name != "data_sets.py"):
        measure(file.stem)  # bytecode and page cache
        pairs = [measure(file.stem) for _ in range(runs)]
        empty = statistics.median(pair[0] for pair in pairs)
        ours = statistics.median(pair[1] for pair in pairs)
        print(f"{file.name:<24}{empty * 1000:>15.0f}{ours * 1000:>24.0f}{(empty + ours) / empty:>8.3f}")


if __name__ == "__main__":
    main()
