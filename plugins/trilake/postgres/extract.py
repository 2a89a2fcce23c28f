"""Write the result of a PostgreSQL query to an S3 object: a stream from COPY to a multipart upload.

However large the result is, memory holds only a block of rows (`BLOCK_BYTES`) and a part of the upload. COPY's own text
is read, so values keep PostgreSQL's form: NULL differs from the empty string, and a numeric keeps every digit.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

from trilake.errors import ConfigurationError, CountMismatchError, TrilakeError
from trilake.postgres.sql import bound_query
from trilake.s3 import ObjectWriter

if TYPE_CHECKING:
    import pyarrow
    from mypy_boto3_s3 import S3Client
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

Format = Literal["parquet", "csv"]

BLOCK_BYTES = 2 << 20
"""Bytes of COPY's text that become one batch of rows, and one row group of Parquet."""
MAX_ROW_BYTES = 64 << 20
"""The most bytes of one row's text. A row is in memory as a whole."""
PIPE_BYTES = 1 << 20

# All partitions are read from the same snapshot of the database.
_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
# PostgreSQL must write values in the same form, whatever the session's settings.
_FORMS = (
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL DateStyle = 'ISO, YMD'",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL client_encoding = 'UTF8'",
)
_NUMERIC, _BYTEA = 1700, 17
# Also the limit of Spark and Iceberg.
_MAX_DIGITS = 38
# PostgreSQL keeps a numeric's scale in 11 bits, with a sign.
_SCALE_VALUES = 2048
_SHOWN = 80  # characters of a value in an error
_UNREAD_HINT = (
    "Parquet and Iceberg have no infinity and no NaN of these types, no day before the year 1 and none after 9999. "
    "Cast the column to text, in the query or in a view, or leave the row out."
)
_UNREAD_VALUE = re.compile(r"In CSV column #(\d+):")


class ExtractError(TrilakeError):
    """The result of a query cannot be written."""


@dataclass(frozen=True)
class Column:
    """A column of a result.

    :param oid: the OID of its type in PostgreSQL.
    """

    name: str
    oid: int
    type: pyarrow.DataType


@dataclass(frozen=True)
class Extracted:
    """One written object. `bytes` is its size."""

    key: str
    etag: str
    rows: int
    bytes: int


@contextmanager
def one_moment(connection: Connection) -> Iterator[Cursor]:
    """A cursor whose statements all see the database as it was when the first statement began."""
    with connection.cursor() as cursor:
        cursor.execute(_ONE_MOMENT)
        yield cursor


def read_tables(cursor: Cursor, query: str) -> Iterator[pyarrow.Table]:
    """The result of a query as Arrow tables, one for each block of rows. The first table is empty, so a result without
    rows also gives one.

    :param query: without parameters.
    :raises ConfigurationError: Arrow has no equal of a column's type.
    :raises ExtractError: a column's type cannot hold a value, or a row is larger than `MAX_ROW_BYTES`.
    :raises CountMismatchError: the number of rows read is not the number that PostgreSQL sent.
    """
    for statement in _FORMS:
        cursor.execute(statement)
    columns = columns_of(cursor, query)
    yield _schema(columns).empty_table()
    rows = 0
    with _Copy(cursor, query, header=False) as copy:
        for table in _parsed(copy, columns):
            rows += table.num_rows
            yield table
        if rows != (sent := copy.rows()):
            raise CountMismatchError(f"PostgreSQL sent {sent} rows, but {rows} were read.", hint="Run the task again.")


def extract(
    cursor: Cursor,
    sql: str,
    parameters: Mapping[str, Any],
    client: S3Client,
    bucket: str,
    key: str,
    *,
    file_format: Format = "parquet",
) -> Extracted:
    """Write a query's result to one object. An existing object is replaced as a whole, or not changed.

    Parquet has the columns' types. CSV is as PostgreSQL writes it: with a header, an empty field for NULL, and ``""``
    for the empty string. A result without rows gives an object without rows.

    :param cursor: see `one_moment`.
    :param parameters: values for ``%(name)s``; see `trilake.postgres.sql.bound_query`.
    :raises ConfigurationError: Parquet has no equal of a column's type, a parameter is missing, or the text is not one
        statement.
    :raises ExtractError: a column's type in Parquet cannot hold a value, or a row is larger than `MAX_ROW_BYTES`.
    :raises CountMismatchError: the number of rows written is not the number that PostgreSQL sent.
    """
    for statement in _FORMS:
        cursor.execute(statement)
    query = bound_query(cursor, sql, parameters)
    with ObjectWriter(client, bucket, key) as target:
        write = _write_parquet if file_format == "parquet" else _write_csv
        rows, sent = write(cursor, query, target)
        if rows != sent:
            raise CountMismatchError(
                f"PostgreSQL sent {sent} rows for s3://{bucket}/{key}, but {rows} were written.",
                hint="The object was not changed. Run the task again.",
            )
        etag = target.commit()
    return Extracted(key, etag, rows, target.size)


def columns_of(cursor: Cursor, query: str) -> list[Column]:
    """The columns of a query's result. The query is not run.

    :raises ConfigurationError: two columns have the same name, or Parquet has no equal of a type.
    """
    described = _described(cursor, query)
    codes = [column.type_code for column in described]
    cursor.execute("SELECT oid, format_type(oid, NULL), typtype = 'e' FROM pg_type WHERE oid = ANY(%s)", (codes,))
    types = {oid: (name, enum) for oid, name, enum in cursor.fetchall()}
    return [
        Column(c.name, c.type_code, _arrow_type(c.name, c.type_code, c.precision, c.scale, *types[c.type_code]))
        for c in described
    ]


def _described(cursor: Cursor, query: str) -> Sequence[Any]:
    """What psycopg2 says of the columns of a query's result. The query is not run.

    :raises ConfigurationError: two columns have the same name.
    """
    cursor.execute(f"SELECT * FROM (\n{query}\n) AS described LIMIT 0")
    described = cursor.description or ()
    names = [column.name for column in described]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"The query returns the column {twice[0]} twice.", hint="Rename one with AS.")
    return described


def _arrow_type(
    name: str, oid: int, precision: int | None, scale: int | None, kind: str, enum: bool
) -> pyarrow.DataType:
    import pyarrow as pa

    if oid == _NUMERIC:
        return _decimal_type(name, precision, scale)
    types = {
        16: pa.bool_(),
        _BYTEA: pa.binary(),
        21: pa.int16(),
        23: pa.int32(),
        20: pa.int64(),
        26: pa.int64(),  # oid
        700: pa.float32(),
        701: pa.float64(),
        18: pa.string(),  # "char"
        19: pa.string(),  # name
        25: pa.string(),  # text
        1042: pa.string(),  # character
        1043: pa.string(),  # character varying
        2950: pa.string(),  # uuid
        114: pa.string(),  # json
        3802: pa.string(),  # jsonb
        869: pa.string(),  # inet
        650: pa.string(),  # cidr
        1082: pa.date32(),
        1083: pa.time64("us"),
        1114: pa.timestamp("us"),
        1184: pa.timestamp("us", tz="UTC"),
    }
    if not enum and oid not in types:
        raise ConfigurationError(
            f"Column {name} has the type {kind}, which cannot be written to Parquet.",
            hint="Cast it to text or jsonb, in the query or in a view.",
        )
    return pa.string() if enum else types[oid]


def _decimal_type(name: str, precision: int | None, scale: int | None) -> pyarrow.DataType:
    import pyarrow as pa

    if not precision or precision > 1000 or scale is None:
        raise ConfigurationError(
            f"Column {name} is a numeric without precision, such as the result of sum().",
            hint="Cast it in the query or in a view, for example to ::numeric(18, 2), ::bigint or ::text.",
        )
    if scale >= _SCALE_VALUES // 2:  # numeric(2, -3): thousands
        precision, scale = precision + _SCALE_VALUES - scale, 0
    precision = max(precision, scale)
    if precision > _MAX_DIGITS:
        raise ConfigurationError(
            f"Column {name} has {precision} digits, more than {_MAX_DIGITS}.",
            hint="Cast it to text, in the query or in a view.",
        )
    return pa.decimal128(precision, scale)


# --- COPY and its reader


class _Copy:
    """COPY of a query. A thread writes it into a pipe, and the caller reads the pipe."""

    def __init__(self, cursor: Cursor, query: str, *, header: bool) -> None:
        self._cursor = cursor
        self._sql = f"COPY (\n{query}\n) TO STDOUT (FORMAT csv, HEADER {header})"
        self.error: BaseException | None = None
        reading, self._writing = os.pipe()
        self.file = os.fdopen(reading, "rb", buffering=PIPE_BYTES)
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)

    def __enter__(self) -> _Copy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        while self._thread.is_alive():
            self._cursor.connection.cancel()  # the reader left early, so do not wait for the query's end
            self._thread.join(1)

    def rows(self) -> int:
        """The number of rows that PostgreSQL sent. Call this only after the pipe was read to its end."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self._cursor.rowcount

    def _run(self) -> None:
        try:
            with os.fdopen(self._writing, "wb", buffering=PIPE_BYTES) as pipe:
                try:
                    self._cursor.copy_expert(self._sql, pipe)
                except BaseException as e:
                    self.error = e  # set before the pipe is closed, so that the reader sees it
        except OSError as e:
            self.error = self.error or e


def _schema(columns: Sequence[Column]) -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema([(column.name, column.type) for column in columns])


def _parsed(copy: _Copy, columns: Sequence[Column]) -> Iterator[pyarrow.Table]:
    """COPY's text as Arrow tables, one for each block of rows."""
    import pyarrow as pa
    from pyarrow import csv

    schema, rows = _schema(columns), 0
    # Arrow's CSV reader cannot parse bytea, so it is read as a string first.
    convert = csv.ConvertOptions(
        column_types={column.name: pa.string() if column.oid == _BYTEA else column.type for column in columns},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t"],
        false_values=["f"],
    )
    # Arrow's own streaming reader would read 32 blocks ahead of a slow upload
    for block in _blocks(copy.file):
        try:
            table = csv.read_csv(
                pa.BufferReader(block),
                csv.ReadOptions(column_names=schema.names, block_size=len(block) + 1, use_threads=False),
                # a row with a single NULL is an empty line
                csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
                convert,
            )
        except pa.ArrowInvalid as e:
            # If COPY failed, its text ends in the middle of a row: raise COPY's error.
            raise copy.error or _readable(e, columns, block, rows) from None
        rows += table.num_rows
        yield _with_binary(table, columns, schema)


def _write_parquet(cursor: Cursor, query: str, target: ObjectWriter) -> tuple[int, int]:
    from pyarrow import parquet

    columns = columns_of(cursor, query)
    footer: list[parquet.FileMetaData] = []
    with (
        _Copy(cursor, query, header=False) as copy,
        parquet.ParquetWriter(target, _schema(columns), compression="zstd", metadata_collector=footer) as writer,
    ):
        for table in _parsed(copy, columns):
            writer.write_table(table)
        sent = copy.rows()
    return footer[0].num_rows, sent


def _readable(error: Exception, columns: Sequence[Column], block: bytes, rows: int) -> ExtractError:
    """The error of Arrow's reader with the column, the row and the value.

    :param rows: the number of rows before this block.
    """
    match = _UNREAD_VALUE.search(" ".join(str(error).split()))
    if match is None:
        return ExtractError("A column has a value that its type cannot hold.", hint=_UNREAD_HINT)
    number = int(match[1])
    column = columns[number]
    place, shown = _find(block, number, column, len(columns))
    value = repr(shown[:_SHOWN]) + (" ..." if len(shown) > _SHOWN else "")
    return ExtractError(
        f"Column {column.name} has a value that {column.type} cannot hold: {value} in row {rows + place}.",
        hint=_UNREAD_HINT,
    )


def _find(block: bytes, number: int, column: Column, columns: int) -> tuple[int, str]:
    """The first row of a block, from 1, whose value the column's type cannot hold, and the value."""
    import pyarrow as pa
    from pyarrow import csv

    names = list(map(str, range(columns)))
    texts = csv.read_csv(
        pa.BufferReader(block),
        csv.ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False),
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[names[number]],
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ).column(0)
    low, high = 0, len(texts)  # the value is in texts[low:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _held(texts[low:middle], column) else (low, middle)
    return low + 1, str(texts[low].as_py())


def _held(texts: pyarrow.ChunkedArray, column: Column) -> bool:
    """Whether the column's type holds all of these values."""
    import pyarrow as pa
    from pyarrow import csv

    text = "\n".join("" if value is None else f'"{value}"' for value in texts.to_pylist()).encode() + b"\n"
    try:
        csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(column_names=["value"], block_size=len(text) + 1, use_threads=False),
            csv.ParseOptions(ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types={"value": column.type},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
    except pa.ArrowInvalid:
        return False
    return True


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """COPY's text in blocks of whole rows.

    :raises ExtractError: a row is larger than `MAX_ROW_BYTES`.
    """
    held: list[bytes] = []  # the beginning of a row whose end is not read yet
    size = quotes = 0  # bytes and quotes in `held`
    while piece := file.read(BLOCK_BYTES):
        # Find the last line end outside of quotes, and look at every byte only once.
        open_quote, end, newline = (quotes + piece.count(b'"')) % 2, len(piece), len(piece)
        while newline >= 0 and (newline == len(piece) or open_quote):
            newline = piece.rfind(b"\n", 0, end)
            open_quote ^= piece.count(b'"', max(newline, 0), end) % 2
            end = newline
        if newline >= 0:
            yield b"".join((*held, piece[: newline + 1]))
            piece, held, size, quotes = piece[newline + 1 :], [], 0, 0
        held.append(piece)
        size, quotes = size + len(piece), quotes + piece.count(b'"')
        if size > MAX_ROW_BYTES:
            raise ExtractError(
                f"A row is larger than {MAX_ROW_BYTES >> 20} MiB.", hint="Leave the large column out of the query."
            )
    if size:
        yield b"".join(held)


def _with_binary(table: pyarrow.Table, columns: Sequence[Column], schema: pyarrow.Schema) -> pyarrow.Table:
    """The table with its bytea columns converted from PostgreSQL's hexadecimal text to bytes."""
    import pyarrow as pa

    for number, column in enumerate(columns):
        if column.oid == _BYTEA:
            values = [None if v is None else bytes.fromhex(v[2:]) for v in table.column(number).to_pylist()]
            table = table.set_column(number, schema.field(number), pa.array(values, pa.binary()))
    return table


def _write_csv(cursor: Cursor, query: str, target: ObjectWriter) -> tuple[int, int]:
    lines, quoted = 0, False
    _described(cursor, query)
    with _Copy(cursor, query, header=True) as copy:
        while piece := copy.file.read(PIPE_BYTES):
            target.write(piece)
            for number, part in enumerate(piece.split(b'"')):
                quoted ^= number > 0
                lines += 0 if quoted else part.count(b"\n")
        sent = copy.rows()
    return lines - 1, sent


__all__ = ["Column", "ExtractError", "Extracted", "columns_of", "extract", "one_moment", "read_tables"]
