"""The Iceberg catalog through PyIceberg: what a snapshot holds, partition by partition and file by file.

No Spark here. The catalog lies in PostgreSQL (the JDBC catalog that Spark writes too), data and metadata in
``s3://lake/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.errors import TrilakeError, UnreachableError
from trilake.lake.data_set import LAKE_BUCKET, WAREHOUSE, WHOLE, DataSet
from trilake.lake.plan import ICEBERG_TABLE, DataFile, LoadPlan, PartitionPlan
from trilake.lake.window import Grain, partition_name

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot
    from sqlalchemy.engine import ExceptionContext

CATALOG = "lake"
# Properties of a snapshot that Trilake writes, and reads back
RUN_PROPERTY = "trilake.run"
COUNTS_PROPERTY = "trilake.counts"


class TableNotFoundError(TrilakeError):
    """The data set has no Iceberg table yet."""


class SnapshotNotFoundError(TrilakeError):
    """The table does not have that snapshot (any more)."""


class UnpublishableSnapshotError(TrilakeError):
    """The snapshot holds something that cannot be pulled file by file."""


def open_catalog(lake: PostgresEndpoint, s3: S3Endpoint) -> SqlCatalog:
    """The catalog that Spark calls ``lake``; `close()` gives its connections back.

    :raises UnreachableError: PostgreSQL does not answer; so do the catalog's methods.
    """
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.event import listen
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    # Arrow's S3 client streams uploads with a checksum behind them unless told otherwise, which not every store knows
    # (S3Proxy answers 400). It reads this from the environment alone; the ETag is checked all the same.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    properties = {
        "uri": lake.uri,
        "warehouse": WAREHOUSE,
        "init_catalog_tables": "true",
        "s3.endpoint": s3.url,
        "s3.access-key-id": s3.access_key_id,
        "s3.secret-access-key": s3.secret_access_key,
        "s3.region": s3.region,
        "s3.force-virtual-addressing": "false",
    }
    try:
        try:
            catalog = SqlCatalog(CATALOG, **properties)
        except (IntegrityError, ProgrammingError):
            # the first time ever its tables are made, and another process made them at the same moment: now they are
            catalog = SqlCatalog(CATALOG, **properties)
    except OperationalError as e:
        raise _unreachable(lake, e) from None

    def named(context: ExceptionContext) -> None:
        if context.is_disconnect or context.connection is None:
            raise _unreachable(lake, context.original_exception) from None

    listen(catalog.engine, "handle_error", named)
    return catalog


def _unreachable(lake: PostgresEndpoint, error: BaseException) -> UnreachableError:
    """The catalog's connection as an error that names it. SQLAlchemy's quotes the statement, and names no database."""
    said = next(iter(str(getattr(error, "orig", error)).splitlines()), type(error).__name__)
    return UnreachableError(
        f"The Iceberg catalog, PostgreSQL database {lake.database} ({lake.host}:{lake.port}): {said}."
    )


def ensure_namespace(catalog: SqlCatalog, namespace: str) -> None:
    """Make a namespace unless it is there, though another process makes it at the same moment."""
    from pyiceberg.exceptions import NamespaceAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    try:
        catalog.create_namespace(namespace)
    except NamespaceAlreadyExistsError:
        pass
    except IntegrityError:
        # PyIceberg looks first and inserts then: it was made in between
        if not catalog.namespace_exists(namespace):
            raise


@contextmanager
def naming_store(properties: Mapping[str, str], table: str) -> Iterator[None]:
    """Within the block files of an Iceberg table are read or written.

    :param properties: of the catalog, or of the table's files.
    :raises UnreachableError: the store fails, or does not answer: Arrow says so by an OSError that does not name it.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as e:
        said = next(iter(str(e).splitlines()), type(e).__name__)
        raise UnreachableError(
            f"S3 ({properties.get('s3.endpoint')}), Iceberg table {table}: {said.rstrip('.')}."
        ) from None


def load_table(catalog: SqlCatalog, identifier: str) -> Table:
    """:raises TableNotFoundError: nothing was ever committed to it.
    :raises UnreachableError: the catalog or the store does not answer.
    """
    from pyiceberg.exceptions import NoSuchTableError

    try:
        with naming_store(catalog.properties, identifier):
            return catalog.load_table(identifier)
    except NoSuchTableError:
        raise TableNotFoundError(
            f"The Iceberg table {identifier} does not exist.", hint="Run the data set's job first: it creates it."
        ) from None


def snapshot_summary(table: Table, snapshot_id: int) -> Mapping[str, str]:
    """The snapshot's properties: Iceberg's own counts, and what the job wrote beside them."""
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None or snapshot.summary is None:
        raise _no_snapshot(table, snapshot_id)
    return snapshot.summary.additional_properties


def sequence_number(table: Table, snapshot_id: int) -> int:
    """Iceberg's number of a snapshot; a larger one is a later snapshot of the same table.

    :raises SnapshotNotFoundError: no such snapshot.
    """
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise _no_snapshot(table, snapshot_id)
    return snapshot.sequence_number or 0


def _no_snapshot(table: Table, snapshot_id: int) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        f"{_name(table)} has no snapshot {snapshot_id}.",
        hint="It may have expired: run the task that commits again, and go on from what it commits.",
    )


def plan(table: Table, data_set: DataSet, partitions: Iterable[str], snapshot_id: int | None = None) -> LoadPlan:
    """The files of `partitions` at a snapshot (the current one by default), with their record counts.

    A partition without a file is part of the plan: it is empty, and publishing it empties it.

    :raises SnapshotNotFoundError: no such snapshot.
    :raises UnpublishableSnapshotError: delete files, a null bucket, or another partition layout.
    :raises UnreachableError: the store does not answer.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None and snapshot_id is not None:
        raise _no_snapshot(table, snapshot_id)
    if snapshot is None:
        raise SnapshotNotFoundError(
            f"{_name(table)} has no snapshot at all.", hint="Run the data set's job first: it commits one."
        )
    wanted = [WHOLE] if data_set.grain is None else sorted(set(partitions))
    buckets = _buckets(table, data_set)
    files: dict[str, list[DataFile]] = {partition: [] for partition in wanted}
    # No row filter: a month is read off each file's own partition record, which is exact; listing is from
    # manifests, and Iceberg prunes those by the same records.
    scan = table.scan(row_filter=_filter(data_set, wanted), snapshot_id=snapshot.snapshot_id)
    with naming_store(table.io.properties, _name(table)):
        tasks = list(scan.plan_files())
    for task in tasks:
        partition, file = _data_file(table, data_set, task)
        if partition in files:
            files[partition].append(file)
    return LoadPlan(
        data_set=data_set,
        snapshot_id=snapshot.snapshot_id,
        sequence_number=snapshot.sequence_number or 0,
        buckets=buckets,
        partitions=tuple(
            PartitionPlan(partition, tuple(sorted(files[partition], key=lambda file: file.key))) for partition in wanted
        ),
        source=f"{ICEBERG_TABLE} {table.metadata.table_uuid}",
        types={column.name: str(column.field_type) for column in _schema_at(table, snapshot).fields},
    )


def files_of(table: Table, data_set: DataSet, partitions: Iterable[str], snapshot_id: int) -> frozenset[str]:
    """The paths of the files that `partitions` consist of at a snapshot: others, if anybody has changed them.

    :raises SnapshotNotFoundError: no such snapshot.
    :raises UnreachableError: the store does not answer.
    """
    snapshot_summary(table, snapshot_id)
    scan = table.scan(row_filter=_filter(data_set, sorted(partitions)), snapshot_id=snapshot_id)
    with naming_store(table.io.properties, _name(table)):
        return frozenset(file.file_path for task in scan.plan_files() for file in (task.file, *task.delete_files))


def _schema_at(table: Table, snapshot: Snapshot) -> Schema:
    schemas = table.schemas()
    return schemas.get(snapshot.schema_id, table.schema()) if snapshot.schema_id is not None else table.schema()


def _name(table: Table) -> str:
    return ".".join(table.name())


def _filter(data_set: DataSet, partitions: list[str]) -> str:
    if data_set.grain is None or data_set.date is None or not partitions:
        return "true"
    window = data_set.window(partitions[0], partitions[-1])
    return f"{data_set.date} >= '{window.start.isoformat()}' AND {data_set.date} < '{window.stop.isoformat()}'"


def _buckets(table: Table, data_set: DataSet) -> int | None:
    from pyiceberg.transforms import BucketTransform

    if data_set.grain is None:
        return None
    schema = table.schema()
    fields = [(schema.find_column_name(field.source_id), field.transform) for field in table.spec().fields]
    if (
        len(fields) != 2
        or (fields[0][0], str(fields[0][1])) != (data_set.date, data_set.grain)
        or fields[1][0] != data_set.shard_by
        or not isinstance(fields[1][1], BucketTransform)
    ):
        found = ", ".join(f"{transform}({column})" for column, transform in fields) or "nothing"
        raise UnpublishableSnapshotError(
            f"{_name(table)} is partitioned by {found}, and not by {data_set.grain}({data_set.date}), "
            f"bucket[shards]({data_set.shard_by}).",
            hint="It was not made by this data set's job, or the data set was declared anew: rewrite the table.",
        )
    return int(fields[1][1].num_buckets)


def _data_file(table: Table, data_set: DataSet, task: FileScanTask) -> tuple[str, DataFile]:
    file = task.file
    if task.delete_files:
        raise UnpublishableSnapshotError(
            f"{file.file_path} has delete files.", hint="Compact the table (rewrite_data_files) and publish again."
        )
    prefix = f"://{LAKE_BUCKET}/"
    _, found, key = file.file_path.partition(prefix)
    if not found:
        raise UnpublishableSnapshotError(f"{file.file_path} does not lie in bucket {LAKE_BUCKET}.")
    if data_set.grain is None:
        return WHOLE, DataFile(key, file.record_count, file.file_size_in_bytes, None)
    if file.spec_id != table.spec().spec_id:
        raise UnpublishableSnapshotError(
            f"{file.file_path} was written under another partition layout.", hint="Rewrite that partition first."
        )
    when, bucket = file.partition[0], file.partition[1]
    if when is None or bucket is None:
        raise UnpublishableSnapshotError(
            f"{file.file_path} holds rows without {data_set.date} or {data_set.shard_by}.",
            hint="Make both columns required.",
        )
    return _partition_of(data_set.grain, when), DataFile(key, file.record_count, file.file_size_in_bytes, int(bucket))


def _partition_of(grain: Grain, value: Any) -> str:
    """Iceberg counts months and days from 1970; PyIceberg gives days as dates."""
    if isinstance(value, date):
        return partition_name(grain, value)
    if grain == "month":
        return partition_name(grain, date(1970 + value // 12, value % 12 + 1, 1))
    return partition_name(grain, date(1970, 1, 1) + timedelta(days=value))
