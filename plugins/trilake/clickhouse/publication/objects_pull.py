"""How ClickHouse reads plain objects, which can come from any program: each value is converted exactly, or refused."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import ClickHouseError, Cluster, error_of, quote_name, quote_text
from trilake.clickhouse.publication.columns import CSV_NULL, AuditError, Columns, is_text
from trilake.clickhouse.publication.pull import STRICT, Pull, Sums
from trilake.clickhouse.publication.values import Conversion, NoConversionError, from_text, from_value
from trilake.lake.plan import DataFile, LoadPlan, PartitionPlan

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_FILE, _ETAG = "_trilake_file", "_trilake_etag"
# An error shows so much of a value.
_SHOWN_LETTERS = 100
_GZIP = "1f8b"  # how such a file begins


class ObjectsPull(Pull):
    """Plain Parquet or CSV objects. Each may hold rows of every shard, and has its own types."""

    # a time out of range is found by comparing the converted value, so that the error can name it
    settings = {"date_time_overflow_behavior": "ignore"}

    def __init__(self, plan: LoadPlan, columns: Columns, shards: int) -> None:
        super().__init__(plan, columns, shards)
        self._by_key: dict[str, dict[str, Conversion]] = {}

    @property
    def _csv(self) -> bool:
        return self.plan.plain == "CSVWithNames"

    @property
    def _mixed(self) -> bool:
        """Whether an object holds rows of several shards. Of a dimension table every shard has a full copy."""
        return self.plan.data_set.grain is not None

    def check_before(self, cluster: Cluster, partitions: Sequence[PartitionPlan]) -> None:
        files, shards = [file for partition in partitions for file in partition.files], cluster.shards
        check = self._check_header if self._csv else self._check_types
        cluster.on_shards([(shards[n % len(shards)], partial(check, file)) for n, file in enumerate(files)])

    def sums(self, client: Client, source: str, files: Sequence[DataFile]) -> tuple[Sums, Mapping[str, int]]:
        by_file = sums_by_file(client, source, self.plan.bucket, files, self.columns, self.settings)
        return sum(by_file.values(), Sums()), {key: of_file.rows for key, of_file in by_file.items()}

    def check_partition(
        self, partition: PartitionPlan, rows: Sequence[int], by_file: Sequence[Mapping[str, int]]
    ) -> None:
        name = f"{self.plan.data_set.table}, partition {partition.partition}"
        keyless = f" A row without {self.plan.data_set.shard_by} belongs to no shard." if self._mixed else ""
        for file in partition.files:
            of_file = [shard.get(file.key, 0) for shard in by_file]
            for total in [sum(of_file)] if self._mixed else of_file:
                if total != file.rows:
                    raise AuditError(
                        f"{name}: s3://{self.plan.bucket}/{file.key} should have {file.rows} rows, but "
                        f"{total} were read.",
                        hint=f"Nothing was published. Count its rows again.{keyless}",
                    )

    def explain(self, error: Exception, client: Client, files: Sequence[DataFile]) -> AuditError | None:
        if not isinstance(error_of(None, error), ClickHouseError):
            return None
        for file in files:
            conversions = self._conversions(file.key)
            exact = [conversion.exact for conversion in conversions.values()]
            shown = ", ".join(f"left(toString({quote_name(name)}), {_SHOWN_LETTERS})" for name in conversions)
            sql = (
                f"SELECT [{', '.join(exact)}], [{shown}] FROM {self._objects([file])} "
                f"WHERE NOT ({' AND '.join(exact)}) LIMIT 1"
            )
            try:
                rows = client.query(sql, settings={**STRICT, **self.settings}).result_rows
            except Exception as e:
                if not isinstance(unreadable := error_of(None, e), ClickHouseError):
                    raise
                return AuditError(
                    f"s3://{self.plan.bucket}/{file.key} cannot be read as {self.plan.plain}. {unreadable.message}",
                    hint="Nothing was published. Correct the file.",
                )
            if rows:
                flags, values = rows[0]
                number = next(n for n, flag in enumerate(flags) if not flag)
                name, value = self.columns.names[number], values[number]
                return AuditError(
                    f"s3://{self.plan.bucket}/{file.key}: column {name} has "
                    + ("no value" if value is None else f"the value {value!r}")
                    + f", which {self.columns.types[number]} cannot hold exactly.",
                    hint="Nothing was published. Correct the file, or change the column's type in a step of "
                    "sql/clickhouse.",
                )
        return None

    def _select(self, files: Sequence[DataFile]) -> str:
        conversions = self._conversions(files[0].key)
        listed = ", ".join(
            f"CAST({conversion.value}, {quote_text(kind)}) AS {quote_name(name)}"
            for (name, conversion), kind in zip(conversions.items(), self.columns.types, strict=True)
        )
        exact = " AND ".join(conversion.exact for conversion in conversions.values())
        # Two steps: in one, the condition would mean the converted columns, which have the same names.
        checked = (
            f"SELECT {self.columns.listed}, _path AS {_FILE}, _etag AS {_ETAG} FROM {self._objects(files)} "
            f"WHERE NOT throwIf(NOT ({exact}), 'A value does not fit the type of its column')"
        )
        return f"SELECT {listed}, {_FILE}, {_ETAG} FROM ({checked})"

    def _objects(self, files: Sequence[DataFile]) -> str:
        # Keep the Parquet file's own types: reading it as the table's types could change values without an error.
        structure = self.columns.csv_structure if self._csv else ""
        return self._s3([file.key for file in files], str(self.plan.plain), structure)

    def _conversions(self, key: str) -> dict[str, Conversion]:
        """How each column of an object is read. Of CSV all objects are read alike."""
        found = self._by_key.get("" if self._csv else key)
        if found is None:
            raise RuntimeError(f"{key} was not checked before it is read.")
        return found

    def _alike(self, file: DataFile, other: DataFile) -> bool:
        # s3() takes the types of all Parquet files from the first one
        return self._csv

    def _where(self, shard: int) -> str:
        return self._of_shard(shard) if self._mixed else ""

    def _check_header(self, file: DataFile, client: Client, _shard: object) -> None:
        """Check the header of a CSV file, because ClickHouse would read a missing column as empty.

        :raises AuditError: the file's first line does not name every column of the table once.
        """
        # The driver would show bytes that are not text as hexadecimal digits.
        line = f"toValidUTF8(line), startsWith(line, unhex('{_GZIP}'))"
        sql = f"SELECT {line} FROM {self._s3([file.key], 'LineAsString', 'line String')} LIMIT 1"
        lines = self._read_first(file, client, sql)
        if lines and lines[0][1]:
            raise AuditError(
                f"s3://{self.plan.bucket}/{file.key} is compressed with gzip, but its name does not end in .gz.",
                hint="Nothing was published. Name the object .csv.gz, or write it without compression.",
            )
        header = next(csv.reader([lines[0][0].removeprefix("\ufeff")]), []) if lines else []
        shown = f"its first line is {','.join(header)[:200]!r}."
        if missing := [name for name in self.columns.names if name not in header]:
            raise AuditError(
                f"{file.key} has no column {', '.join(missing)}: {shown}",
                hint="Nothing was published. The first line must name every column of the table.",
            )
        if twice := [name for name in self.columns.names if header.count(name) > 1]:
            raise AuditError(
                f"{file.key} has the column {twice[0]} twice: {shown}",
                hint="Nothing was published. Remove one, or rename it.",
            )
        if "" not in self._by_key:

            def text(name: str, kind: str) -> str:
                quoted = quote_name(name)
                return f"nullIf({quoted}, {quote_text(CSV_NULL)})" if is_text(kind) else quoted

            self._by_key[""] = self._convert(file, lambda name, kind: from_text(text(name, kind), kind))

    def _check_types(self, file: DataFile, client: Client, _shard: object) -> None:
        """Compare the types of a Parquet file with those of the table.

        :raises AuditError: the file has no such column, or its values are never values of the table's type.
        """
        sql = f"DESCRIBE TABLE {self._s3([file.key], str(self.plan.plain))}"
        found = {row[0]: row[1] for row in self._read_first(file, client, sql)}
        if missing := [name for name in self.columns.names if name not in found]:
            raise AuditError(
                f"{file.key} has no column {', '.join(missing)}. Its columns are {', '.join(found)[:200]}.",
                hint="Nothing was published. The file must have every column of the table.",
            )
        self._refuse_nulls(file, self._nested)
        self._by_key[file.key] = self._convert(file, lambda name, kind: from_value(quote_name(name), found[name], kind))

    def _read_first(self, file: DataFile, client: Client, sql: str) -> Sequence[Sequence[Any]]:
        """The result of the first query that reads an object.

        :raises AuditError: ClickHouse cannot read the object.
        """
        try:
            # types as the table's columns name them: in one line
            return client.query(sql, settings={**STRICT, "print_pretty_type_names": 0}).result_rows
        except Exception as e:
            if not isinstance(unreadable := error_of(None, e), ClickHouseError):
                raise
            raise AuditError(
                f"s3://{self.plan.bucket}/{file.key} cannot be read as {self.plan.plain}. {unreadable.message}",
                hint="Nothing was published. Correct the file. A name that ends in .gz or the like means compression.",
            ) from None

    def _convert(self, file: DataFile, conversion: Callable[[str, str], Conversion]) -> dict[str, Conversion]:
        made = {}
        for name, kind in zip(self.columns.names, self.columns.types, strict=True):
            try:
                made[name] = conversion(name, kind)
            except NoConversionError as e:
                raise AuditError(
                    f"s3://{self.plan.bucket}/{file.key}: column {name} of {self.plan.data_set.table} is {kind}, and "
                    f"{e}.",
                    hint="Nothing was published. Write the file with the type of the table (nested types as Parquet), "
                    "or load it through a Spark job.",
                ) from None
        return made


def sums_by_file(
    client: Client,
    source: str,
    bucket: str,
    files: Sequence[DataFile],
    columns: Columns,
    settings: Mapping[str, Any],
) -> dict[str, Sums]:
    """The sums of each plain object that has rows in `source`, by key; see `sums`.

    :raises AuditError: an object does not have the pinned ETag any more.
    """
    sql = (
        f"SELECT {_FILE}, groupUniqArray({_ETAG}), count(), sum(cityHash64(tuple({columns.listed}))) "
        f"FROM {source} GROUP BY {_FILE}"
    )
    by_key, by_path = {}, {f"{bucket}/{file.key}": file for file in files}
    for path, etags, rows, checksum in client.query(sql, settings={**STRICT, **settings}).result_rows:
        file = by_path[path]
        if file.etag and {etag.strip('"') for etag in etags} != {file.etag}:
            raise AuditError(
                f"{file.key} was changed while it was read.", hint="Nothing was published. Run the task again."
            )
        by_key[file.key] = Sums(int(rows), int(checksum))
    return by_key
