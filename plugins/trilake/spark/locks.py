"""Locks of Spark jobs: one run at a time replaces a partition, and maintenance does not rewrite tables that jobs use.

A job replaces partitions of two tables: first the quarantine, then the curated table. The two do not commit together.
So a run holds the partition lock while it replaces both. It replaces partitions only if they have not changed since the
run began. The lock ends with the process. If a run dies between the two commits, its quarantined rows are newer than
the curated ones. Then a run that began earlier is refused, and the next run reads all input again and replaces both.

The nightly maintenance replaces files too. The partition lock does not stop it from replacing files that a run has
begun to read. So each run also holds the job lock. It is a shared lock: many jobs can hold it at once. Maintenance
rewrites only tables whose job lock is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trilake.endpoints import Endpoints
from trilake.lake import DataSet, Window
from trilake.lake.catalog import SnapshotNotFoundError, TableNotFoundError, files_of, load_table, open_catalog
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, keep_lock, lock_key, try_lock
from trilake.spark.overwrite import OvertakenError


@contextmanager
def job_lock(endpoints: Endpoints, data_set: DataSet) -> Iterator[None]:
    """Hold a data set's job lock during the block. Other jobs can hold it too; maintenance skips the table.

    Take the lock before you read the table: maintenance can rewrite the table's files until you have the lock.
    """
    waiting = f"Waiting until maintenance has rewritten the files of {data_set.name}"
    with keep_lock(endpoints.lake, LockSpace.JOB, data_set.name, shared=True, waiting=waiting):
        yield


@contextmanager
def try_maintenance_lock(endpoints: Endpoints, table: str) -> Iterator[bool]:
    """Whether no job holds the job lock of a table. If True, no job can take it during the block.

    :param table: as ``namespace.table``.
    """
    with try_lock(endpoints.lake, LockSpace.JOB, table.rpartition(".")[2]) as free:
        yield free


@contextmanager
def partition_lock(
    endpoints: Endpoints, data_set: DataSet, window: Window, run_id: str, base: int | None
) -> Iterator[None]:
    """Wait until no other run replaces this window's partitions. Other runs then wait until the block ends.

    :param base: the snapshot of the data set's table when the run began.
    :raises OvertakenError: another run has changed the window since.
    """
    # One lock per month: with one per day, a window of ten years would need more locks than a server has.
    names = {f"{data_set.name}/{partition[:7]}" for partition in window}
    with connect(endpoints.lake, autocommit=True) as connection, connection.cursor() as cursor:
        for key in sorted(map(lock_key, names)):  # always in the same order, to avoid deadlocks
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (LockSpace.PARTITION, key))
        if _changed(endpoints, data_set, window, base):
            raise OvertakenError(data_set.curated, window, run_id)
        yield


def _changed(endpoints: Endpoints, data_set: DataSet, window: Window, base: int | None) -> bool:
    """Whether the window's files have changed since snapshot `base`.

    Iceberg's validation of an overwrite also finds this, but only after the quarantine table was replaced.
    """
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    try:
        table = load_table(catalog, data_set.curated)
        current = table.current_snapshot()
        if current is None or current.snapshot_id == base:
            return False
        base_files = files_of(table, data_set, window, base) if base is not None else frozenset()
        return base_files != files_of(table, data_set, window, current.snapshot_id)
    except TableNotFoundError:
        return base is not None
    except SnapshotNotFoundError:
        return True
    finally:
        catalog.close()
