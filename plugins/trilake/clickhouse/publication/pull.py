"""The files of a plan as ClickHouse reads them: exactly these, by name, through the named collection of their bucket.

Files of Iceberg are split by shard and typed as the table is: they are read as the table's own types. Plain objects are
anybody's. Each shard reads all of a partition and keeps the rows of its bucket; a value that the table's type cannot
hold is an error and not another value; and what was read is what was pinned, by ETag.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import quote_name, quote_text
from trilake.errors import CountMismatchError
from trilake.lake.objects import is_plain_key
from trilake.lake.plan import DataFile, LoadPlan

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# What would change values without a word is an error instead.
STRICT: dict[str, Any] = {
    "insert_null_as_default": 0,
    "input_format_null_as_default": 0,
    "input_format_parquet_allow_missing_columns": 0,
    "s3_throw_on_zero_files_match": 1,
    "date_time_overflow_behavior": "throw",
    # a key such as d=2013-01-05/part.parquet would replace the file's own column d
    "use_hive_partitioning": 0,
    # the cache knows an object by a time of whole seconds
    "schema_inference_use_cache_for_s3": 0,
    # CSV: an empty field without quotes is NULL, and so is \N; "" is the empty text
    "input_format_with_names_use_header": 1,
    "input_format_csv_empty_as_default": 1,
    "format_csv_null_representation": "\\N",
}

# Of an insert that pulls, in rows and bytes: it gathers that much in memory before it writes a part; by default a
# million rows, so that a larger partition would take more memory.
PULL: dict[str, Any] = {
    **STRICT,
    "min_insert_block_size_rows": 65_536,
    "min_insert_block_size_bytes": 32 * 1024**2,
}

# Keys that are named in one statement, in characters: ClickHouse parses at most 262,144 bytes (max_query_size) of it.
MAX_SOURCE_CHARACTERS = 100_000
# Table functions beside each other in one statement, and bytes of their files: each has decoded rows at hand before
# anybody asks for them.
MAX_FUNCTIONS = 16
MAX_FUNCTIONS_BYTES = 4 * 1024**2

# Types whose empty text is a value; every other type reads an empty field as NULL.
_TEXT = re.compile(r"String|FixedString\(\d+\)|LowCardinality\((Fixed)?String(\(\d+\))?\)")
_FILE, _ETAG = "_trilake_file", "_trilake_etag"


class AuditError(CountMismatchError):
    """Staging is not what its source says. Nothing was published."""


@dataclass(frozen=True)
class Columns:
    """The columns that rows come in, as ClickHouse types them."""

    names: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def listed(self) -> str:
        return ", ".join(quote_name(name) for name in self.names)

    @property
    def structure(self) -> str:
        return ", ".join(f"{quote_name(n)} {t}" for n, t in zip(self.names, self.types, strict=True))

    @property
    def csv_structure(self) -> str:
        """Every field as text: numbers would be cut to size on the way in."""
        kinds = ("String" if _TEXT.fullmatch(kind) else "Nullable(String)" for kind in self.types)
        return ", ".join(f"{quote_name(n)} {kind}" for n, kind in zip(self.names, kinds, strict=True))

    def accurate(self, *, of_csv: bool) -> str:
        """Each column as the table's type, or an error: of a number out of range, a NULL where the table has none."""

        def column(name: str, kind: str) -> str:
            value = quote_name(name)
            if of_csv and _TEXT.fullmatch(kind):
                value = f"nullIf({value}, {quote_text(str(STRICT['format_csv_null_representation']))})"
            return f"accurateCast({value}, {quote_text(kind)}) AS {quote_name(name)}"

        return ", ".join(column(name, kind) for name, kind in zip(self.names, self.types, strict=True))


@dataclass(frozen=True)
class Sums:
    """Rows, and the sum of their hashes (modulo 2^64)."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.rows + other.rows, (self.checksum + other.checksum) % 2**64)


def sources(plan: LoadPlan, files: Sequence[DataFile], columns: Columns, *, shard: int, shards: int) -> list[str]:
    """The rows of these files that are the shard's, as table expressions, each small enough for a statement."""
    for file in files:
        if not is_plain_key(file.key):
            raise AuditError(f"The key {file.key!r} cannot be named to ClickHouse without being read as a pattern.")
    where = ""
    if plan.mixed:
        where = f" WHERE icebergBucket({shards}, {quote_name(plan.data_set.shard_by or '')}) = {shard - 1}"
    statements: list[list[str]] = []
    size = length = 0
    for some in _together(plan, files):
        part, more = _part(plan, [file.key for file in some], columns), sum(file.size for file in some)
        full = statements and (
            len(statements[-1]) == MAX_FUNCTIONS
            or size + more > MAX_FUNCTIONS_BYTES
            or length + len(part) > MAX_SOURCE_CHARACTERS
        )
        if full or not statements:
            statements.append([])
            size = length = 0
        statements[-1].append(part)
        size, length = size + more, length + len(part)
    return [f"(SELECT * FROM ({' UNION ALL '.join(parts)}){where})" for parts in statements]


def _together(plan: LoadPlan, files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    """The files that one s3() reads, as many at a time as it has threads, however many they are."""
    some: list[DataFile] = []
    length = 0
    for file in files:
        # of plain Parquet files s3() asks the first what types all of them have; a comma parts two keys
        alone = plan.plain == "Parquet" or "," in file.key
        if some and (alone or length + len(file.key) > MAX_SOURCE_CHARACTERS):
            yield some
            some, length = [], 0
        if alone:
            yield [file]
        else:
            some.append(file)
            length += len(file.key) + 1
    if some:
        yield some


def _part(plan: LoadPlan, keys: Sequence[str], columns: Columns) -> str:
    name = keys[0] if len(keys) == 1 else f"{{{','.join(keys)}}}"
    where = f"s3({quote_name(plan.bucket)}, filename = {quote_text(name)}"
    if plan.plain is None:
        structure = quote_text(columns.structure)
        return f"SELECT {columns.listed} FROM {where}, format = 'Parquet', structure = {structure})"
    of_csv = plan.plain == "CSVWithNames"
    # Parquet says its own types; what is read as the table's would be cut to size without a word
    structure = f", structure = {quote_text(columns.csv_structure)}" if of_csv else ""
    return (
        f"SELECT {columns.accurate(of_csv=of_csv)}, _path AS {_FILE}, _etag AS {_ETAG} "
        f"FROM {where}, format = {quote_text(plan.plain)}{structure})"
    )


def sums(client: Client, source: str, columns: Columns) -> Sums:
    """The hash is of a tuple: of plain arguments it is NULL as soon as one of them is, and sum() passes over NULLs."""
    sql = f"SELECT count(), sum(cityHash64(tuple({columns.listed}))) FROM {source}"
    rows, checksum = client.query(sql, settings=STRICT).result_rows[0]
    return Sums(int(rows), int(checksum))


def staged(client: Client, staging: str, columns: Columns) -> tuple[Sums, set[str]]:
    """What a staging table holds, as `sums`, and the ids of the partitions that its rows are of; in one pass."""
    sql = f"SELECT count(), sum(cityHash64(tuple({columns.listed}))), groupUniqArray(_partition_id) FROM {staging}"
    rows, checksum, partitions = client.query(sql, settings=STRICT).result_rows[0]
    return Sums(int(rows), int(checksum)), set(partitions)


def sums_by_file(
    client: Client, source: str, bucket: str, files: Sequence[DataFile], columns: Columns
) -> dict[str, Sums]:
    """As `sums`, of each plain object that has rows here, by its key.

    :raises AuditError: an object is not the one that was pinned.
    """
    sql = (
        f"SELECT {_FILE}, groupUniqArray({_ETAG}), count(), sum(cityHash64(tuple({columns.listed}))) "
        f"FROM {source} GROUP BY {_FILE}"
    )
    found, named = {}, {f"{bucket}/{file.key}": file for file in files}
    for path, etags, rows, checksum in client.query(sql, settings=STRICT).result_rows:
        file = named[path]
        if file.etag and {etag.strip('"') for etag in etags} != {file.etag}:
            raise AuditError(f"{file.key} was changed while it was read.", hint="Run the task again.")
        found[file.key] = Sums(int(rows), int(checksum))
    return found


def check_header(plan: LoadPlan, file: DataFile, columns: Columns, client: Client, _shard: object) -> None:
    """ClickHouse takes a column that a CSV file does not have for empty.

    :raises AuditError: its first line does not name every column of the table.
    """
    sql = (
        f"SELECT line FROM s3({quote_name(plan.bucket)}, filename = {quote_text(file.key)}, format = 'LineAsString', "
        "structure = 'line String') LIMIT 1"
    )
    lines = client.query(sql, settings=STRICT).result_rows
    header = next(csv.reader([lines[0][0].removeprefix("\ufeff")]), []) if lines else []
    if missing := [name for name in columns.names if name not in header]:
        raise AuditError(
            f"{file.key} has no column {', '.join(missing)}: its first line is {','.join(header)[:200]!r}.",
            hint="Its first line has to name every column of the table.",
        )
