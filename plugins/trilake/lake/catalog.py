"""The Iceberg catalog through PyIceberg: which files each partition of a snapshot consists of.

This module needs no Spark. The catalog is in PostgreSQL (the JDBC catalog that Spark also writes). Data and metadata
are in ``s3://lake/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.errors import TrilakeError, UnreachableError
from trilake.lake.column_sums import ColumnSum, sums_at
from trilake.lake.data_set import LAKE_BUCKET, WAREHOUSE, WHOLE, DataSet
from trilake.lake.file_columns import names_in_files, never_changed
from trilake.lake.nested_nulls import nested_columns, null_rows
from trilake.lake.plan import ICEBERG_TABLE, DataFile, LoadPlan, PartitionPlan
from trilake.lake.window import Grain, partition_name
from trilake.postgres.connection import connect
from trilake.postgres.databases import CATALOG_READER

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot
    from sqlalchemy.engine import ExceptionContext

CATALOG = "lake"
# Properties of a snapshot that Trilake writes and reads.
RUN_PROPERTY = "trilake.run"
COUNTS_PROPERTY = "trilake.counts"
FILES_PROPERTY = "trilake.files"


class TableNotFoundError(TrilakeError):
    """The data set has no Iceberg table yet."""


class SnapshotNotFoundError(TrilakeError):
    """The table does not have that snapshot, or no longer has it."""


class UnpublishableSnapshotError(TrilakeError):
    """The snapshot cannot be loaded into ClickHouse file by file."""


def open_catalog(lake: PostgresEndpoint, s3: S3Endpoint) -> SqlCatalog:
    """The catalog that Spark calls ``lake``. Call `close()` to release its connections.

    :raises UnreachableError: PostgreSQL does not answer. The catalog's methods raise it too.
    """
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.event import listen
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    # By default Arrow's S3 client sends a checksum after the data of an upload. Not every store accepts that (S3Proxy
    # answers 400). The client reads this setting only from the environment. The ETag is checked in any case.
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
            # The first use creates the catalog's tables. Another process did so at the same moment; now they exist.
            catalog = SqlCatalog(CATALOG, **properties)
    except OperationalError as e:
        raise _unreachable(lake, e) from None

    def named(context: ExceptionContext) -> None:
        if context.is_disconnect or context.connection is None:
            raise _unreachable(lake, context.original_exception) from None

    listen(catalog.engine, "handle_error", named)
    return catalog


def _unreachable(lake: PostgresEndpoint, error: BaseException) -> UnreachableError:
    """An error that names the catalog's database. SQLAlchemy's error quotes the statement and names no database."""
    reason = next(iter(str(getattr(error, "orig", error)).splitlines()), type(error).__name__)
    return UnreachableError(
        f"The Iceberg catalog, PostgreSQL database {lake.database} ({lake.host}:{lake.port}): {reason}."
    )


def grant_catalog(lake: PostgresEndpoint, s3: S3Endpoint) -> None:
    """Let the user `CATALOG_READER` read the catalog's tables, and nothing else of the database. Does nothing where
    there is no such user. Can be repeated.
    """
    with connect(lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (CATALOG_READER,))
        if cursor.fetchone() is None:
            return
    open_catalog(lake, s3).close()  # the first use creates the tables
    with connect(lake) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"GRANT SELECT ON public.iceberg_tables, public.iceberg_namespace_properties TO {CATALOG_READER}"
        )


def ensure_namespace(catalog: SqlCatalog, namespace: str) -> None:
    """Create a namespace if it does not exist. Safe if another process creates it at the same moment."""
    from pyiceberg.exceptions import NamespaceAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    try:
        catalog.create_namespace(namespace)
    except NamespaceAlreadyExistsError:
        pass
    except IntegrityError:
        # PyIceberg first checks and then inserts. Another process created the namespace in between.
        if not catalog.namespace_exists(namespace):
            raise


@contextmanager
def naming_store(properties: Mapping[str, str], table: str) -> Iterator[None]:
    """Name the store in errors of a block that reads or writes files of an Iceberg table.

    :param properties: of the catalog, or of the table's files.
    :raises UnreachableError: the store fails or does not answer. Arrow's own OSError does not name the store.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as e:
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise UnreachableError(
            f"S3 ({properties.get('s3.endpoint')}), Iceberg table {table}: {reason.rstrip('.')}."
        ) from None


def load_table(catalog: SqlCatalog, identifier: str) -> Table:
    """:raises TableNotFoundError: the table does not exist: no job has committed to it.
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


def data_set_of(table: Table) -> DataSet:
    """The data set that a table of the lake holds, as its partition layout says.

    :raises UnpublishableSnapshotError: the table has another layout than those of data sets.
    """
    from pyiceberg.transforms import BucketTransform, DayTransform, MonthTransform

    name = table.name()[-1]
    schema = table.schema()
    fields = [(schema.find_column_name(field.source_id), field.transform) for field in table.spec().fields]
    if not fields:
        return DataSet(name)
    if len(fields) == 2:
        (date_column, unit), (shard_column, bucket) = fields
        if isinstance(unit, DayTransform | MonthTransform) and isinstance(bucket, BucketTransform):
            grain: Grain = "day" if isinstance(unit, DayTransform) else "month"
            return DataSet(name, grain, date_column, shard_column)
    raise UnpublishableSnapshotError(
        f"{_name(table)} is not partitioned by the day or month of a date and by a bucket of a column.",
        hint="Another program made it. Rewrite the table with the data set's job.",
    )


def snapshot_summary(table: Table, snapshot_id: int) -> Mapping[str, str]:
    """The snapshot's properties: Iceberg's own counts, and those that the job added."""
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
        hint="It may have expired. Run the task that commits again, and use the snapshot that it commits.",
    )


def plan(
    table: Table,
    data_set: DataSet,
    partitions: Iterable[str],
    snapshot_id: int | None = None,
    *,
    with_columns: bool = False,
) -> LoadPlan:
    """The files of `partitions` at a snapshot (the current one by default), with their record counts.

    :param with_columns: also find out which columns each file has, if the table's columns were ever changed, and look
        for values that ClickHouse lacks in nested columns without sums. This reads the footers of the files, and such
        columns.

    A partition without files is part of the plan. It is empty, and publishing it removes its rows from ClickHouse.

    :raises SnapshotNotFoundError: no such snapshot.
    :raises UnpublishableSnapshotError: it has delete files, a null bucket, or another partition layout.
    :raises UnreadableColumnsError: the columns of a file cannot be told, see `trilake.lake.file_columns`.
    :raises UnreachableError: the store does not answer.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None and snapshot_id is not None:
        raise _no_snapshot(table, snapshot_id)
    if snapshot is None:
        raise SnapshotNotFoundError(
            f"{_name(table)} has no snapshot.", hint="Run the data set's job first: it commits one."
        )
    wanted = [WHOLE] if data_set.grain is None else sorted(set(partitions))
    buckets = _buckets(table, data_set)
    files: dict[str, list[DataFile]] = {partition: [] for partition in wanted}
    # Each file's own partition record says exactly which month it is of, so rows need no filter. The files are listed
    # from manifests, which Iceberg prunes by the same records.
    scan = table.scan(row_filter=_filter(data_set, wanted), snapshot_id=snapshot.snapshot_id)
    with naming_store(table.io.properties, _name(table)):
        tasks = list(scan.plan_files())
    found = [(*_data_file(table, data_set, task), task.file.file_path) for task in tasks]
    found = [(partition, file, path) for partition, file, path in found if partition in files]
    # Readers of the current snapshot see the current schema, also if it was changed after the commit.
    current = table.current_snapshot()
    schema = table.schema() if current and current.snapshot_id == snapshot.snapshot_id else _schema_at(table, snapshot)
    names: Mapping[str, Mapping[str, str]] = {}
    if with_columns and not never_changed(table):
        with naming_store(table.io.properties, _name(table)):
            names = names_in_files(table, schema, (path for _, _, path in found))
    sums = {}
    if with_columns and data_set.grain:
        with naming_store(table.io.properties, _name(table)):
            sums = _column_sums(table, snapshot, schema, wanted)
    nulls: Mapping[str, Mapping[str, int] | None] = {}
    if with_columns and (nested := nested_columns(schema)):
        unsummed = {name: [column for column in nested if column not in sums.get(name, {})] for name in wanted}
        with naming_store(table.io.properties, _name(table)):
            nulls = null_rows(
                lambda path: table.io.new_input(path).open(),
                (
                    (
                        path,
                        {column: inside for column in unsummed[name] if (inside := _inside(column, names.get(path)))},
                    )
                    for name, _, path in found
                ),
            )
    for partition, file, path in found:
        known = nulls.get(path, {}) if with_columns else None
        files[partition].append(replace(file, names=names.get(path), null_rows=known))
    return LoadPlan(
        data_set=data_set,
        snapshot_id=snapshot.snapshot_id,
        sequence_number=snapshot.sequence_number or 0,
        buckets=buckets,
        partitions=tuple(
            PartitionPlan(partition, tuple(sorted(files[partition], key=lambda file: file.key))) for partition in wanted
        ),
        source=f"{ICEBERG_TABLE} {table.metadata.table_uuid}",
        sums=sums,
        types={column.name: str(column.field_type) for column in schema.fields},
    )


def _inside(column: str, names: Mapping[str, str] | None) -> str | None:
    """A column's name in a file; None: the file does not have it."""
    return column if names is None else names.get(column)


def _column_sums(
    table: Table, snapshot: Snapshot, schema: Schema, partitions: list[str]
) -> dict[str, dict[str, ColumnSum]]:
    by_id = sums_at(table, snapshot, partitions, counts_property=COUNTS_PROPERTY)
    # A column that was added after the commit has no value in the partition.
    none = ColumnSum(0, 0)
    return {
        partition: {
            field.name: total for field in schema.fields if (total := sums.get(field.field_id, none)) is not None
        }
        for partition, sums in by_id.items()
    }


def files_of(table: Table, data_set: DataSet, partitions: Iterable[str], snapshot_id: int) -> frozenset[str]:
    """The paths of the files of `partitions` at a snapshot. Any change of a partition changes these paths.

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
        layout = ", ".join(f"{transform}({column})" for column, transform in fields) or "nothing"
        raise UnpublishableSnapshotError(
            f"{_name(table)} is partitioned by {layout}, and not by {data_set.grain}({data_set.date}), "
            f"bucket[shards]({data_set.shard_by}).",
            hint="Another job made it, or the declaration of the data set was changed. Rewrite the table.",
        )
    return int(fields[1][1].num_buckets)


def _data_file(table: Table, data_set: DataSet, task: FileScanTask) -> tuple[str, DataFile]:
    file = task.file
    if task.delete_files:
        raise UnpublishableSnapshotError(
            f"{file.file_path} has delete files.", hint="Compact the table (rewrite_data_files) and publish again."
        )
    _, separator, key = file.file_path.partition(f"://{LAKE_BUCKET}/")
    if not separator:
        raise UnpublishableSnapshotError(
            f"{file.file_path} is not in bucket {LAKE_BUCKET}.", hint="Rewrite the table into that bucket."
        )
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
            hint="Make both columns required, and run the data set's job again.",
        )
    return _partition_of(data_set.grain, when), DataFile(key, file.record_count, file.file_size_in_bytes, int(bucket))


def _partition_of(grain: Grain, value: Any) -> str:
    """Iceberg counts months and days from 1970; PyIceberg gives days as dates."""
    if isinstance(value, date):
        return partition_name(grain, value)
    if grain == "month":
        return partition_name(grain, date(1970 + value // 12, value % 12 + 1, 1))
    return partition_name(grain, date(1970, 1, 1) + timedelta(days=value))
