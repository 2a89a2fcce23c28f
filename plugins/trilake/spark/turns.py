"""Runs that replace the same partitions of the lake, one after another: the later one knows, or it is refused.

A job replaces partitions of two tables, the refused rows' first, and they do not commit together. So a run replaces
both in a turn of its own, and only what is as it was before the run looked at its input. A turn is an advisory lock: it
ends with the process. A run that dies in its turn leaves refused rows that are ahead of the good ones; whoever began
before that is refused, and the next run, which reads all of it again, puts both right.

The nightly upkeep replaces files, too, and no turn would keep it from those that a run began from. So a run is known as
at work for as long as it lasts, by a lock that runs share, and the upkeep rewrites what nobody is at work on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake import DataSet, Window
from trilake.lake.catalog import (
    CATALOG,
    RUN_PROPERTY,
    SnapshotNotFoundError,
    TableNotFoundError,
    files_of,
    load_table,
    open_catalog,
)
from trilake.postgres import connect, lock_key, stay_alive, unless_alive

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot
    from pyspark.sql import Column, DataFrame

COMMIT_PROPERTY = "trilake.commit"
# The first half of the advisory locks' keys, beside the ledger's (trilake.clickhouse.ledger).
TURN_LOCKS = 0x7475
WORK_LOCKS = 0x7477


class OvertakenError(TrilakeError):
    """Another run replaced rows of this run's partitions since this one began, or since its commit. That one's stay."""

    def __init__(self, table: str, window: Window, run_id: str) -> None:
        super().__init__(
            f"Another run committed to {table} {window} while run {run_id} was at work.",
            hint="What that one wrote stays, nothing of this one replaced it. Run it again if its input is newer.",
        )


@contextmanager
def at_work(endpoints: Endpoints, data_set: DataSet) -> Iterator[None]:
    """Be known as at work on a data set's tables, beside others, for the length of the block: until it ends nobody
    rewrites their files. To be entered before it is looked what there is; it waits while somebody rewrites them.
    """
    waiting = f"Waiting until the upkeep has rewritten the files of {data_set.name}"
    with stay_alive(endpoints.lake, WORK_LOCKS, data_set.name, shared=True, waiting=waiting):
        yield


@contextmanager
def unless_at_work(endpoints: Endpoints, table: str) -> Iterator[bool]:
    """Whether nobody is `at_work` on a table. If so, nobody gets to it for the length of the block.

    :param table: as ``namespace.table``.
    """
    with unless_alive(endpoints.lake, WORK_LOCKS, table.rpartition(".")[2]) as free:
        yield free


@contextmanager
def turn(endpoints: Endpoints, data_set: DataSet, window: Window, run_id: str, base: int | None) -> Iterator[None]:
    """Wait until no other run replaces this window's partitions, and keep others waiting for the length of the block.

    :param base: the snapshot of the data set's table that the run began from.
    :raises OvertakenError: the window has changed since.
    """
    # by month: ten years of days would be more locks than a server keeps
    names = {f"{data_set.name}/{partition[:7]}" for partition in window}
    with connect(endpoints.lake, autocommit=True) as connection, connection.cursor() as cursor:
        for key in sorted(map(lock_key, names)):  # in one order, so that no two runs wait for each other
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (TURN_LOCKS, key))
        if _changed(endpoints, data_set, window, base):
            raise OvertakenError(data_set.curated, window, run_id)
        yield


def _changed(endpoints: Endpoints, data_set: DataSet, window: Window, base: int | None) -> bool:
    """As Iceberg's own validation of an overwrite finds it, which is too late for what was written before."""
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    try:
        table = load_table(catalog, data_set.curated)
        now = table.current_snapshot()
        if now is None or now.snapshot_id == base:
            return False
        then = files_of(table, data_set, window, base) if base is not None else frozenset()
        return then != files_of(table, data_set, window, now.snapshot_id)
    except TableNotFoundError:
        return base is not None
    except SnapshotNotFoundError:
        return True
    finally:
        catalog.close()


def current_snapshot(endpoints: Endpoints, name: str) -> int | None:
    """Of a table of the lake; None if it has none, or is not there."""
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    try:
        snapshot = load_table(catalog, name).current_snapshot()
    except TableNotFoundError:
        return None
    finally:
        catalog.close()
    return snapshot.snapshot_id if snapshot else None


def replace(
    frame: DataFrame,
    table: str,
    where: Column,
    *,
    window: Window,
    run_id: str,
    token: str,
    base: int | None,
    properties: Mapping[str, str] | None = None,
) -> None:
    """Replace the rows of a table that match `where`, in one snapshot, if they are what they were at snapshot `base`.

    :param table: as ``namespace.table``.
    :param token: of this commit alone: it tells the snapshot (`snapshot_of`).
    :param base: None: there was no snapshot.
    :param properties: of the snapshot, besides run and token.
    :raises OvertakenError: they are not.
    """
    writer = frame.writeTo(f"{CATALOG}.{table}").option("isolation-level", "serializable")
    for key, value in {RUN_PROPERTY: run_id, COMMIT_PROPERTY: token, **(properties or {})}.items():
        writer = writer.option(f"snapshot-property.{key}", value)
    if base is not None:
        writer = writer.option("validate-from-snapshot-id", str(base))
    try:
        # Not `overwritePartitions`: that leaves a partition alone that has no row any more.
        writer.overwrite(where)
    except Exception as e:
        if "org.apache.iceberg.exceptions.ValidationException" not in str(e):
            raise
        raise OvertakenError(table, window, run_id) from e


def snapshot_of(table: Table, token: str) -> Snapshot:
    """The snapshot that `replace` made.

    :raises SnapshotNotFoundError: the table does not have it (any more).
    """
    for snapshot in reversed(table.snapshots()):
        if snapshot.summary and snapshot.summary.additional_properties.get(COMMIT_PROPERTY) == token:
            return snapshot
    raise SnapshotNotFoundError(
        f"{'.'.join(table.name())} has no snapshot of commit {token}.",
        hint="It was committed and has expired since: run the window again. Expire no snapshot of the last days.",
    )
