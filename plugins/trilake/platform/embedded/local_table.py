"""A table of sql/ in an engine inside this process: its columns, and whether a job's rows fit them.

The engine (chDB) parses the DDL as ClickHouse servers do. No server is contacted, and no data is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import quote_name, quote_text
from trilake.clickhouse.publication.checks import read_checks
from trilake.clickhouse.publication.types import bare, fits
from trilake.endpoints import ClickHouseShard
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.schema.clickhouse_steps import local_ddl
from trilake.schema.steps import read_steps

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

_DATABASE = "local"
# How many differing rows of each side are shown
EXAMPLES = 3


@dataclass(frozen=True)
class Column:
    """:param required: whether published rows must have it. ALIAS and MATERIALIZED columns are not required."""

    name: str
    type: str
    required: bool = True

    @property
    def bare(self) -> str:
        """The type without Nullable and LowCardinality."""
        return bare(self.type)

    @property
    def nullable(self) -> bool:
        return "Nullable(" in self.type


@dataclass(frozen=True)
class Difference:
    """The difference between two sets of rows. Duplicate rows are counted each time.

    :param columns: the columns that were compared.
    :param examples: rows of ``only_here`` and ``only_there``, in the table's order; each is a value by column.
    """

    columns: tuple[str, ...]
    only_here: int
    only_there: int
    both: int
    examples: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


def table_columns(sql_folder: Path, table: str) -> tuple[Column, ...]:
    """The columns after ``table.sql`` and every later step.

    :raises ConfigurationError: the table has no ``table.sql``, or a statement that ClickHouse refuses.
    """
    return _columns_and_order(sql_folder, table)[0]


def misfits(schema: StructType | Mapping[str, str], table: str, sql_folder: Path) -> list[str]:
    """Reasons why the table does not accept a job's rows, one line for each column; empty if all columns fit.

    :param schema: Spark's schema, or the Spark type of each column by name.
    :raises ConfigurationError: see `table_columns`.
    """
    job_columns = (
        schema
        if isinstance(schema, Mapping)
        else {column.name: column.dataType.simpleString() for column in schema.fields}
    )
    columns = {column.name: column for column in table_columns(sql_folder, table)}
    problems = [
        f"{name}: the job makes {kind}, the table has {columns[name].type}"
        for name, kind in job_columns.items()
        if name in columns and not fits(kind, columns[name].type)
    ]
    problems += [
        f"{name}: the job makes it ({kind}), the table has no such column"
        for name, kind in job_columns.items()
        if name not in columns
    ]
    problems += [
        f"{column.name}: the table has it ({column.type}), the job does not make it"
        for column in columns.values()
        if column.required and column.name not in job_columns
    ]
    return problems


def missing_values(rows: Path, columns: tuple[Column, ...]) -> dict[str, int]:
    """How many rows in a folder of Parquet files have no value although the table needs one, by column."""
    source = _parquet(rows)
    with _Engine() as engine:
        present = {row["name"] for row in engine.rows(f"DESCRIBE TABLE {source}")}
        required = [c.name for c in columns if c.name in present and not c.nullable and not c.type.startswith("Array(")]
        if not required:
            return {}
        null_counts = ", ".join(f"countIf(isNull({quote_name(name)})) AS {quote_name(name)}" for name in required)
        (counts,) = engine.rows(f"SELECT {null_counts} FROM {source}")
    return {name: count for name, count in counts.items() if count}


def compare(rows: Path, published: Path, types: Mapping[str, str], sql_folder: Path, table: str) -> Difference:
    """Compare a job's rows with the published ones, by all columns that both have.

    :param rows: a folder of Parquet files.
    :param published: a file in ClickHouse's Native format.
    :param types: Spark's types of the job's columns. A column that does not fit the published one is not compared.
    """
    columns, order = _columns_and_order(sql_folder, table)
    with _Engine() as engine:
        published_source = f"file({quote_text(str(published))}, 'Native')"
        if published.stat().st_size:
            published_types = {row["name"]: row["type"] for row in engine.rows(f"DESCRIBE TABLE {published_source}")}
        else:  # without rows the file has no block, and so no column types
            published_types = {column.name: column.type for column in columns if column.required}
            published_source = f"{_parquet(rows)} WHERE false"
        common = [name for name, kind in published_types.items() if name in types and fits(types[name], kind)]
        common_list = ", ".join(map(quote_name, common))
        # the same type on both sides; all allow NULL, even if the table's column does not
        plain = {name: bare(published_types[name]) for name in common}
        casts = ", ".join(
            f"CAST({quote_name(n)} AS {t if t.startswith('Array(') else f'Nullable({t})'}) AS {quote_name(n)}"
            for n, t in plain.items()
        )
        union = (
            f"(SELECT {casts}, 1 AS _here FROM {_parquet(rows)} "
            f"UNION ALL SELECT {casts}, 0 AS _here FROM {published_source})"
        )
        engine.run(
            f"CREATE TEMPORARY TABLE differing ENGINE = Memory AS SELECT {common_list}, toInt64(sum(_here)) AS _made, "
            f"toInt64(count()) - _made AS _published FROM {union} GROUP BY {common_list} HAVING _made != _published"
        )
        (total,) = engine.rows(f"SELECT sum(_here) AS made, count() - made AS published FROM {union}")
        (differing,) = engine.rows(
            "SELECT sum(greatest(_made - _published, 0)) AS here, sum(greatest(_published - _made, 0)) AS there "
            "FROM differing"
        )
        sort = ", ".join([*(quote_name(name) for name in order if name in common), "ALL"][:-1]) or "1"
        examples = {
            side: engine.rows(f"SELECT {common_list} FROM differing WHERE {where} ORDER BY {sort} LIMIT {EXAMPLES}")
            for side, where in (("only_here", "_made > _published"), ("only_there", "_published > _made"))
        }
    only_here, only_there = int(differing["here"]), int(differing["there"])
    return Difference(tuple(common), only_here, only_there, int(total["made"]) - only_here, examples)


def found_by_check(check: str, rows: Sequence[Mapping[str, Any]], table: str, sql_folder: Path) -> int:
    """How many of these rows a check of the table finds.

    :param rows: values by column. A missing column gets the default of the DDL.
    :raises ConfigurationError: there is no such table or check.
    """
    checks = {table_check.name: table_check for table_check in read_checks(sql_folder, table)}
    if check not in checks:
        raise ConfigurationError(
            f"The table {table} has no check {check}.", hint=f"Its checks are: {', '.join(checks) or 'none'}."
        )
    with _Engine() as engine:
        name = engine.create(sql_folder, table)
        for row in rows:
            engine.run(f"INSERT INTO {name} FORMAT JSONEachRow {json.dumps(row)}")
        (answer,) = engine.rows(f"SELECT ({checks[check].on(name)}) AS rows")
    return int(answer["rows"])


class _Engine:
    """A connection to an engine in memory."""

    def __enter__(self) -> _Engine:
        import chdb

        connect: Any = chdb.connect
        self._connection = connect(":memory:")
        self.run(f"DROP DATABASE IF EXISTS {_DATABASE}")
        self.run(f"CREATE DATABASE {_DATABASE} ENGINE = Memory")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def run(self, sql: str) -> None:
        self._connection.query(sql, "Null")

    def create(self, sql_folder: Path, table: str) -> str:
        """Create the table by all its steps. Returns its quoted name."""
        steps = [step for step in read_steps(sql_folder) if step.database == "clickhouse" and step.table == table]
        if not steps:
            raise ConfigurationError(
                f"sql/clickhouse/{table}/table.sql does not exist.",
                hint="Write this file. It creates the table for the rows.",
            )
        for step in steps:
            statement = local_ddl(step, ClickHouseShard(1, "", 0, _DATABASE))
            try:
                self.run(statement)
            except RuntimeError as e:
                reason = str(e).splitlines()[0][:400]
                raise ConfigurationError(f"ClickHouse refuses sql/{step.path}: {reason}") from None
        return f"{quote_name(_DATABASE)}.{quote_name(DataSet(table).local_table)}"

    def rows(self, sql: str) -> list[dict[str, Any]]:
        settings = "SETTINGS output_format_json_quote_64bit_integers = 0"
        answer = self._connection.query(f"{sql} {settings}" if sql.startswith("SELECT") else sql, "JSONEachRow")
        return [json.loads(line) for line in answer.bytes().decode().splitlines()]


def _columns_and_order(sql_folder: Path, table: str) -> tuple[tuple[Column, ...], list[str]]:
    """The columns, and the names of the sorting key's columns."""
    with _Engine() as engine:
        name = engine.create(sql_folder, table)
        described = engine.rows(f"DESCRIBE TABLE {name}")
        (table_row,) = engine.rows(f"SELECT sorting_key FROM system.tables WHERE database = {quote_text(_DATABASE)}")
    columns = tuple(Column(row["name"], row["type"], row["default_type"] in ("", "DEFAULT")) for row in described)
    return columns, [word.strip() for word in table_row["sorting_key"].split(",")]


def _parquet(folder: Path) -> str:
    return f"file({quote_text(f'{folder}/*.parquet')}, 'Parquet')"
