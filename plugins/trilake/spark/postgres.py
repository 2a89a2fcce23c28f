"""Writes rows of Spark to a table of PostgreSQL: executors stage them in parallel, one transaction swaps them in.

Each task sends its rows with one COPY, in its own transaction, to an UNLOGGED staging table of this attempt. Every
staged row has the id of its transaction, and a task returns that id as its result. Spark keeps one result for each
partition. So rows that a failed, repeated or speculative copy of a task has committed have another id, and are left
out. Then one transaction moves the rows to the table: readers see all of them or none.

The staging table is dropped when the attempt ends. If the driver was killed, the attempt's advisory lock is free. Then
the next attempt in that schema, or the DAG `publication_housekeeping`, ends its connections and drops the table.
"""

from __future__ import annotations

import io
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from trilake.endpoints import OLTP_CONNECTION, EnvironmentConnection, PostgresEndpoint
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.postgres.columns import TableColumn, check_names, table_columns
from trilake.postgres.connection import PostgresError, connect, listed, quote
from trilake.postgres.locks import LockSpace, hold_lock, try_lock
from trilake.postgres.marts import merge_from, replace_from
from trilake.postgres.staging import (
    PROBLEM,
    Kind,
    StagedColumn,
    check_values,
    converted_rows,
    create_staging,
    staged_columns,
    staged_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

    from trilake.lake import Window

log = logging.getLogger(__name__)

# Prefix of the staging tables. The rest of a table's name is the attempt, which is also the name of its advisory lock.
STAGING = "trilake_staging_"
# The staging column with the id of the transaction that copied the row.
COPY = "trilake_copy"
_ATTEMPT_BYTES = 6

# Sessions that write to the table are ended before it is dropped. If it is still locked after this time, the next
# attempt drops it.
DROP_TIMEOUT_S = 10
_ROWS_PER_WRITE = 10_000
# An error of Trilake in a task's traceback.
_TRILAKE_ERROR = re.compile(r"^trilake\.\S+Error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """The result of a write.

    :param rows: number of rows of the frame; all of them were written.
    :param inserted: number of rows with a new key; without a key, all rows.
    :param updated: number of rows whose key existed.
    :param seconds: duration of the write.
    :param swap_seconds: the part of `seconds` for the final transaction, which may block readers.
    """

    table: str
    rows: int
    inserted: int
    updated: int
    seconds: float
    swap_seconds: float


def write_postgres(
    frame: DataFrame,
    table: str,
    *,
    date: str | None = None,
    window: Window | None = None,
    key: Sequence[str] = (),
    conn_id: str = OLTP_CONNECTION,
    check: Callable[[], None] = lambda: None,
) -> Written:
    """Write a frame's rows to an existing table, in one transaction of PostgreSQL. Readers see the old or the new rows.

    By default, all rows of the table are replaced. With `date` and `window`, the rows of the window are replaced. With
    `key`, rows are merged: rows with an existing key are updated, the others are inserted, none is removed. Columns are
    matched by name; columns that the frame does not have get their defaults. Arrays, maps and structs become JSON, for
    columns of type json or jsonb.

    Types are compared before the frame is computed, and values before the table changes: a value that the table's
    column would round, cut or shift is an error (see `trilake.postgres.staging`).

    The frame is computed once. The driver and the executors read the connection from their environment, which comes
    from the same Secret: no password is in a plan, a setting, an argument or a task.

    :param table: ``schema.table``, as written in SQL.
    :param date: the table's column that says which rows belong to `window`.
    :param check: called when the whole frame is computed and before the table changes. An error in it ends the write.
    :raises CountMismatchError: PostgreSQL does not have the rows that were sent. Nothing was changed.
    :raises trilake.postgres.DuplicateKeyError: two rows have the same key, or a row has no key. Nothing was changed.
    :raises trilake.postgres.PostgresError: PostgreSQL refused a row or a statement. Nothing was changed.
    :raises trilake.postgres.staging.ValueRefusedError: a column of the table cannot hold a value exactly. Nothing was
        changed.
    :raises ConfigurationError: it is not clear which rows to replace, or a column has no equal in the table.
    """
    began = time.monotonic()
    schema, _, name = table.rpartition(".")
    if not schema or not name:
        raise ConfigurationError(
            f"The table name {table!r} has no schema.", hint="Write it as schema.table, such as marts.routes."
        )
    if bool(date) != (window is not None) or (date and key) or isinstance(key, str):
        raise ConfigurationError(
            f"It is not clear which rows of {table} are replaced.",
            hint="Set date together with a window, or key to a list of columns, or neither to replace all rows.",
        )
    if missing := [column for column in (*key, *([date] if date else [])) if column not in frame.columns]:
        raise ConfigurationError(f"Rows for {table} have no column {missing[0]}.", hint="Select it.")
    endpoint = PostgresEndpoint.from_connection(EnvironmentConnection.read(conn_id))
    with connect(endpoint) as connection, connection.cursor() as cursor:
        targets = table_columns(cursor, table)
    staged = staged_columns(table, targets, _kinds(frame, table, targets))
    prepared, columns = _as_text(frame, staged), frame.columns
    remove_abandoned(endpoint, schema)
    attempt = secrets.token_hex(_ATTEMPT_BYTES)
    staging = f"{schema}.{STAGING}{attempt}"
    with hold_lock(endpoint, LockSpace.MART_STAGING, attempt) as connection:
        try:
            with connection.cursor() as cursor:
                default = f", {COPY} bigint NOT NULL DEFAULT txid_current()"
                create_staging(cursor, staging, columns, create="CREATE UNLOGGED TABLE", more=default)
            copies = _stage(prepared, table, _copier(conn_id, staging, [*columns, PROBLEM]))
            sent = sum(copy["rows"] for copy in copies)
            # literals are safe here: the ids are numbers from PostgreSQL
            ids = ", ".join(str(int(copy[COPY])) for copy in copies) or "NULL"
            texts = staged_rows(staging, f"{COPY} IN ({ids})")
            rows = converted_rows(texts, staged)
            check()
            # without a key, the first column names a row
            with connect(endpoint) as reading, reading.cursor() as cursor:
                check_values(cursor, table, texts, staged, key=key or columns[:1])
            swap_began = time.monotonic()
            with connect(endpoint) as swap:
                inserted, updated = sent, 0
                if key:
                    inserted, updated = merge_from(swap, table, columns, rows, sent, key=key)
                elif window is not None:
                    column = quote(str(date)).replace("%", "%%")
                    where = f"{column} >= %s AND {column} < %s"
                    bounds = (window.start, window.stop)
                    replace_from(swap, table, columns, rows, sent, where=where, parameters=bounds)
                else:
                    replace_from(swap, table, columns, rows, sent)
            ended = time.monotonic()
        finally:
            _drop(connection, staging)
    return Written(table, sent, inserted, updated, round(ended - began, 3), round(ended - swap_began, 3))


def remove_abandoned(endpoint: PostgresEndpoint, schema: str | None = None) -> list[str]:
    """Drops the staging tables of killed attempts. Returns their names, as ``schema.table``.

    :param schema: only tables of this schema; None: of the whole database.
    """
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = coalesce(%s, schemaname) "
            "AND tablename ~ %s ORDER BY 1, 2",
            (schema.strip('"') if schema else None, f"^{STAGING}[0-9a-f]{{{2 * _ATTEMPT_BYTES}}}$"),
        )
        removed = []
        for table_schema, name in cursor.fetchall():
            staging = f"{listed([table_schema])}.{name}"
            with try_lock(endpoint, LockSpace.MART_STAGING, name.removeprefix(STAGING)) as free:
                # Look again: the writer may have ended since the query and dropped the table itself.
                if free and _exists(connection, staging) and _drop(connection, staging):
                    removed.append(f"{table_schema}.{name}")
    if removed:
        log.warning("Removed the staging tables of killed writers in PostgreSQL: %s", ", ".join(removed))
    return removed


def _exists(connection: Connection, table: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
        row = cursor.fetchone()
    return bool(row and row[0])


def _stage(frame: DataFrame, table: str, copier: Callable[..., Any]) -> list[Any]:
    """Runs the tasks. If a task fails with an error of Trilake, raises its message without Spark's tracebacks."""
    try:
        return frame.mapInArrow(copier, f"{COPY} long, rows long").collect()
    except Exception as e:
        match = _TRILAKE_ERROR.search(str(e))
        if not match:
            raise
        raise PostgresError(f"{table}: {match[1]}", hint="Nothing was changed.") from None


def _drop(connection: Connection, staging: str) -> bool:
    """Drops a staging table. First ends sessions that still write to it (of a task copy that Spark no longer needs).

    If the table cannot be dropped now, this is not an error: the next attempt drops it.
    """
    import psycopg2

    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND pid != "
                "pg_backend_pid()",
                (staging.rpartition(".")[2],),
            )
            cursor.execute(f"SET lock_timeout = '{DROP_TIMEOUT_S}s'")
            cursor.execute(f"DROP TABLE IF EXISTS {staging}")
    except psycopg2.Error as e:
        log.warning("%s cannot be dropped now, the next attempt drops it: %s", staging, type(e).__name__)
        return False
    return True


def _kinds(frame: DataFrame, table: str, targets: Mapping[str, TableColumn]) -> dict[str, Kind]:
    """What the values of the frame's columns are."""
    doubled = {name for name in frame.columns if frame.columns.count(name) > 1}
    if doubled or COPY in frame.columns or not frame.columns:
        raise ConfigurationError(
            f"Rows for {table} cannot have the columns {', '.join(frame.columns) or 'none'}.",
            hint=f"Give each column a different name, and do not use the name {COPY}.",
        )
    check_names(table, targets, frame.columns)
    return {field.name: Kind(_kind(field.dataType), field.dataType.simpleString()) for field in frame.schema.fields}


def _kind(kind: DataType) -> str:
    from pyspark.sql import types as T

    kinds: dict[type[DataType], str] = {
        T.ByteType: "int2",
        T.ShortType: "int2",
        T.IntegerType: "int4",
        T.LongType: "int8",
        T.DecimalType: "decimal",
        T.FloatType: "float4",
        T.DoubleType: "float8",
        T.BooleanType: "boolean",
        T.StringType: "text",
        T.CharType: "text",
        T.VarcharType: "text",
        T.BinaryType: "bytes",
        T.DateType: "date",
        T.TimestampType: "moment",
        T.TimestampNTZType: "local",
        T.ArrayType: "json",
        T.MapType: "json",
        T.StructType: "json",
        T.NullType: "null",
    }
    return kinds.get(type(kind), "unknown")


# Fields that are NULL stay. Times keep their microseconds.
_TO_JSON = {
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def _as_text(frame: DataFrame, columns: Sequence[StagedColumn]) -> DataFrame:
    """Converts types that CSV cannot represent to text that PostgreSQL reads, and adds `PROBLEM`."""
    from pyspark.sql import functions as F

    texts, problems = [], []
    for number, item in enumerate(columns):
        name = item.column.name
        column = F.col(f"`{name.replace('`', '``')}`")
        if item.kind.name == "bytes":
            column = F.concat(F.lit("\\x"), F.hex(column))
        elif item.kind.name == "float4" and item.column.base == "float8":
            column = column.cast("double")
        elif item.kind.name == "json":
            column = F.to_json(column, _TO_JSON)
        if item.kind.name in ("text", "json"):
            wrong = ~F.is_valid_utf8(column) | F.contains(column, F.lit("\0"))
            shown = F.regexp_replace(F.make_valid_utf8(column), "\0", r"\\0")
            problems.append(F.when(wrong, F.lit(f"{number}:it is not UTF-8, or has NUL bytes")))
            column = F.when(wrong, shown).otherwise(column)
        texts.append(column.alias(name))
    problem = F.coalesce(*problems) if problems else F.lit(None).cast("string")
    return frame.select(*texts, problem.alias(PROBLEM))


def _copier(
    conn_id: str, staging: str, columns: Sequence[str]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function of a task: it copies all rows with one COPY, and yields the transaction's id and the row count."""

    def copy(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        nonempty = (batch for batch in batches if batch.num_rows)
        first = next(nonempty, None)
        if first is None:
            return
        endpoint = PostgresEndpoint.from_connection(EnvironmentConnection.read(conn_id))
        with connect(endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (staging.rpartition(".")[2],))
            stream = CsvStream(chain([first], nonempty))
            cursor.copy_expert(f"COPY {staging} ({listed(columns)}) FROM STDIN (FORMAT csv)", stream, size=1 << 16)
            rows = cursor.rowcount
            cursor.execute("SELECT txid_current()")
            row = cursor.fetchone()
        if rows != stream.rows or row is None:
            raise CountMismatchError(f"{staging}: {stream.rows} rows were sent, but PostgreSQL wrote {rows}.")
        yield pa.RecordBatch.from_pydict({COPY: [row[0]], "rows": [rows]})

    return copy


class CsvStream(io.RawIOBase):
    """Arrow batches as a CSV file for COPY. A value in quotes is a string; an empty field without quotes is NULL.

    :ivar rows: number of rows read so far.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        super().__init__()
        self._blocks = (
            batch.slice(start, _ROWS_PER_WRITE)
            for batch in batches
            for start in range(0, batch.num_rows, _ROWS_PER_WRITE)
        )
        self._text = memoryview(b"")
        self.rows = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty at the end."""
        if not self._text:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._text = memoryview(_csv(block))
            self.rows += block.num_rows
        size = len(self._text) if size < 0 else size
        piece, self._text = self._text[:size], self._text[size:]
        return bytes(piece)


def _csv(block: pa.RecordBatch) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    # A time is written in the zone of its type, which is Spark's session's. PostgreSQL's timestamp ignores the zone.
    for number, field in enumerate(block.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            utc = block.column(number).cast(pa.timestamp("us", tz="UTC"))
            block = block.set_column(number, pa.field(field.name, utc.type), utc)
    sink = pa.BufferOutputStream()
    csv.write_csv(block, sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    return sink.getvalue()
