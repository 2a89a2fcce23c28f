"""Maintenance of the lake's tables by Iceberg's own procedures, while jobs and publications run.

For each table, in this order: it rewrites small files into larger ones, expires snapshots that are no longer needed,
and removes files that belong to no snapshot. Each step may be killed and repeated at any time:

- A rewrite replaces files and changes no row. If it and a job's commit change the same files, Iceberg refuses the later
  one. So maintenance skips the rewrite of a table that a job uses (`trilake.spark.locks.job_lock`), or that was written
  to a short time ago. A job that starts during a rewrite waits.
- A snapshot stays while it is current, while it was current a short time ago (a running job may have started from it),
  and while a partition of ClickHouse shows it or is about to show it.
- Files without a snapshot may belong to a running job. So they are removed only when they are older than the longest
  run of a job. The same applies to incomplete uploads: a store does not list them as objects, but keeps their parts.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake.catalog import CATALOG, load_table, open_catalog
from trilake.lake.column_sums import SUMS_PROPERTY, prefix_of
from trilake.lake.data_set import LAKE_BUCKET
from trilake.lake.plan import ICEBERG_TABLE
from trilake.s3 import abort_uploads, client, remove, split_uri
from trilake.spark.locks import try_maintenance_lock
from trilake.spark.result import write_result
from trilake.spark.session import build_session

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

SNAPSHOTS_STAY = timedelta(days=7)
# Longer than a job may run (the operator's `LONGEST_RUN_SECONDS`: two days). Iceberg refuses less than a day.
ORPHANS_STAY = timedelta(days=3)
QUIET = timedelta(hours=1)
# A partition is rewritten if it has at least this many small files. Fewer files do not slow readers down enough.
MIN_FILES = 5
_CONFLICTS = ("ValidationException", "CommitFailedException", "CommitStateUnknownException")


class MaintenanceError(TrilakeError):
    """Maintenance failed for some tables. All other tables were done."""


@dataclass(frozen=True)
class TableMaintenance:
    """What was done to one table.

    :param rewritten: number of data files that were replaced by larger ones; None: the rewrite was skipped.
    :param left: why the rewrite was skipped.
    :param expired: number of expired snapshots. Files that no other snapshot has were removed with them.
    :param orphans: number of removed files that belonged to no snapshot.
    :param uploads: number of aborted multipart uploads that were never completed.
    :param sums: number of removed objects with sums (`trilake.lake.column_sums`) that no snapshot names any more.
    """

    rewritten: int | None = 0
    left: str = ""
    expired: int = 0
    orphans: int = 0
    uploads: int = 0
    sums: int = 0


def keep_up(
    spark: SparkSession,
    endpoints: Endpoints,
    *,
    snapshots_stay: timedelta = SNAPSHOTS_STAY,
    orphans_stay: timedelta = ORPHANS_STAY,
    quiet: timedelta = QUIET,
    tables: Iterable[str] | None = None,
) -> dict[str, TableMaintenance]:
    """Maintains tables, by default all tables of the catalog. Returns what was done, by table.

    :param tables: such as ``curated.flights``.
    :raises MaintenanceError: some tables failed. It names them all; the other tables were done.
    """
    catalog, ledger = open_catalog(endpoints.lake, endpoints.s3), Ledger(endpoints.lake)
    done, failed = {}, {}
    try:
        names = [
            ".".join(identifier)
            for (namespace,) in catalog.list_namespaces()
            for identifier in catalog.list_tables(namespace)
        ]
        for name in sorted(names if tables is None else tables):
            try:
                now = datetime.now(UTC)
                rewritten, left = None, "It was written to a short while ago."
                if now - _written(load_table(catalog, name)) > quiet:
                    rewritten, left = _rewrite(spark, endpoints, name)
                # Load the table again: the snapshot of the rewrite is the current one now.
                old = expirable(load_table(catalog, name), ledger.publications(), now - snapshots_stay)
                left_before = now - orphans_stay
                done[name] = TableMaintenance(
                    rewritten,
                    left,
                    _expire(spark, name, old),
                    _remove_orphans(spark, name, left_before),
                    _abort_uploads(endpoints, load_table(catalog, name), left_before),
                    _remove_sums(endpoints, load_table(catalog, name), left_before),
                )
            except Exception as e:  # a table that fails must not stop the others
                log.warning("The maintenance of %s failed", name, exc_info=True)
                failed[name] = f"{type(e).__name__}: {str(e).splitlines()[0][:300]}"
            else:
                log.warning("%s: %s", name, done[name])
    finally:
        catalog.close()
    if failed:
        raise MaintenanceError(
            "Maintenance failed for " + "; ".join(f"{name} ({why})" for name, why in failed.items()) + ".",
            hint=f"{len(done)} other tables were done. The job's log has the tracebacks.",
        )
    return done


def expirable(table: Table, publications: Iterable[Publication], before: datetime) -> list[int]:
    """The snapshots that nobody needs: they were replaced before `before`, and no publication uses them.

    The age counts from the time when the next snapshot replaced this one. A snapshot may have been current for weeks
    when a job that still runs started from it.

    :param publications: all publications of the ledger, or only those of this table.
    """
    source = f"{ICEBERG_TABLE} {table.metadata.table_uuid}"
    latest: dict[tuple[str, str], Publication] = {}
    for publication in publications:
        place = publication.table, publication.partition
        if place not in latest or publication.fence > latest[place].fence:
            latest[place] = publication
    # Old ledger rows do not name their Iceberg table. Their snapshots stay, because they may belong to this table.
    needed = {p.snapshot_id for p in latest.values() if p.source in (source, ICEBERG_TABLE)}
    needed |= {reference.snapshot_id for reference in table.refs().values()}
    before_ms = before.timestamp() * 1000
    by_age = sorted(table.snapshots(), key=lambda snapshot: snapshot.timestamp_ms)
    return [
        snapshot.snapshot_id
        for snapshot, following in pairwise(by_age)
        if following.timestamp_ms < before_ms and snapshot.snapshot_id not in needed
    ]


def _written(table: Table) -> datetime:
    snapshot = table.current_snapshot()
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000 if snapshot else 0, UTC)


def _call(spark: SparkSession, procedure: str, name: str, arguments: str) -> list[Any]:
    return spark.sql(f"CALL {CATALOG}.system.{procedure}(table => '{name}', {arguments})").collect()


def _rewrite(spark: SparkSession, endpoints: Endpoints, name: str) -> tuple[int | None, str]:
    """How many files were rewritten, or None and the reason."""
    with try_maintenance_lock(endpoints, name) as free:
        if not free:
            return None, "A job is at work on it."
        try:
            (row,) = _call(spark, "rewrite_data_files", name, f"options => map('min-input-files', '{MIN_FILES}')")
        except Exception as e:
            if not any(conflict in str(e) for conflict in _CONFLICTS):
                raise
            return None, "It was written to while its files were rewritten."
    return int(row["rewritten_data_files_count"]), ""


def _expire(spark: SparkSession, name: str, snapshots: Sequence[int]) -> int:
    """Expires exactly these snapshots. The old timestamp prevents that Iceberg expires others by age."""
    if snapshots:
        ids = ", ".join(f"{snapshot}L" for snapshot in snapshots)
        _call(spark, "expire_snapshots", name, f"older_than => TIMESTAMP '1970-01-02', snapshot_ids => array({ids})")
    return len(snapshots)


def _remove_orphans(spark: SparkSession, name: str, before: datetime) -> int:
    return len(_call(spark, "remove_orphan_files", name, f"older_than => TIMESTAMP '{before:%Y-%m-%d %H:%M:%S}'"))


def _abort_uploads(endpoints: Endpoints, table: Table, before: datetime) -> int:
    bucket, key = split_uri(table.location())
    return abort_uploads(client(endpoints.s3), bucket, key.strip("/") + "/", before=before)


def _remove_sums(endpoints: Endpoints, table: Table, before: datetime) -> int:
    """Removes the objects with sums that no snapshot names and that were written before `before`."""
    store = client(endpoints.s3)
    named = {
        snapshot.summary.additional_properties.get(SUMS_PROPERTY) for snapshot in table.snapshots() if snapshot.summary
    }
    pages = store.get_paginator("list_objects_v2").paginate(
        Bucket=LAKE_BUCKET, Prefix=prefix_of(".".join(table.name()))
    )
    old = [
        item["Key"]
        for page in pages
        for item in page.get("Contents", ())
        if item["Key"] not in named and item["LastModified"] < before
    ]
    remove(store, LAKE_BUCKET, old)
    return len(old)


def main(arguments: Sequence[str]) -> Mapping[str, TableMaintenance]:
    """The maintenance job. Its result (see `write_result`) has a `TableMaintenance` for each table in ``tables``."""
    parser = argparse.ArgumentParser(description="Maintenance of the lake's tables")
    parser.add_argument("--snapshot-days", type=float, default=SNAPSHOTS_STAY.days, help="how long snapshots stay")
    parser.add_argument("--run", default="by hand", help="name of the run")
    parser.add_argument("--result", default="", help="s3:// address for the job's result, as JSON")
    options = parser.parse_args(list(arguments))
    endpoints = Endpoints.from_environment()
    spark = build_session(endpoints, "lake maintenance")
    try:
        done = keep_up(spark, endpoints, snapshots_stay=timedelta(days=options.snapshot_days))
        if options.result:
            write_result(endpoints, options.result, {"tables": {name: asdict(table) for name, table in done.items()}})
        return done
    finally:
        spark.stop()
