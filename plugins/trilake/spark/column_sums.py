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
        if has_sum(field.dataType)
    ]


def aggregates(schema: StructType) -> list[Column]:
    """Two aggregates of each of the `projections`, for one pass over the rows; `read` reads their results."""
    from pyspark.sql import functions as F

    made = []
    for number, field in enumerate(schema.fields):
        if has_sum(field.dataType):
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
        if has_sum(field.dataType):
            yield field.name, ColumnSum(row[f"values_{number}"], int(row[f"crc32_{number}"] or 0) % 2**64)


def has_sum(kind: DataType) -> bool:
    """Whether a column has a sum, see `trilake.lake.column_sums`."""
    from pyspark.sql import types as T

    def without_binary(inner: DataType) -> bool:
        match inner:
            case T.StructType():
                return all(without_binary(field.dataType) for field in inner.fields)
            case T.ArrayType():
                return without_binary(inner.elementType)
            case T.MapType():
                return without_binary(inner.keyType) and without_binary(inner.valueType)
        return not isinstance(inner, T.BinaryType)

    return isinstance(kind, T.BinaryType) or without_binary(kind)


def canonical(value: Column, kind: DataType) -> Column:
    """The canonical bytes of a value, as a string or binary. NULL stays NULL."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    text: Column
    match kind:
        case T.StringType() | T.BinaryType() | T.CharType() | T.VarcharType():
            text = value
        case T.DoubleType() | T.FloatType():
            text = _bits(value.cast("double"))
        case T.DecimalType():
            # Without ANSI casts Spark writes a small number with an exponent; try_cast is an ANSI cast.
            text = value.try_cast("string")
            if kind.scale:
                text = F.regexp_replace(text, r"\.?0*\z", "")
        case T.DateType():
            text = F.unix_date(value).cast("string")
        case T.TimestampType():
            text = F.unix_micros(value).cast("string")
        case T.TimestampNTZType():
            epoch = F.lit("1970-01-01 00:00:00").cast("timestamp_ntz")
            text = F.timestamp_diff("MICROSECOND", epoch, value).cast("string")
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


def _bits(value: Column) -> Column:
    from pyspark.sql import functions as F

    # Java's method takes no NULL
    zero = F.coalesce(value, F.lit(0.0))
    bits = F.java_method(F.lit("java.lang.Double"), F.lit("doubleToLongBits"), zero)
    return F.when(value.isNotNull(), bits)


def _list(size: Column, pieces: Column) -> Column:
    from pyspark.sql import functions as F

    return F.when(size >= 0, F.concat(size.cast("string"), F.lit("["), F.array_join(pieces, ""), F.lit("]")))


def _piece(value: Column, kind: DataType) -> Column:
    from pyspark.sql import functions as F

    text = canonical(value, kind)
    return F.coalesce(F.concat(F.octet_length(text).cast("string"), F.lit(":"), text), F.lit("N"))
