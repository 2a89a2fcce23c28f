"""Convert the text of one field into a value of a Spark type, exactly. A text that says no such value becomes NULL.

The accepted forms are those of ISO 8601 and of PostgreSQL's COPY. Spark's own casts accept more: blanks around a
number, a letter behind it, digits that are cut off, a time for a date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from pyspark.sql import Column
    from pyspark.sql.types import DataType, DecimalType

_INTEGER = r"\A[-+]?[0-9]+\z"
_NUMBER = r"\A[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\z"
_NO_ZERO = "^[^eE]*[1-9]"
_NOT_FINITE = ("NaN", "Inf", "-Inf", "Infinity", "-Infinity")
_DATE = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
# Spark and Iceberg count microseconds: a seventh digit must be a zero.
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6}0*)?)?"
_NO_SECONDS = r"\A([0-9-]{10}[T ][0-9]{2}:[0-9]{2})(?=[-+Z])"
_OFFSET = r" ?(?:Z|[-+][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?)"
_BYTES = r"\A\\x(?:[0-9a-fA-F]{2})*\z"


def convert(text: Column, kind: DataType, name: str) -> Column:
    """The value that a text says in this type; NULL if it says none.

    - integers: decimal digits with an optional sign, in the type's range
    - ``float``, ``double``: the nearest number; NaN and infinities by name. Not a number that is too large, or so small
      that it would become zero.
    - ``decimal``: without an exponent; further digits of the fraction must be zeros
    - ``boolean``: true, false, t, f, in any case
    - ``date``: 2013-01-05
    - ``timestamp``: a date, ``T`` or a blank, a time of day with up to six digits of a fraction, and an offset: ``Z``,
      ``+01``, ``+0100``, ``+01:00``
    - ``timestamp_ntz``: the same without an offset
    - ``binary``: ``\\x`` and hexadecimal digits

    :param name: the column's name, for the error.
    :raises ConfigurationError: a field of text cannot have such a type.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    value: Column
    match kind:
        case T.ByteType() | T.ShortType() | T.IntegerType() | T.LongType():
            value = F.when(text.rlike(_INTEGER), text.try_cast(kind))
        case T.FloatType() | T.DoubleType():
            value = _floating(text, kind)
        case T.DecimalType():
            value = _decimal(text, kind)
        case T.BooleanType():
            word = F.lower(text)
            value = F.when(word.isin("true", "t"), F.lit(True)).when(word.isin("false", "f"), F.lit(False))
        case T.DateType():
            value = F.when(text.rlike(_DATE), text.try_cast(kind))
        case T.TimestampType():
            # Spark takes no blank before an offset, and no offset directly after the minutes
            compact = F.regexp_replace(F.regexp_replace(text, r" (?=[-+Z])", ""), _NO_SECONDS, "$1:00")
            value = F.when(text.rlike(rf"\A{_TIME}{_OFFSET}\z"), compact.try_cast(kind))
        case T.TimestampNTZType():
            value = F.when(text.rlike(rf"\A{_TIME}\z"), text.try_cast(kind))
        case T.BinaryType():
            value = F.when(text.rlike(_BYTES), F.unhex(F.substr(text, F.lit(3))))
        case _:
            raise ConfigurationError(
                f"Column {name}: a CSV file cannot hold values of type {kind.simpleString()}.",
                hint="Read the column as string, and convert it in the job (from_json, for example).",
            )
    return value


def _floating(text: Column, kind: DataType) -> Column:
    from pyspark.sql import functions as F

    number = text.try_cast(kind)
    infinite = F.abs(number) == float("inf")
    says = F.when(infinite | F.isnan(number), text.isin(*_NOT_FINITE)).otherwise(
        text.rlike(_NUMBER) & ((number != 0) | ~text.rlike(_NO_ZERO))
    )
    return F.when(says, number)


def _decimal(text: Column, kind: DecimalType) -> Column:
    from pyspark.sql import functions as F

    fraction = rf"\.[0-9]{{0,{kind.scale}}}0*"
    return F.when(text.rlike(rf"\A[-+]?(?:[0-9]+(?:{fraction})?|{fraction})\z"), text.try_cast(kind))
