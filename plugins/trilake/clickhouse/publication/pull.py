"""How ClickHouse reads the files of a plan: exactly these files, by name, through the named collection of their bucket.

The two kinds of plan are read differently. Each file of an Iceberg table belongs to one shard and has the table's
types, so each shard reads its own files as those types (`IcebergPull`). Plain objects can come from any program. Each
shard reads all objects of a partition and keeps the rows of its bucket. A value that the table's type cannot hold is an
error, and each object must still have the ETag that the plan pinned (`ObjectsPull`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from trilake.clickhouse.cluster import ClickHouseError, Cluster, error_of, quote_name, quote_text
from trilake.clickhouse.publication.columns import CSV_NULL, AuditError, Columns
from trilake.clickhouse.publication.types import bare, can_be_nullable, holds_null
from trilake.lake.file_columns import same
from trilake.lake.objects import is_plain_key
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Settings that make ClickHouse raise an error where it would silently change values.
STRICT: dict[str, Any] = {
    "insert_null_as_default": 0,
    "input_format_null_as_default": 0,
    "input_format_parquet_allow_missing_columns": 0,
    "s3_throw_on_zero_files_match": 1,
    "date_time_overflow_behavior": "throw",
    # a key such as d=2013-01-05/part.parquet would replace the file's own column d
    "use_hive_partitioning": 0,
    # the cache detects a changed object only by its time, in whole seconds
    "schema_inference_use_cache_for_s3": 0,
    # CSV: an empty field without quotes is NULL, and so is \N; "" is the empty string
    "input_format_with_names_use_header": 1,
    "input_format_csv_empty_as_default": 1,
    "format_csv_null_representation": CSV_NULL,
    "input_format_csv_trim_whitespaces": 0,
    # without it, every third number with a fraction is a neighbour of the nearest one
    "precise_float_parsing": 1,
    "output_format_decimal_trailing_zeros": 0,
    # the conversions of a wide table are long
    "max_query_size": 64 * 1024**2,
    "max_ast_elements": 1_000_000,
    "max_expanded_ast_elements": 10_000_000,
}

# Settings of an insert that pulls: it collects this many rows or bytes in memory before it writes a part. Default:
# about a million rows, so a larger partition would take more memory.
PULL: dict[str, Any] = {
    **STRICT,
    "min_insert_block_size_rows": 65_536,
    "min_insert_block_size_bytes": 32 * 1024**2,
}

# The most characters of keys in one statement.
MAX_SOURCE_CHARACTERS = 100_000
# The most table functions in one statement, and bytes of their files. Each function decodes rows ahead into memory.
MAX_FUNCTIONS = 16
MAX_FUNCTIONS_BYTES = 4 * 1024**2

# What ClickHouse says of a file that is not as the table needs it: no such column, another type, a value that the type
# does not have.
_CONTENT_ERRORS = (6, 8, 27, 53, 70, 117, 321, 691)
_DATE_OUT_OF_RANGE = re.compile(r"Input value (?P<days>-?\d+) is out of allowed Date range")
_READ_COLUMN = re.compile(r"column: (?P<column>.+?): \(in file/uri (?P<path>.+?)\)")


@dataclass(frozen=True)
class Sums:
    """Rows, and the sum of their hashes (modulo 2^64)."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.rows + other.rows, (self.checksum + other.checksum) % 2**64)


class Pull(ABC):
    """Reads the files of one plan into the columns of its table.

    :param shards: how many shards the cluster has.
    :cvar settings: settings of ClickHouse for statements that read from `sources`, beside `STRICT`.
    """

    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, plan: LoadPlan, columns: Columns, shards: int) -> None:
        self.plan = plan
        self.columns = columns
        self.shards = shards

    def check_before(self, cluster: Cluster, partitions: Sequence[PartitionPlan]) -> None:  # noqa: B027 - optional
        """Check the files before any row is read.

        :raises AuditError: a file cannot be loaded.
        """

    def sources(self, files: Sequence[DataFile], shard: int) -> list[str]:
        """The rows of `files` that belong to shard `shard` (from 1): table expressions, one for each statement.

        :raises AuditError: s3() would not take a key literally.
        """
        for file in files:
            if not is_plain_key(file.key):
                raise AuditError(
                    f"ClickHouse could read the key {file.key!r} as a pattern or as another key, so the file cannot be "
                    "loaded.",
                    hint="Write it again with only letters, digits and _ . = + , - in its key.",
                )
        statements: list[list[str]] = []
        size = length = 0
        for together in self._together(files):
            part, more = self._select(together), sum(file.size for file in together)
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
        where = self._where(shard)
        return [f"(SELECT * FROM ({' UNION ALL '.join(parts)}){where})" for parts in statements]

    @abstractmethod
    def sums(self, client: Client, source: str, files: Sequence[DataFile]) -> tuple[Sums, Mapping[str, int]]:
        """The sums of a source's rows. Also the rows of each file by key, if each file is counted separately."""

    def explain(self, error: Exception, client: Client, files: Sequence[DataFile]) -> AuditError | None:  # noqa: B027
        """The value that made a statement fail, if `error` says that there is one."""

    def files_of(self, partition: PartitionPlan, shard: int) -> tuple[DataFile, ...]:
        """The files that shard `shard` (from 1) reads: those of its bucket, and those that are not split by shard."""
        return partition.of_shard(shard)

    def check_shard(self, where: str, files: Sequence[DataFile], rows: int) -> None:  # noqa: B027 - optional
        """:raises AuditError: a shard's staging table does not have the same number of rows as its files."""

    def check_partition(  # noqa: B027 - optional
        self, partition: PartitionPlan, rows: Sequence[int], by_file: Sequence[Mapping[str, int]]
    ) -> None:
        """Check the rows of the shards together.

        :param rows: of each shard.
        :param by_file: of each shard: rows of each file by key, if each file is counted separately.
        :raises AuditError: they are not the counted rows of the partition, or of each file.
        """

    @abstractmethod
    def _select(self, files: Sequence[DataFile]) -> str:
        """A SELECT of all rows of some files that can be read together."""

    @abstractmethod
    def _alike(self, file: DataFile, other: DataFile) -> bool:
        """Whether one s3() can read both files."""

    def _where(self, shard: int) -> str:
        return ""

    def _of_shard(self, shard: int) -> str:
        """A condition: the rows of one shard, by the bucket of their shard key."""
        return f" WHERE icebergBucket({self.shards}, {quote_name(self.plan.data_set.shard_by or '')}) = {shard - 1}"

    @property
    def _nested(self) -> list[str]:
        """The columns of the table that are arrays, maps or tuples."""
        return [
            name
            for name, kind in zip(self.columns.names, self.columns.types, strict=True)
            if not can_be_nullable(bare(kind))
        ]

    def _refuse_nulls(self, file: DataFile, nested: Sequence[str]) -> None:
        """:raises AuditError: a nested column of a file has NULL, or it is not known. ClickHouse would read it as an
        empty value.
        """
        if nested and file.null_rows is None:
            raise AuditError(
                f"s3://{self.plan.bucket}/{file.key}: it is not known whether column {nested[0]} has NULL, which "
                "ClickHouse would read as an empty value.",
                hint="Nothing was published. Write Parquet, and make the plan of a snapshot with with_columns=True.",
            )
        if found := [name for name in nested if name in (file.null_rows or {})]:
            raise AuditError(
                f"s3://{self.plan.bucket}/{file.key}: column {found[0]} has an array, map or struct that is NULL in "
                f"row {(file.null_rows or {})[found[0]]}, and ClickHouse has no such value.",
                hint="Nothing was published. Write an empty one at the source.",
            )

    def _s3(self, keys: Sequence[str], file_format: str, structure: str = "") -> str:
        name = keys[0] if len(keys) == 1 else f"{{{','.join(keys)}}}"
        typed = f", structure = {quote_text(structure)}" if structure else ""
        return (
            f"s3({quote_name(self.plan.bucket)}, filename = {quote_text(name)}, format = {quote_text(file_format)}"
            f"{typed})"
        )

    def _together(self, files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
        """Groups of files, one for each s3(). However many files an s3() names, it reads one at a time per thread."""
        together: list[DataFile] = []
        length = 0
        for file in files:
            if together and not (
                self._alike(together[-1], file)
                and "," not in together[-1].key + file.key  # a comma separates two keys
                and length + len(file.key) <= MAX_SOURCE_CHARACTERS
            ):
                yield together
                together, length = [], 0
            together.append(file)
            length += len(file.key) + 1
        if together:
            yield together


class IcebergPull(Pull):
    """Parquet files of an Iceberg table, with the table's types. Each belongs to one shard.

    If the table was written for another number of shards, each shard reads all files of a partition, and keeps the rows
    of its bucket.
    """

    @property
    def _mixed(self) -> bool:
        return self.plan.buckets not in (None, self.shards)

    def files_of(self, partition: PartitionPlan, shard: int) -> tuple[DataFile, ...]:
        return partition.files if self._mixed else partition.of_shard(shard)

    def check_partition(
        self, partition: PartitionPlan, rows: Sequence[int], by_file: Sequence[Mapping[str, int]]
    ) -> None:
        if self._mixed and sum(rows) != partition.rows:
            raise AuditError(
                f"{self.plan.data_set.table}, partition {partition.partition}: the snapshot has {partition.rows} rows, "
                f"but the shards together hold {sum(rows)}.",
                hint="Nothing was published. Run the task again.",
            )

    def _where(self, shard: int) -> str:
        return self._of_shard(shard) if self._mixed else ""

    def explain(self, error: Exception, client: Client, files: Sequence[DataFile]) -> AuditError | None:
        if not isinstance(error_of(None, error), ClickHouseError):
            return None
        if told := _unreadable(error):
            return told
        required = [(name, kind) for name, kind in self._typed if not holds_null(kind) and can_be_nullable(kind)]
        for file in files:
            inside = {name: name if file.names is None else file.names.get(name) for name, _ in required}
            present = [(name, inside[name], kind) for name, kind in required if inside[name]]
            if not present:
                continue
            structure = ", ".join(f"{quote_name(str(there))} Nullable({kind})" for _, there, kind in present)
            counts = ", ".join(f"countIf(isNull({quote_name(str(there))}))" for _, there, _ in present)
            sql = f"SELECT {counts} FROM {self._s3([file.key], 'Parquet', structure)}"
            nulls = client.query(sql, settings=STRICT).result_rows[0]
            for (name, _, kind), number in zip(present, nulls, strict=True):
                if number:
                    return AuditError(
                        f"s3://{self.plan.bucket}/{file.key}: column {name} is NULL in {number} rows, and {kind} "
                        "has no NULL.",
                        hint="Nothing was published. Make the column Nullable in a step of sql/clickhouse, or give "
                        "every row a value in the job.",
                    )
        return None

    def sums(self, client: Client, source: str, files: Sequence[DataFile]) -> tuple[Sums, Mapping[str, int]]:
        return sums(client, source, self.columns), {}

    def check_shard(self, where: str, files: Sequence[DataFile], rows: int) -> None:
        if not self._mixed and rows != (expected := sum(file.rows for file in files)):
            raise AuditError(
                f"{where}: the snapshot has {expected} rows, but staging holds {rows}.",
                hint="Nothing was published. Run the task again.",
            )

    def check_before(self, cluster: Cluster, partitions: Sequence[PartitionPlan]) -> None:
        required = [
            name for name, kind in zip(self.columns.names, self.columns.types, strict=True) if not holds_null(kind)
        ]
        for file in (file for partition in partitions for file in partition.files if file.rows):
            if file.names is not None and (missing := [name for name in required if name not in file.names]):
                raise AuditError(
                    f"s3://{self.plan.bucket}/{file.key} has no column {missing[0]}, added to the lake later. "
                    f"Its rows have NULL there, and the column of {self.plan.data_set.table} has no NULL.",
                    hint="Nothing was published. Run the window of that file again, or make the column Nullable in a "
                    "step of sql/clickhouse (an Array, Map or Tuple cannot be Nullable).",
                )
        self._check_nested(partitions)

    def _check_nested(self, partitions: Sequence[PartitionPlan]) -> None:
        """Refuse arrays, maps and structs that are NULL in columns without sums.

        With sums, the comparison of the sums finds them.
        """
        for partition in partitions:
            unsummed = [name for name in self._nested if name not in self.plan.sums.get(partition.partition, {})]
            for file in (file for file in partition.files if file.rows):
                self._refuse_nulls(file, unsummed)

    def _select(self, files: Sequence[DataFile]) -> str:
        keys, names = [file.key for file in files], files[0].names
        if names is None or same(names, self.columns.names):
            return f"SELECT {self.columns.listed} FROM {self._s3(keys, 'Parquet', self.columns.structure)}"
        # Two steps, because a name may be another column's name in the file.
        present = [(name, kind) for name, kind in self._typed if name in names]
        structure = ", ".join(f"{quote_name(names[name])} {kind}" for name, kind in present)
        inner = ", ".join(f"{quote_name(names[name])} AS _{n}" for n, (name, _) in enumerate(present)) or "1"
        number = {name: n for n, (name, _) in enumerate(present)}
        outer = ", ".join(
            (f"_{number[name]}" if name in number else f"CAST(NULL, {quote_text(kind)})") + f" AS {quote_name(name)}"
            for name, kind in self._typed
        )
        return f"SELECT {outer} FROM (SELECT {inner} FROM {self._s3(keys, 'Parquet', structure)})"

    @property
    def _typed(self) -> list[tuple[str, str]]:
        return list(zip(self.columns.names, self.columns.types, strict=True))

    def _alike(self, file: DataFile, other: DataFile) -> bool:
        return file.names == other.names


def _unreadable(error: Exception) -> AuditError | None:
    """ClickHouse's error about the content of a file, with the next step; None: the error is about another thing."""
    told = error_of(None, error)
    if not isinstance(told, ClickHouseError) or told.code not in _CONTENT_ERRORS:
        return None
    place = _READ_COLUMN.search(told.message)
    if place and (found := _DATE_OUT_OF_RANGE.search(told.message)):
        return AuditError(
            f"s3://{place['path']}: column {place['column']} has the date {_day(int(found['days']))}, and Date holds "
            "1970-01-01 to 2149-06-06.",
            hint="Nothing was published. Make it a Date32 in a step of sql/clickhouse, or correct it in the job.",
        )
    return AuditError(
        f"A file does not fit the table. {told.message}",
        hint="Nothing was published. Compare the types of the columns in the lake and in ClickHouse.",
    )


def _day(days: int) -> str:
    """A number of days since 1970-01-01 as a date."""
    try:
        return (date(1970, 1, 1) + timedelta(days)).isoformat()
    except OverflowError:
        return f"{days} days after 1970-01-01"


def sums(client: Client, source: str, columns: Columns) -> Sums:
    """The sums of a source's rows. Each row's hash is of a tuple: without the tuple, the hash of a row with a NULL is
    NULL, and sum() ignores it.
    """
    sql = f"SELECT count(), sum(cityHash64(tuple({columns.listed}))) FROM {source}"
    rows, checksum = client.query(sql, settings=STRICT).result_rows[0]
    return Sums(int(rows), int(checksum))


def staged(client: Client, staging: str, columns: Columns) -> tuple[Sums, set[str]]:
    """The sums of a staging table, see `sums`, and the ids of its rows' partitions, in one query."""
    sql = f"SELECT count(), sum(cityHash64(tuple({columns.listed}))), groupUniqArray(_partition_id) FROM {staging}"
    rows, checksum, partitions = client.query(sql, settings=STRICT).result_rows[0]
    return Sums(int(rows), int(checksum)), set(partitions)
