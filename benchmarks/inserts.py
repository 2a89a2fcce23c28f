"""Writing rows through ClickHouseHook, against the official hook on the same server.

    python benchmarks/inserts.py [--rows 1000000] [--official-rows 2000] [--rounds 3]

Needs a running platform. The official insert_rows sends one INSERT a row: it is given fewer rows, and compared in rows
a second. The official hook has no insert_df; what it offers for a frame is bulk_insert_rows of the frame's rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook as OfficialHook
from platform_of_benchmarks import endpoints, markdown

from trilake.hooks.clickhouse import ClickHouseHook

TITLE = "Inserting through the hook, against the official hook"
HEADER = ("ours", "official", "rows", "ours, rows/s", "official, rows/s", "ratio")
TABLE = "benchmark_inserts"
COLUMNS = ["id", "at", "name", "value", "flag"]
SECOND = 10**9


def some_rows(count: int) -> Iterator[tuple[Any, ...]]:
    from datetime import UTC, datetime, timedelta

    start = datetime(2013, 1, 1, tzinfo=UTC)
    for number in range(count):
        yield number, start + timedelta(seconds=number), f"station {number % 100}", number / 3, number % 2 == 0


def frame(count: int) -> Any:
    import pandas

    found = pandas.DataFrame(some_rows(count), columns=COLUMNS)
    return found.astype({"id": "int64", "value": "float64"})


def rate(hook: OfficialHook, count: int, work: Callable[[], object]) -> float:
    """Rows a second of `work`, which puts `count` rows into the empty table."""
    with closing(hook.get_client()) as client:
        client.command(f"TRUNCATE TABLE {TABLE} SYNC")
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        held = client.command(f"SELECT count() FROM {TABLE}")
    assert held == count, f"{held} rows instead of {count}"
    return count / seconds


def table(rows: int, official_rows: int, rounds: int) -> str:
    """The results as Markdown."""
    shard = endpoints().clickhouse.shards[0]
    document = json.loads(os.environ["AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT"])
    document |= {"host": shard.host, "port": shard.port, "schema": shard.database}
    os.environ["AIRFLOW_CONN_BENCHMARK"] = json.dumps(document)
    os.environ["AIRFLOW_CONN_BENCHMARK_OFFICIAL"] = json.dumps(document | {"conn_type": "clickhouse", "extra": {}})
    ours, official = ClickHouseHook("benchmark"), OfficialHook("benchmark_official")
    many, few, df = list(some_rows(rows)), list(some_rows(official_rows)), frame(rows)

    def by_rows() -> None:
        official.bulk_insert_rows(TABLE, list(df.itertuples(index=False, name=None)), COLUMNS)

    pairs = {
        ("insert_rows", "insert_rows"): (
            (ours, rows, lambda: ours.insert_rows(TABLE, many, COLUMNS)),
            (official, official_rows, lambda: official.insert_rows(TABLE, few, COLUMNS)),
        ),
        ("insert_rows", "bulk_insert_rows"): (
            (ours, rows, lambda: ours.insert_rows(TABLE, many, COLUMNS)),
            (official, rows, lambda: official.bulk_insert_rows(TABLE, many, COLUMNS)),
        ),
        ("insert_df", "bulk_insert_rows of its rows"): (
            (ours, rows, lambda: ours.insert_df(TABLE, df)),
            (official, rows, by_rows),
        ),
    }
    kinds = "id Int64, at DateTime64(6, 'UTC'), name LowCardinality(String), value Float64, flag Bool"
    with closing(ours.get_client()) as client:
        client.command(f"CREATE OR REPLACE TABLE {TABLE} ({kinds}) ENGINE = MergeTree ORDER BY id")
    try:
        lines = []
        for names, (mine, theirs) in pairs.items():
            figures = [(rate(*mine), rate(*theirs)) for _ in range(rounds)]
            ratio = statistics.median(a / b for a, b in figures)
            fast, slow = (statistics.median(column) for column in zip(*figures, strict=True))
            counts = f"{mine[1]:,} / {theirs[1]:,}"
            lines.append((*names, counts, f"{fast:,.0f}", f"{slow:,.0f}", f"{ratio:.1f} x"))
        return markdown(HEADER, lines)
    finally:
        with closing(ours.get_client()) as client:
            client.command(f"DROP TABLE IF EXISTS {TABLE} SYNC")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--official-rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(table(arguments.rows, arguments.official_rows, arguments.rounds))
