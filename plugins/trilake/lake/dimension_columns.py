"""Compare the columns of a dimension's source with those of its Iceberg table, before anything is written.

The rules are those of `trilake.spark.evolution`, without Spark. A dimension is replaced as a whole. So a column can be
added, and can get a wider type, without changing a value. A column that the source no longer has, or whose new type the
table cannot hold, is refused: only a person knows whether that is on purpose.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trilake.errors import TrilakeError

if TYPE_CHECKING:
    import pyarrow
    from pyiceberg.schema import Schema
    from pyiceberg.table.update.schema import UpdateSchema
    from pyiceberg.types import IcebergType


class SourceChangedError(TrilakeError):
    """The source of a dimension has other columns or types than its Iceberg table. Nothing was written."""


def iceberg_type(kind: pyarrow.DataType) -> IcebergType:
    """Iceberg's equal of one of the types of `trilake.postgres.extract`."""
    import pyarrow as pa
    from pyiceberg import types as T

    if pa.types.is_decimal(kind):
        return T.DecimalType(kind.precision, kind.scale)
    return {
        pa.bool_(): T.BooleanType(),
        pa.binary(): T.BinaryType(),
        pa.int16(): T.IntegerType(),
        pa.int32(): T.IntegerType(),
        pa.int64(): T.LongType(),
        pa.float32(): T.FloatType(),
        pa.float64(): T.DoubleType(),
        pa.string(): T.StringType(),
        pa.date32(): T.DateType(),
        pa.time64("us"): T.TimeType(),
        pa.timestamp("us"): T.TimestampType(),
        pa.timestamp("us", tz="UTC"): T.TimestamptzType(),
    }[kind]


def evolve(
    update: UpdateSchema, rows: pyarrow.Schema, table: Schema, *, name: str, source: str, replaced: Collection[str] = ()
) -> list[str]:
    """Change a table's columns, so that it holds the rows. Returns what changed, for people.

    :param update: the change under way. It is not committed here.
    :param name: of the table; `source` of the rows; for errors.
    :param replaced: columns that may be dropped, or get a type that cannot hold their earlier values. No effect where
        that is not needed.
    :raises SourceChangedError: a column would lose values, and `replaced` does not name it.
    """
    made: list[str] = []
    problems: list[str] = []
    present = {field.name for field in rows}
    for field in table.fields:
        if field.name in present:
            continue
        if field.name in replaced:
            update.delete_column((field.name,))
            made.append(f"{field.name}: dropped")
        else:
            problems.append(f"{source} has no column {field.name} any more")
    known = {field.name: field for field in table.fields}
    for column in rows:
        kind, before = iceberg_type(column.type), known.get(column.name)
        if before is None:
            # optional: the rows of earlier snapshots do not have it
            update.add_column((column.name,), kind, required=False)
            made.append(f"{column.name}: added as {kind}")
            continue
        if not _holds(before.field_type, kind):
            if _widens(before.field_type, kind):
                update.update_column((column.name,), field_type=kind)
                made.append(f"{column.name}: {before.field_type} -> {kind}")
            elif column.name in replaced:
                update.delete_column((column.name,))
                update.add_column((column.name,), kind, required=False)
                made.append(f"{column.name}: {before.field_type} replaced by {kind}")
                continue
            else:
                problems.append(f"column {column.name} is {before.field_type} in the table and {kind} in {source}")
                continue
        if before.required and column.nullable:
            update.make_column_optional((column.name,))
            made.append(f"{column.name}: may be NULL")
    if problems:
        added = [column.name for column in rows if column.name not in known]
        new = f" New in {source}: {', '.join(added)}." if added else ""
        raise SourceChangedError(
            f"{name}: {'; '.join(problems)}.{new} Nothing was written.",
            hint="If the change is on purpose, name the columns that are dropped or get another type in the task's "
            "replace_columns. Else read a view that has the earlier names and types.",
        )
    return made


def as_table(rows: pyarrow.Table, table: Schema) -> pyarrow.Table:
    """The rows with the table's types, which hold every value of theirs, in the rows' order of columns."""
    import pyarrow as pa
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    types = {field.name: field for field in schema_to_pyarrow(table, include_field_ids=False)}
    return rows.cast(
        pa.schema([pa.field(f.name, types[f.name].type, nullable=types[f.name].nullable) for f in rows.schema])
    )


def _holds(table: IcebergType, rows: IcebergType) -> bool:
    """Whether a column of type `table` holds every value of type `rows`, unchanged."""
    from pyiceberg import types as T

    match table, rows:
        case T.LongType(), T.IntegerType():
            return True
        case T.DoubleType(), T.FloatType():
            return True
        case T.DecimalType(), T.DecimalType():
            return rows.scale <= table.scale and rows.precision - rows.scale <= table.precision - table.scale
    return table == rows


def _widens(table: IcebergType, rows: IcebergType) -> bool:
    """Whether Iceberg can change a column from type `table` to type `rows`."""
    from pyiceberg import types as T

    match table, rows:
        case T.IntegerType(), T.LongType():
            return True
        case T.FloatType(), T.DoubleType():
            return True
        case T.DecimalType(), T.DecimalType():
            return rows.scale == table.scale and rows.precision > table.precision
    return False
