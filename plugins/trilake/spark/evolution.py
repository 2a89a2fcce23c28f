"""Compare the columns of a job's rows with those of its Iceberg table, before anything is written.

Spark's store assignment writes 1.75 into an integer column as 1, a time into a date column without its time of day, and
NULL into a column that the rows do not have. So a commit goes on only if no value can change: the types are equal, the
table's type holds every value of the rows' type, or Iceberg can widen the table's type (section "Schema evolution" of
Iceberg's specification). Everything else is refused, unless the job names the column in ``replace_columns``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError, TrilakeError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DataType, DecimalType, StructType


class ColumnChangedError(TrilakeError):
    """The rows of a job have other columns or types than its table. Nothing was written."""


@dataclass(frozen=True)
class Change:
    """A change of a table that keeps every value.

    :param column: its path, such as ``v``, ``struct.field`` or ``array.element.field``, with quotes.
    :param sql: what stands after ``ALTER TABLE name``.
    :param text: for people, such as ``v: int -> bigint``.
    """

    column: str
    sql: str
    text: str


def changes(
    rows: StructType, table: StructType, *, name: str, replaced: Collection[str] = (), kept: Collection[str] = ()
) -> list[Change]:
    """What the table needs before these rows can be written to it.

    :param name: the table's name, for errors.
    :param replaced: columns that may lose their values. The table drops a column that does not fit, and adds it again
        with the rows' type if the rows have it. A column that fits stays.
    :param kept: columns that cannot be replaced, because they decide a row's partition and shard.
    :raises ColumnChangedError: a value could change, or a column of the table is missing.
    """
    if isinstance(replaced, str):
        raise ConfigurationError(
            f"replace_columns is the text {replaced!r}.", hint=f"Write a list of columns: [{replaced!r}]."
        )
    if wrong := sorted(set(replaced) & set(kept)):
        raise ColumnChangedError(
            f"{name}: column {wrong[0]} decides the partition or the shard of a row, so it cannot be replaced.",
            hint="Declare a new data set with the other column.",
        )
    made: list[Change] = []
    problems: list[str] = []
    present = set(rows.fieldNames())
    for field in table.fields:
        if field.name not in present:
            if field.name in replaced:
                made.append(_dropped(field.name))
            else:
                problems.append(f"the rows have no column {field.name}")
    known = {field.name: field.dataType for field in table.fields}
    for field in rows.fields:
        path = quote(field.name)
        if reason := _unknown(field.dataType):
            problems.append(f"column {field.name} is {reason}, which Iceberg cannot hold")
        elif field.name not in known:
            made.append(_added(path, field.name, field.dataType))
        else:
            differences: list[str] = []
            needed = list(_compare(field.dataType, known[field.name], path, field.name, differences))
            # A column that fits is not replaced: the other runs of this job keep what the first one has written.
            if differences and field.name in replaced:
                needed = [_dropped(field.name), _added(path, field.name, field.dataType)]
                differences = []
            made += needed
            problems += differences
    if problems:
        raise ColumnChangedError(
            f"{name}: {'; '.join(problems)}. Nothing was written.",
            hint="Cast the column in the job, or add it (CAST(NULL AS type) where there is no value). Names differ if "
            "their case differs. To change a column of the table on purpose, call commit with replace_columns: "
            "docs/reference/jobs.md.",
        )
    return made


def apply(spark: SparkSession, table: str, made: Collection[Change]) -> None:
    """Change the table. `table` is Spark's name of it."""
    for change in made:
        spark.sql(f"ALTER TABLE {table} {change.sql}")


def check_types(rows: StructType, name: str) -> None:
    """:raises ColumnChangedError: Iceberg has no type for a column of a table that does not exist yet."""
    problems = [f"column {field.name} is {reason}" for field in rows.fields if (reason := _unknown(field.dataType))]
    if problems:
        raise ColumnChangedError(
            f"{name}: {'; '.join(problems)}, which Iceberg cannot hold. Nothing was written.",
            hint="Cast the column in the job.",
        )


def _compare(rows: DataType, table: DataType, path: str, shown: str, problems: list[str]) -> Iterator[Change]:
    """Changes of one column and of what is nested in it. Appends to `problems` what cannot be changed."""
    from pyspark.sql import types as T

    match rows, table:
        case T.StructType(), T.StructType():
            known = {field.name: field.dataType for field in table.fields}
            present = set(rows.fieldNames())
            problems += [f"the rows have no field {shown}.{field}" for field in known if field not in present]
            for field in rows.fields:
                inner, label = f"{path}.{quote(field.name)}", f"{shown}.{field.name}"
                if field.name in known:
                    yield from _compare(field.dataType, known[field.name], inner, label, problems)
                elif reason := _unknown(field.dataType):
                    problems.append(f"field {label} is {reason}, which Iceberg cannot hold")
                else:
                    yield _added(inner, label, field.dataType)
        case T.ArrayType(), T.ArrayType():
            yield from _compare(rows.elementType, table.elementType, f"{path}.element", f"{shown}[]", problems)
        case T.MapType(), T.MapType():
            if rows.keyType != table.keyType:
                problems.append(
                    f"the keys of {shown} are {table.keyType.simpleString()} in the table and "
                    f"{rows.keyType.simpleString()} in the rows"
                )
            yield from _compare(rows.valueType, table.valueType, f"{path}.value", f"{shown}{{}}", problems)
        case _ if holds(table, rows):
            return
        case _ if _widens(table, rows):
            kind = rows.simpleString()
            yield Change(path, f"ALTER COLUMN {path} TYPE {kind}", f"{shown}: {table.simpleString()} -> {kind}")
        case _:
            problems.append(
                f"column {shown} is {table.simpleString()} in the table and {rows.simpleString()} in the rows"
            )


def holds(table: DataType, rows: DataType) -> bool:
    """Whether a column of type `table` holds every value of type `rows`, unchanged."""
    from pyspark.sql import types as T

    # Iceberg has no smaller integers, and no length of a text: Spark reads these columns back as the larger type.
    integers: list[type[DataType]] = [T.ByteType, T.ShortType, T.IntegerType, T.LongType]
    if type(table) in integers and type(rows) in integers:
        return integers.index(type(rows)) <= integers.index(type(table))
    match table, rows:
        case T.DecimalType(), T.DecimalType():
            return _decimal_holds(table, rows)
        case T.DoubleType(), T.FloatType():
            return True
        case T.StringType(), T.StringType() | T.CharType() | T.VarcharType():
            return True
    return table == rows


def _decimal_holds(table: DecimalType, rows: DecimalType) -> bool:
    return rows.scale <= table.scale and rows.precision - rows.scale <= table.precision - table.scale


def _widens(table: DataType, rows: DataType) -> bool:
    """Whether Iceberg can change a column from type `table` to type `rows`."""
    from pyspark.sql import types as T

    match table, rows:
        case T.IntegerType(), T.LongType():
            return True
        case T.FloatType(), T.DoubleType():
            return True
        case T.DecimalType(), T.DecimalType():
            return rows.scale == table.scale and rows.precision > table.precision
    return False


def _unknown(kind: DataType) -> str:
    """The part of a type that Iceberg does not have; empty: it has all of it."""
    from pyspark.sql import types as T

    match kind:
        case T.StructType():
            return next(filter(None, (_unknown(field.dataType) for field in kind.fields)), "")
        case T.ArrayType():
            return _unknown(kind.elementType)
        case T.MapType():
            return _unknown(kind.keyType) or _unknown(kind.valueType)
        case T.NullType():
            return "void (a NULL without a type)"
        case (
            T.ByteType() | T.ShortType() | T.IntegerType() | T.LongType() | T.FloatType() | T.DoubleType()
            | T.DecimalType() | T.StringType() | T.CharType() | T.VarcharType() | T.BinaryType() | T.BooleanType()
            | T.DateType() | T.TimestampType() | T.TimestampNTZType()
        ):  # fmt: skip
            return ""
    return kind.simpleString()


def _dropped(name: str) -> Change:
    return Change(quote(name), f"DROP COLUMN {quote(name)}", f"{name}: dropped")


def _added(path: str, shown: str, kind: DataType) -> Change:
    return Change(path, f"ADD COLUMN {path} {ddl_type(kind)}", f"{shown}: added as {kind.simpleString()}")


def ddl_type(kind: DataType) -> str:
    """A type in Spark's DDL, with the names of its fields in quotes."""
    from pyspark.sql import types as T

    match kind:
        case T.StructType():
            return f"struct<{', '.join(f'{quote(field.name)}: {ddl_type(field.dataType)}' for field in kind.fields)}>"
        case T.ArrayType():
            return f"array<{ddl_type(kind.elementType)}>"
        case T.MapType():
            return f"map<{ddl_type(kind.keyType)}, {ddl_type(kind.valueType)}>"
    return kind.simpleString()


def quote(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
