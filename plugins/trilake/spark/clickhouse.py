"""Reads rows of ClickHouse in Spark through S3. All shards export in parallel, and Spark reads the files that the
manifest lists. No row passes through the driver.

A session's exports are below ``s3://exports/spark/<session>/`` and are removed when the session ends. A running session
holds an advisory lock in database ``lake``. If the lock of a session is free, its driver was killed: the next session
that reads, or the DAG `publication_housekeeping`, removes its exports.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.export import (
    Source,
    attempts_below,
    cancel,
    columns_of,
    export,
    remove_attempts,
    table_sources,
)
from trilake.clickhouse.publication.shard_sets import ShardSets
from trilake.clickhouse.publication.types import bare
from trilake.endpoints import Endpoints, PostgresEndpoint
from trilake.errors import ConfigurationError, CountMismatchError, TrilakeError
from trilake.lake.data_set import EXPORTS_BUCKET, WHOLE, DataSet
from trilake.postgres.locks import LockSpace, keep_lock, try_lock

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

PREFIX = "spark"

# ClickHouse's type -> Spark's type. Parquet transfers every value of these types unchanged.
_TYPES = {
    **{"Bool": "boolean", "String": "string", "Float32": "float", "Float64": "double"},
    **{"Date": "date", "Date32": "date"},
    **{"Int8": "tinyint", "Int16": "smallint", "Int32": "int", "Int64": "bigint"},
    # The next larger type, because Spark has no unsigned integers.
    **{"UInt8": "smallint", "UInt16": "int", "UInt32": "bigint", "UInt64": "decimal(20,0)"},
}
# Pattern of a session's name. Other folders below the prefix may be exports of a task that is named "spark".
_SESSION = re.compile(r"[0-9a-f]{12}")
_ARRAY = re.compile(r"Array\((.*)\)")
_DECIMAL = re.compile(r"Decimal\((\d+), (\d+)\)")
_MOMENT = re.compile(r"DateTime(?:64\((\d)(?:, '[^']*')?\)|\('[^']*'\))?")
_MICROSECONDS = 6
_LARGEST_DECIMAL = 38


class ClickHouseReader:
    """Reads from ClickHouse for one Spark session. It is a context manager; its frames are valid until it is closed.

    :param run_id: for ClickHouse's query log and the manifests.
    """

    def __init__(self, endpoints: Endpoints, *, run_id: str = "") -> None:
        self.run_id = run_id
        self.session = secrets.token_hex(6)  # see `_SESSION`
        self._reads = 0
        self._s3 = s3.client(endpoints.s3)
        self._shard_sets = ShardSets(endpoints.lake)
        self._opened = ExitStack()
        try:
            comment = {"by": "spark", "run": run_id, "session": self.session}
            self._cluster = self._opened.enter_context(Cluster(endpoints.clickhouse, comment=comment))
            self._opened.enter_context(keep_lock(endpoints.lake, LockSpace.SPARK_SESSION, self.session))
            remove_abandoned(self._cluster, self._s3, endpoints.lake)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> ClickHouseReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the session's exports. If this fails, a later `remove_abandoned` removes them."""
        try:
            _remove(self._cluster, self._s3, self.session)
        finally:
            self._opened.close()

    def read_table(
        self,
        spark: SparkSession,
        table: DataSet | Source,
        *,
        partitions: Sequence[str] | None = None,
        columns: Sequence[str] = (),
        where: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> DataFrame:
        """The rows of a table, exported now. The rows of one shard show one point in time.

        NULL stays NULL. Every type is converted to one that holds all its values: an unsigned number becomes the next
        larger signed one, UInt64 becomes ``decimal(20,0)``, Enum and LowCardinality become a string, DateTime becomes a
        timestamp in UTC.

        :param table: a data set, or a query that each shard runs, such as
            ``Source("SELECT k FROM {shard}.orders_local")``.
        :param partitions: partitions of a data set with a grain; None: all.
        :param columns: columns of a data set's table; empty: all.
        :param where: a condition on a data set's rows, in ClickHouse's SQL, with `parameters` as ``{name:Type}``.
        :raises CountMismatchError: Spark found a different number of rows than the shards exported.
        :raises ReshardedError: rows moved to other shards meanwhile.
        :raises ConfigurationError: Spark has no type for a column.
        :raises trilake.clickhouse.cluster.ClusterError: some shards failed; it names them.
        """
        if isinstance(table, Source):
            if partitions is not None or columns or where:
                raise ConfigurationError(
                    "Partitions, columns and a condition cannot be combined with a query.",
                    hint="Write them into the query.",
                )
            name, sources = "query", {WHOLE: table}
        else:
            if table.grain is None and partitions is not None:
                raise ConfigurationError(f"Data set {table.name} has no grain.", hint="Read it without partitions.")
            name, sources = table.name, table_sources(table, partitions, columns=columns, where=where,
                                                      parameters=parameters)  # fmt: skip
        if not sources:
            raise ConfigurationError(
                f"The list of partitions of {name} to read is empty.", hint="Name a partition, or set None to read all."
            )
        schema = ", ".join(
            f"`{column.replace('`', '``')}` {_spark_type(column, kind)}"
            for column, kind in columns_of(self._cluster, next(iter(sources.values())))
        )
        self._reads += 1
        with self._shard_sets.no_rows_move([source.sql for source in sources.values()]):
            done = export(
                self._cluster, self._s3, f"{PREFIX}/{self.session}/{self._reads}_{name}", sources, run_id=self.run_id
            )
        frame = spark.read.schema(schema).parquet(*(f"s3a://{EXPORTS_BUCKET}/{item.key}" for item in done.objects))
        rows = frame.count()  # Spark reads only the footers of the files for this
        if rows != done.rows:
            raise CountMismatchError(
                f"{name}: {done.rows} rows were exported to {done.manifest}, but Spark reads {rows}."
            )
        log.warning("Read %s rows of %s from ClickHouse, in %s files", rows, name, len(done.objects))
        return frame


def remove_abandoned(cluster: Cluster, client: S3Client, lake: PostgresEndpoint) -> list[str]:
    """Removes the exports of sessions whose driver was killed. Returns the names of these sessions."""
    removed = []
    for session in sorted(filter(_SESSION.fullmatch, attempts_below(client, PREFIX)[0])):
        with try_lock(lake, LockSpace.SPARK_SESSION, session) as free:
            # Look again: the session may have ended since the first look and removed its exports itself.
            if free and attempts_below(client, f"{PREFIX}/{session}")[0] and _remove(cluster, client, session):
                removed.append(session)
    if removed:
        log.warning("Removed the exports of killed sessions below s3://%s/%s/: %s", EXPORTS_BUCKET, PREFIX,
                    ", ".join(removed))  # fmt: skip
    return removed


def _remove(cluster: Cluster, client: S3Client, session: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        cancel(cluster, f"{PREFIX}/{session}")
        remove_attempts(client, PREFIX, [session])
    except (TrilakeError, BotoCoreError, ClientError) as e:
        log.warning("s3://%s/%s/%s cannot be removed now, the next session removes it: %s",
                    EXPORTS_BUCKET, PREFIX, session, e)  # fmt: skip
        return False
    return True


def _spark_type(column: str, kind: str) -> str:
    """Spark's type, as in DDL, for a type of ClickHouse."""
    kind = bare(kind)
    if known := _TYPES.get(kind):
        return known
    if kind.startswith(("Enum8(", "Enum16(")):
        return "string"
    if array := _ARRAY.fullmatch(kind):
        return f"array<{_spark_type(column, array[1])}>"
    if (decimal := _DECIMAL.fullmatch(kind)) and int(decimal[1]) <= _LARGEST_DECIMAL:
        return f"decimal({decimal[1]},{decimal[2]})"
    if (moment := _MOMENT.fullmatch(kind)) and int(moment[1] or 0) <= _MICROSECONDS:
        return "timestamp"
    raise ConfigurationError(
        f"Column {column} has the type {kind}, which Spark does not have.",
        hint=f"Leave it out, or read a query that converts it, such as Source('SELECT toString({column}) ...').",
    )
