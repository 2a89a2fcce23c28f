"""The result of a query of PostgreSQL as an object of S3, streamed: COPY on one side, a multipart upload on the other.

Memory is bounded by a block of rows (`BLOCK_BYTES`) and a part of the upload, however large the result. COPY's own text
is what is read: values arrive as PostgreSQL writes them, NULL apart from the empty text, numeric with every digit.
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
from trilake.s3 import ObjectWriter

if TYPE_CHECKING:
    import pyarrow
    from mypy_boto3_s3 import S3Client
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

Format = Literal["parquet", "csv"]

BLOCK_BYTES = 2 << 20
"""Of COPY's text that become one batch of rows, and one row group of Parquet."""
MAX_ROW_BYTES = 64 << 20
"""Of a single row's text, which is in memory as a whole."""
PIPE_BYTES = 1 << 20

# All partitions are read as of one moment.
_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
# How PostgreSQL writes values must not depend on the session's settings.
_FORMS = (
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL DateStyle = 'ISO, YMD'",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL client_encoding = 'UTF8'",
)
_NUMERIC, _BYTEA = 1700, 17
# Spark's and Iceberg's limit, too
_MAX_DIGITS = 38
# PostgreSQL keeps a numeric's scale in 11 bits, with a sign.
_SCALE_VALUES = 2048
_UNREAD_VALUE = re.compile(r"In CSV column #(\d+):")


class ExtractError(TrilakeError):
    """A query whose result cannot be written."""


@dataclass(frozen=True)
class Column:
    """A column of a result.

    :param oid: of its type in PostgreSQL.
    """

    name: str
    oid: int
    type: pyarrow.DataType


@dataclass(frozen=True)
class Extracted:
    """One object. `bytes` are the object's."""

    key: str
    etag: str
    rows: int
    bytes: int


@contextmanager
def one_moment(connection: Connection) -> Iterator[Cursor]:
    """A cursor whose statements all see the database as it was when the first one began."""
    with connection.cursor() as cursor:
        cursor.execute(_ONE_MOMENT)
        yield cursor


def read_tables(cursor: Cursor, query: str) -> Iterator[pyarrow.Table]:
    """The result of a query as Arrow tables, one for each block of rows; at least one, also of a result without rows.

    :param query: without parameters.
    :raises ConfigurationError: a column that Arrow has no equal of.
    :raises ExtractError: a value that its column's type cannot hold, or a row larger than `MAX_ROW_BYTES`.
    :raises CountMismatchError: what was read is not what PostgreSQL sent.
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
            raise CountMismatchError(f"PostgreSQL sent {sent} rows, {rows} were read.")


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
    """Write a query's result to one object, which is replaced as a whole or stays.

    Parquet has the columns' types; CSV is as PostgreSQL writes it, with a header, NULL as nothing and the empty text
    as ``""``. A result without rows is an object without rows.

    :param cursor: see `one_moment`.
    :param parameters: bound as ``%(name)s``; a percent sign of the query is written twice.
    :raises ConfigurationError: a column that Parquet has no equal of.
    :raises ExtractError: a value that its column's type in Parquet cannot hold, or a row larger than `MAX_ROW_BYTES`.
    :raises CountMismatchError: what was written is not what PostgreSQL sent.
    """
    for statement in _FORMS:
        cursor.execute(statement)
    query = cursor.mogrify(sql.strip().rstrip(";"), dict(parameters)).decode()
    with ObjectWriter(client, bucket, key) as target:
        write = _write_parquet if file_format == "parquet" else _write_csv
        rows, sent = write(cursor, query, target)
        if rows != sent:
            raise CountMismatchError(f"PostgreSQL sent {sent} rows for s3://{bucket}/{key}, {rows} were written.")
        etag = target.commit()
    return Extracted(key, etag, rows, target.size)


def columns_of(cursor: Cursor, query: str) -> list[Column]:
    """The columns that a query gives, without running it.

    :raises ConfigurationError: two have one name, or Parquet has no equal of a type.
    """
    cursor.execute(f"SELECT * FROM (\n{query}\n) AS described LIMIT 0")
    described = cursor.description or ()
    names = [column.name for column in described]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"The query gives the column {twice[0]} twice.", hint="Rename one with AS.")
    cursor.execute("SELECT oid FROM pg_type WHERE typtype = 'e' AND oid = ANY(%s)", ([c.type_code for c in described],))
    enums = {oid for (oid,) in cursor.fetchall()}
    return [
        Column(c.name, c.type_code, _arrow_type(c.name, c.type_code, c.precision, c.scale, c.type_code in enums))
        for c in described
    ]


def _arrow_type(name: str, oid: int, precision: int | None, scale: int | None, enum: bool) -> pyarrow.DataType:
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
            f"Column {name} has a type (oid {oid}) that Parquet has no equal of here.",
            hint="Cast it in the query, to text or to jsonb.",
        )
    return pa.string() if enum else types[oid]


def _decimal_type(name: str, precision: int | None, scale: int | None) -> pyarrow.DataType:
    import pyarrow as pa

    if not precision or precision > 1000 or scale is None:
        raise ConfigurationError(
            f"Column {name} is a numeric of any size, as sums of numbers are.",
            hint="Cast it in the query, such as ::numeric(18, 2), ::bigint or ::text.",
        )
    if scale >= _SCALE_VALUES // 2:  # numeric(2, -3): thousands
        precision, scale = precision + _SCALE_VALUES - scale, 0
    precision = max(precision, scale)
    if precision > _MAX_DIGITS:
        raise ConfigurationError(
            f"Column {name} has {precision} digits, more than {_MAX_DIGITS}.", hint="Cast it to text."
        )
    return pa.decimal128(precision, scale)


# --- COPY, and what reads it


class _Copy:
    """COPY of a query, by a thread, into a pipe that is read here."""

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
            self._cursor.connection.cancel()  # whoever left early does not wait for the query
            self._thread.join(1)

    def rows(self) -> int:
        """Rows that PostgreSQL says it sent; to be asked when the pipe has come to its end."""
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
                    self.error = e  # known before the pipe comes to its end
        except OSError as e:
            self.error = self.error or e


def _schema(columns: Sequence[Column]) -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema([(column.name, column.type) for column in columns])


def _parsed(copy: _Copy, columns: Sequence[Column]) -> Iterator[pyarrow.Table]:
    """COPY's text as Arrow tables, a block of rows each."""
    import pyarrow as pa
    from pyarrow import csv

    schema = _schema(columns)
    # what Arrow does not read from text itself is read as text first
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
                # a row of one NULL is an empty line
                csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
                convert,
            )
        except pa.ArrowInvalid as e:
            # a text that ends in the middle of a row has a reason
            raise copy.error or _readable(e, columns) from None
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


def _readable(error: Exception, columns: Sequence[Column]) -> ExtractError:
    text = " ".join(str(error).split())
    # without the value: it may be anything
    found = _UNREAD_VALUE.search(text)
    column = columns[int(found[1])] if found else None
    where = f"Column {column.name} has a value that {column.type}" if column else "A value is there that its type"
    return ExtractError(
        f"{where} cannot hold.",
        hint="Infinity, NaN and years beyond 9999 have no equal: cast the column to text.",
    )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """COPY's text in blocks of whole rows.

    :raises ExtractError: a row is larger than `MAX_ROW_BYTES`.
    """
    held: list[bytes] = []  # no row ends in it
    size = quotes = 0  # of what is held
    while piece := file.read(BLOCK_BYTES):
        # the last line end that no open quote precedes; every byte is looked at once
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
            raise ExtractError(f"A row is larger than {MAX_ROW_BYTES >> 20} MiB.", hint="Leave the large column out.")
    if size:
        yield b"".join(held)


def _with_binary(table: pyarrow.Table, columns: Sequence[Column], schema: pyarrow.Schema) -> pyarrow.Table:
    """Bytes of PostgreSQL's hexadecimal text."""
    import pyarrow as pa

    for number, column in enumerate(columns):
        if column.oid == _BYTEA:
            values = [None if v is None else bytes.fromhex(v[2:]) for v in table.column(number).to_pylist()]
            table = table.set_column(number, schema.field(number), pa.array(values, pa.binary()))
    return table


def _write_csv(cursor: Cursor, query: str, target: ObjectWriter) -> tuple[int, int]:
    lines, quoted = 0, False
    with _Copy(cursor, query, header=True) as copy:
        while piece := copy.file.read(PIPE_BYTES):
            target.write(piece)
            for number, part in enumerate(piece.split(b'"')):
                quoted ^= number > 0
                lines += 0 if quoted else part.count(b"\n")
        sent = copy.rows()
    return lines - 1, sent


__all__ = ["Column", "ExtractError", "Extracted", "columns_of", "extract", "one_moment", "read_tables"]
