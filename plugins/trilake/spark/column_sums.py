"""The sums of `trilake.lake.column_sums`, computed by Spark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trilake.lake.column_sums import ColumnSum

if TYPE_CHECKING:
    from pyspark.sql import Column, Row
    from pyspark.sql.types import DataType, StructType


def projections(schema: StructType) -> list[Column]:
    """One column for each column with a sum: the CRC32 of its value. Select them before `aggregates`.

    They are a step of their own, because Spark takes no call of a Java method inside of an aggregate.
    """
    from pyspark.sql import functions as F

    return [
        F.crc32(canonical(F.col(_quote(field.name)), field.dataType).cast("binary")).alias(f"_crc32_{number}")
        for number, field in enumerate(schema.fields)
        if _has_sum(field.dataType)
    ]


def aggregates(schema: StructType) -> list[Column]:
    """Two aggregates of each of the `projections`, for one pass over the rows; `read` reads their results."""
    from pyspark.sql import functions as F

    made = []
    for number, field in enumerate(schema.fields):
        if _has_sum(field.dataType):
            column = F.col(f"_crc32_{number}")
            # as decimal: the sum of many is more than 64 bits hold
            made += [
                F.count(column).alias(f"values_{number}"),
                F.sum(column.cast("decimal(10,0)")).alias(f"crc32_{number}"),
            ]
    return made


def read(schema: StructType, row: Row) -> Iterator[tuple[str, ColumnSum]]:
    """(column's name, its sum) of a row with the results of `aggregates`."""
    for number, field in enumerate(schema.fields):
        if not _has_sum(field.dataType):
            continue
        crc32 = int(row[f"crc32_{number}"] or 0) % 2**64
        yield field.name, ColumnSum(field.dataType.simpleString(), row[f"values_{number}"], crc32)


def _has_sum(kind: DataType) -> bool:
    """Whether a column has a sum, see `trilake.lake.column_sums`."""
    return kind.simpleString() == "binary" or "binary" not in kind.simpleString()


def canonical(value: Column, kind: DataType) -> Column:
    """The canonical bytes of a value, as a string or binary. NULL stays NULL."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    text: Column
    match kind:
        case T.StringType() | T.BinaryType() | T.CharType() | T.VarcharType():
            text = value
        case T.DoubleType():
            text = _bits(value, "Double", "doubleToLongBits")
        case T.FloatType():
            text = _bits(value, "Float", "floatToIntBits")
        case T.DecimalType():
            # Without ANSI casts Spark writes a small number with an exponent; try_cast is an ANSI cast.
            text = value.try_cast("string")
        case T.DateType():
            text = F.unix_date(value).cast("string")
        case T.TimestampType():
            text = F.unix_micros(value).cast("string")
        case T.TimestampNTZType():
            text = F.unix_micros(F.to_utc_timestamp(value.cast("timestamp"), F.current_timezone())).cast("string")
        case T.ArrayType():
            element = kind.elementType
            pieces = F.transform(value, lambda item: _piece(item, element))
            text = _list(F.size(value), pieces)
        case T.MapType():
            keys, values = kind.keyType, kind.valueType
            entries = F.transform(
                F.map_entries(value), lambda item: F.concat(_piece(item["key"], keys), _piece(item["value"], values))
            )
            text = _list(F.size(value), entries)
        case T.StructType():
            fields = sorted(kind.fields, key=lambda field: field.name)
            listed = [_piece(value[field.name], field.dataType) for field in fields]
            text = F.when(value.isNotNull(), F.concat(F.lit("("), *listed, F.lit(")")))
        case _:
            text = value.cast("string")
    return text


def _quote(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _bits(value: Column, box: str, method: str) -> Column:
    from pyspark.sql import functions as F

    # Java's method takes no NULL
    zero = F.coalesce(value, F.lit(0).cast("double" if box == "Double" else "float"))
    bits = F.java_method(F.lit(f"java.lang.{box}"), F.lit(method), zero)
    return F.when(value.isNotNull(), bits)


def _list(size: Column, pieces: Column) -> Column:
    from pyspark.sql import functions as F

    return F.when(size >= 0, F.concat(size.cast("string"), F.lit("["), F.array_join(pieces, ""), F.lit("]")))


def _piece(value: Column, kind: DataType) -> Column:
    from pyspark.sql import functions as F

    text = canonical(value, kind)
    return F.coalesce(F.concat(F.octet_length(text).cast("string"), F.lit(":"), text), F.lit("N"))
