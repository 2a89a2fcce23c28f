"""Rows of Spark into a table of PostgreSQL: staged by the executors side by side, swapped in by one transaction.

Each task sends its rows by one COPY, in a transaction of its own, into an UNLOGGED staging table of this attempt; each
row there says which transaction brought it. A task tells its transaction as its result, and Spark takes one result of
each partition: what a failed, repeated or speculative copy of a task has committed besides is known by that, and left
out. Then readers see all of it or, as before, none.

The staging table goes when the attempt ends. Of an attempt whose driver was killed, the next one in that schema ends
the connections and drops the table: its advisory lock is free then. Where no next one comes, the DAG
`publication_housekeeping` does it.
"""

from __future__ import annotations

import io
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from trilake.endpoints import OLTP_CONNECTION, EnvironmentConnection, PostgresEndpoint
from trilake.errors import ConfigurationError, CountMismatchError
from trilake.postgres.connection import PostgresError, connect, listed
from trilake.postgres.locks import LockSpace, hold_lock, try_lock
from trilake.postgres.marts import merge_from, replace_from

if TYPE_CHECKING:
    import pyarrow as pa
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import DataFrame

    from trilake.lake import Window

log = logging.getLogger(__name__)

# As the ledger's in database lake: the first half of the advisory locks' keys (trilake.clickhouse.publication.ledger).
STAGING = "trilake_staging_"
# The column of staging that says which transaction brought a row.
COPY = "trilake_copy"
_ATTEMPT_BYTES = 6

# A session that writes to a dropped table is ended first; what still holds it has to be seen to by the next attempt.
DROP_TIMEOUT_S = 10
_ROWS_PER_WRITE = 10_000
# An error of ours in a task's trace.
_OURS = re.compile(r"^trilake\.\S+Error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """What came of a write.

    :param rows: of the frame, and as many in the table.
    :param inserted: of them, those whose key was new; without a key, all.
    :param updated: those whose key was there.
    :param seconds: in all, and `swap_seconds` of them in the transaction that readers may notice.
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
    """Write a frame's rows to a table that is there, in one transaction of PostgreSQL: readers see it as it was or is.

    All rows of the table are replaced; or those of a window, by `date` and `window`; or rows are merged by `key`: those
    whose key is there are updated, the others inserted, none removed. Columns go by name; those that the frame does not
    have get their defaults. Arrays, maps and structs become JSON, for columns of type json or jsonb.

    The frame is computed once. The connection is read from the environment, here and on the executors, which have it
    from the same Secret: no password is in a plan, a setting, an argument or a task.

    :param table: ``schema.table``, as written in SQL.
    :param date: the table's column that says which rows belong to `window`.
    :param check: called when the whole frame was computed and nothing has changed yet: what it raises ends the write.
    :raises CountMismatchError: PostgreSQL does not hold what was sent. Nothing was changed.
    :raises trilake.postgres.DuplicateKeyError: two rows have one key, or one has none. Nothing was changed.
    :raises trilake.postgres.PostgresError: PostgreSQL refused a row or a statement. Nothing was changed.
    :raises ConfigurationError: it is not clear what is to be replaced, or a column cannot be written.
    """
    began = time.monotonic()
    schema, _, name = table.rpartition(".")
    if not schema or not name:
        raise ConfigurationError(f"{table!r} names no schema.", hint="Write it as schema.table, such as marts.routes.")
    if bool(date) != (window is not None) or (date and key) or isinstance(key, str):
        raise ConfigurationError(
            f"It is not clear which rows of {table} are replaced.",
            hint="Set date together with a window, or key to a list of columns, or neither to replace all rows.",
        )
    if missing := [column for column in (*key, *([date] if date else [])) if column not in frame.columns]:
        raise ConfigurationError(f"Rows for {table} have no column {missing[0]}.", hint="Select it.")
    endpoint = PostgresEndpoint.from_connection(EnvironmentConnection.read(conn_id))
    prepared, columns = _as_text(frame, table), frame.columns
    remove_abandoned(endpoint, schema)
    attempt = secrets.token_hex(_ATTEMPT_BYTES)
    staging = f"{schema}.{STAGING}{attempt}"
    with hold_lock(endpoint, LockSpace.MART_STAGING, attempt) as connection:
        try:
            _create(connection, staging, table, columns)
            copies = _stage(prepared, table, _copier(conn_id, staging, columns))
            sent = sum(copy["rows"] for copy in copies)
            # literals: an id is a number that PostgreSQL gave
            ours = ", ".join(str(int(copy[COPY])) for copy in copies) or "NULL"
            rows = f"(SELECT * FROM {staging} WHERE {COPY} IN ({ours})) AS staged"
            check()
            swap_began = time.monotonic()
            with connect(endpoint) as swap:
                inserted, updated = sent, 0
                if key:
                    inserted, updated = merge_from(swap, table, columns, rows, sent, key=key)
                elif window is not None:
                    where = f"{listed([str(date)])} >= %s AND {listed([str(date)])} < %s"
                    bounds = (window.start, window.stop)
                    replace_from(swap, table, columns, rows, sent, where=where, parameters=bounds)
                else:
                    replace_from(swap, table, columns, rows, sent)
            ended = time.monotonic()
        finally:
            _drop(connection, staging)
    return Written(table, sent, inserted, updated, round(ended - began, 3), round(ended - swap_began, 3))


def remove_abandoned(endpoint: PostgresEndpoint, schema: str | None = None) -> list[str]:
    """Drop the staging tables that nobody is behind any more. Gives their names, as ``schema.table``.

    :param schema: those of one schema; None: of the whole database.
    """
    with connect(endpoint, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = coalesce(%s, schemaname) "
            "AND tablename ~ %s ORDER BY 1, 2",
            (schema.strip('"') if schema else None, f"^{STAGING}[0-9a-f]{{{2 * _ATTEMPT_BYTES}}}$"),
        )
        removed = []
        for inside, name in cursor.fetchall():
            staging = f"{listed([inside])}.{name}"
            with try_lock(endpoint, LockSpace.MART_STAGING, name.removeprefix(STAGING)) as free:
                # looked for again: its writer may have ended, and dropped it, in between
                if free and _is_there(connection, staging) and _drop(connection, staging):
                    removed.append(f"{inside}.{name}")
    if removed:
        log.warning("Removed what killed writers have left in PostgreSQL: %s", ", ".join(removed))
    return removed


def _is_there(connection: Connection, table: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
        found = cursor.fetchone()
    return bool(found and found[0])


def _create(connection: Connection, staging: str, table: str, columns: Sequence[str]) -> None:
    """Of the frame's columns alone and without constraints: those are looked at when the table gets the rows."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE UNLOGGED TABLE {staging} AS SELECT {listed(columns)} FROM {table} WITH NO DATA")
        cursor.execute(f"ALTER TABLE {staging} ADD {COPY} bigint NOT NULL DEFAULT txid_current()")


def _stage(frame: DataFrame, table: str, copier: Callable[..., Any]) -> list[Any]:
    """Run the tasks. What one of them said of PostgreSQL is the error, without the traces that Spark packs it in."""
    try:
        return frame.mapInArrow(copier, f"{COPY} long, rows long").collect()
    except Exception as e:
        found = _OURS.search(str(e))
        if not found:
            raise
        raise PostgresError(f"{table}: {found[1]}", hint="Nothing was changed.") from None


def _drop(connection: Connection, staging: str) -> bool:
    """Drops a staging table. First stops what still writes to it (a copy of a task that Spark no longer needs).

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
        log.warning("%s is left to the next attempt: %s", staging, type(e).__name__)
        return False
    return True


def _as_text(frame: DataFrame, table: str) -> DataFrame:
    """What CSV cannot say, as text that PostgreSQL reads."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    doubled = {name for name in frame.columns if frame.columns.count(name) > 1}
    if doubled or COPY in frame.columns or not frame.columns:
        raise ConfigurationError(
            f"Rows for {table} cannot have the columns {', '.join(frame.columns) or 'none'}.",
            hint=f"Each needs a name of its own, and none is {COPY}.",
        )
    columns = []
    for field in frame.schema.fields:
        column, kind = F.col(f"`{field.name.replace('`', '``')}`"), field.dataType
        if isinstance(kind, T.BinaryType):
            column = F.concat(F.lit("\\x"), F.hex(column))
        elif isinstance(kind, (T.ArrayType, T.MapType, T.StructType)):
            # nulls inside stay what they are
            column = F.to_json(column, {"ignoreNullFields": "false"})
        elif not isinstance(kind, (T.NumericType, T.StringType, T.BooleanType, T.DateType, T.TimestampType,
                                   T.TimestampNTZType, T.NullType)):  # fmt: skip
            raise ConfigurationError(
                f"{table}: column {field.name} is of type {kind.simpleString()}, which cannot be written.",
                hint="Cast it in the job.",
            )
        columns.append(column.alias(field.name))
    return frame.select(*columns)


def _copier(
    conn_id: str, staging: str, columns: Sequence[str]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a task does: one COPY of all of its rows; it tells the transaction, and how many rows that brought."""

    def copy(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        some = (batch for batch in batches if batch.num_rows)
        first = next(some, None)
        if first is None:
            return
        endpoint = PostgresEndpoint.from_connection(EnvironmentConnection.read(conn_id))
        with connect(endpoint) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (staging.rpartition(".")[2],))
            stream = CsvStream(chain([first], some))
            cursor.copy_expert(f"COPY {staging} ({listed(columns)}) FROM STDIN (FORMAT csv)", stream, size=1 << 16)
            rows = cursor.rowcount
            cursor.execute("SELECT txid_current()")
            row = cursor.fetchone()
        if rows != stream.rows or row is None:
            raise CountMismatchError(f"{staging}: {stream.rows} rows were sent, PostgreSQL took {rows}.")
        yield pa.RecordBatch.from_pydict({COPY: [row[0]], "rows": [rows]})

    return copy


class CsvStream(io.RawIOBase):
    """Arrow batches as a file of CSV that COPY reads: a text in quotes is one, nothing at all is NULL.

    :ivar rows: how many were read so far.
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
        """At most `size` bytes; none at the end."""
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

    sink = pa.BufferOutputStream()
    csv.write_csv(block, sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    return sink.getvalue()
