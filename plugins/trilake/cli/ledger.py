"""What the command line tells of publications and migrations."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import trilake.lake.arrivals
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import Publisher

if TYPE_CHECKING:
    from pathlib import Path

    from trilake.endpoints import Endpoints


def publications(endpoints: Endpoints, *, finish: bool, clean: bool, as_json: bool) -> None:
    """Show the current publication of every partition; first complete or clear up what was left behind."""
    ledger = Ledger(endpoints.lake)
    if finish or clean:
        with Cluster(endpoints.clickhouse, comment={"by": "trilake publications"}) as cluster:
            publisher = Publisher(cluster, ledger)
            if finish:
                for done in publisher.finish():
                    print(f"finished {done.partition} of {done.table}", file=sys.stderr)
            if clean:
                for attempt in publisher.clean():
                    print(f"cleaned up attempt {attempt}", file=sys.stderr)
    rows = [{**asdict(one), "rows": one.total_rows, "by_shard": dict(one.rows)} for one in ledger.publications()]
    columns = (
        "table",
        "partition",
        "state",
        "fence",
        "rows",
        "by_shard",
        "snapshot_id",
        "source",
        "run_id",
        "decided_at",
    )
    _print(columns, rows, as_json=as_json)


def arrivals(endpoints: Endpoints, *, hours: float, again: str, as_json: bool) -> None:
    """Show what a run took in hand longer ago and no job has committed; or have one partition taken anew."""
    if again:
        data_set, _, partition = again.partition("/")
        trilake.lake.arrivals.again(endpoints.lake, data_set, partition)
        print(f"{again} is due again, if files lie there", file=sys.stderr)
        return
    rows = [asdict(one) for one in trilake.lake.arrivals.overdue(endpoints.lake, timedelta(hours=hours))]
    _print(("data_set", "partition", "run", "taken_at"), rows, as_json=as_json)
    if rows:
        print(
            "Clear the run in Airflow. If it is gone, or will never commit: trilake arrivals --again "
            f"{rows[0]['data_set']}/{rows[0]['partition']}",
            file=sys.stderr,
        )


def migrate(endpoints: Endpoints, sql_folder: Path, *, dry_run: bool, wait: int = 0, as_json: bool) -> None:
    """Apply what is not applied yet; or only say what that is.

    :param wait: seconds to wait for ClickHouse's hosts to answer; other hosts than ours may be coming up.
    """
    from trilake.clickhouse.cluster import Cluster
    from trilake.schema import migrations

    if wait:
        # nobody answers: its client would say so twice a second, and not which host it is
        logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
        hosts = " and ".join(map(str, endpoints.clickhouse.shards))
        print(f"waiting for {hosts}, at most {wait} s", file=sys.stderr)
        with Cluster(endpoints.clickhouse.for_questions()) as cluster:
            cluster.await_hosts(wait)
    rows = [
        {"step": planned.step.file, "target": planned.target, "state": planned.state}
        for planned in migrations.migrate(endpoints, sql_folder, dry_run=dry_run)
        if planned.state == "pending" or dry_run
    ]
    if not dry_run:
        for row in rows:
            row["state"] = "applied now"
    _print(("step", "target", "state"), rows, as_json=as_json)


def _print(columns: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{name: row[name] for name in columns} for row in rows], default=str))
        return
    cells = [tuple(columns), *(tuple(str(row[name]) for name in columns) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
