"""Which snapshots expire, on a catalog in memory."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog.memory import InMemoryCatalog

from trilake.spark.maintenance import expirable


def test_a_snapshot_that_was_current_a_short_while_ago_stays_however_old_it_is(tmp_path: Path) -> None:
    catalog = InMemoryCatalog("c", warehouse=tmp_path.as_uri())
    catalog.create_namespace("curated")
    rows = pa.table({"k": [1]})
    table = catalog.create_table("curated.t", rows.schema)
    for _ in range(4):
        table.append(rows)
        time.sleep(0.005)  # their moments are of milliseconds
    first, second, third, current = table.snapshots()

    def expires(before: int) -> list[int]:
        return expirable(table, [], datetime.fromtimestamp(before / 1000, UTC))

    assert expires(second.timestamp_ms) == []
    assert expires(third.timestamp_ms) == [first.snapshot_id], "a job may have begun from the second one"
    all_but_it = [first.snapshot_id, second.snapshot_id, third.snapshot_id]
    assert expires(current.timestamp_ms + timedelta(days=30) // timedelta(milliseconds=1)) == all_but_it
