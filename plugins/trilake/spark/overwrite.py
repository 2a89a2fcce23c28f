"""Replaces partitions of an Iceberg table in one snapshot, if no other run has changed them in the meantime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake import Window
from trilake.lake.catalog import (
    CATALOG,
    RUN_PROPERTY,
    SnapshotNotFoundError,
    TableNotFoundError,
    load_table,
    open_catalog,
)

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot
    from pyspark.sql import Column, DataFrame

COMMIT_PROPERTY = "trilake.commit"


class OvertakenError(TrilakeError):
    """Another run committed to this run's partitions since this run began, or since its commit. Those rows stay."""

    def __init__(self, table: str, window: Window, run_id: str) -> None:
        super().__init__(
            f"Another run committed to {table} {window} during run {run_id}.",
            hint="The rows of the other run stay. This run replaced nothing. If its input is newer, run it again.",
        )


def current_snapshot(endpoints: Endpoints, name: str) -> int | None:
    """The id of a lake table's current snapshot. None if the table has no snapshot or does not exist."""
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
    """Replace the rows of a table that match `where`, in one snapshot, if they have not changed since snapshot `base`.

    :param table: as ``namespace.table``.
    :param token: a unique token of this commit. `snapshot_of` finds the snapshot by it.
    :param base: None: the table had no snapshot.
    :param properties: more properties of the snapshot, besides run and token.
    :raises OvertakenError: the rows have changed.
    """
    writer = frame.writeTo(f"{CATALOG}.{table}").option("isolation-level", "serializable")
    for key, value in {RUN_PROPERTY: run_id, COMMIT_PROPERTY: token, **(properties or {})}.items():
        writer = writer.option(f"snapshot-property.{key}", value)
    if base is not None:
        writer = writer.option("validate-from-snapshot-id", str(base))
    try:
        # Not `overwritePartitions`: it does not replace a partition for which the frame has no row.
        writer.overwrite(where)
    except Exception as e:
        if "org.apache.iceberg.exceptions.ValidationException" not in str(e):
            raise
        raise OvertakenError(table, window, run_id) from e


def snapshot_of(table: Table, token: str) -> Snapshot:
    """The snapshot that `replace` committed.

    :raises SnapshotNotFoundError: the table does not have the snapshot, or no longer has it.
    """
    for snapshot in reversed(table.snapshots()):
        if snapshot.summary and snapshot.summary.additional_properties.get(COMMIT_PROPERTY) == token:
            return snapshot
    raise SnapshotNotFoundError(
        f"{'.'.join(table.name())} has no snapshot of commit {token}.",
        hint="It was committed, but it has expired. Run the window again. Do not expire snapshots of the last days.",
    )
