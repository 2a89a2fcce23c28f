"""Maintenance of the lake: it removes what no one needs, and nothing else."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from pathlib import Path

import pytest

from support import spark_session
from support.kubernetes_api import await_true
from support.running_platform import Platform
from trilake.clickhouse.publication.ledger import Claim, Ledger
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, open_catalog
from trilake.lake.plan import ICEBERG_TABLE
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace
from trilake.spark.locks import job_lock, try_maintenance_lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(spark_session.TIMEOUT_S)]
COMMITS = 6


def test_files_are_brought_together_and_what_no_publication_needs_and_a_killed_job_left_goes(
    platform: Platform,
) -> None:
    name = f"t_{secrets.token_hex(4)}"
    table = f"curated.{name}"
    snapshots, _ = spark_session.run(platform, "support.lake_work:fill", table, str(COMMITS))
    folder = platform.home.data("s3") / "lake/warehouse/curated" / name
    assert folder.is_dir()
    known = files(folder)
    leave_orphans(platform, table, folder, known)
    orphans = files(folder) - known
    assert orphans
    aged, young = days_ago(4), folder / "data" / "just-being-written.parquet"
    for file in known | orphans:  # age alone does not make a file removable
        os.utime(file, (aged, aged))
    young.write_bytes(b"somebody is at it")
    needed = snapshots[2]
    try:
        publish(platform, table, name, needed)
        told, _ = spark_session.run(platform, "support.lake_work:maintain", table, "0", "0")
        # all but what is shown, what the rewrite has just replaced (a job may have begun from it), and what is current
        removed = {"expired": COMMITS + 1 - 3, "orphans": len(orphans), "uploads": 0, "sums": 0}
        assert told[table] == {"rewritten": COMMITS, "left": "", **removed}
        left = files(folder)
        assert not left & orphans
        assert young in left
        looked, _ = spark_session.run(platform, "support.lake_work:look", table, str(needed), str(snapshots[1]))
        assert looked == [list(range(COMMITS)), [0, 1, 2], None]
        # once more: nothing is left to do, and a table that was just written to is left alone
        told, _ = spark_session.run(platform, "support.lake_work:maintain", table, "7", "1")
        young_table = {"rewritten": None, "left": "It was written to a short while ago."}
        assert told[table] == {**young_table, "expired": 0, "orphans": 0, "uploads": 0, "sums": 0}
        assert files(folder) == left
    finally:
        forget(platform, table, name)


@pytest.mark.nightly
def test_no_file_is_rewritten_that_a_job_at_work_began_from_however_long_it_takes(platform: Platform) -> None:
    told, _ = spark_session.run(platform, "support.lake_work:keep_up_beside_a_job")
    assert told["while it is at work"] == [[None, "A job is at work on it."]] * 2
    assert told["the job"] == "committed"
    assert told["when it has ended"] == [[COMMITS + 1, ""], [0, ""]], "beside those, the job's own"


def test_a_job_that_begins_while_files_are_rewritten_waits_and_others_do_not(endpoints: Endpoints) -> None:
    one, other = (DataSet(f"t_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k") for _ in range(2))
    begun = threading.Event()

    def begin() -> None:
        with job_lock(endpoints, one):
            begun.set()

    job = threading.Thread(target=begin)
    with try_maintenance_lock(endpoints, one.quarantine) as free:
        assert free
        with job_lock(endpoints, other), job_lock(endpoints, other):
            job.start()
            assert await_true(lambda: waiting(endpoints))
        assert not begun.is_set()
    job.join(60)
    assert begun.is_set()


def waiting(endpoints: Endpoints) -> int:
    with connect(endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE classid = %s AND NOT granted", (LockSpace.JOB,))
        return int((cursor.fetchone() or [0])[0])


def days_ago(days: float) -> float:
    return time.time() - days * 86_400


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def leave_orphans(platform: Platform, table: str, folder: Path, known: set[Path]) -> None:
    """A job is killed after it wrote a file and before it could commit."""
    hung = spark_session.start(platform, "support.lake_work:write_and_hang", table)
    try:
        await_true(lambda: files(folder) - known, spark_session.TIMEOUT_S - 60)
    finally:
        hung.send_signal(signal.SIGKILL)
        hung.communicate()


def publish(platform: Platform, table: str, name: str, snapshot: int) -> None:
    """The ledger says that ClickHouse shows this snapshot."""
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    uuid = load_table(catalog, table).metadata.table_uuid
    catalog.close()
    ledger = Ledger(platform.endpoints.lake)
    with ledger.attempt("a", name, "r") as held:
        claim = Claim("2013-01", snapshot, 3, {1: 3}, f"{ICEBERG_TABLE} {uuid}")
        ledger.claim(held, [claim])


def forget(platform: Platform, table: str, name: str) -> None:
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        for ledger in ("publications", "publication_attempts"):
            cursor.execute(f"DELETE FROM {ledger} WHERE table_name = %s", (name,))
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    catalog.drop_table(table)
    catalog.close()
