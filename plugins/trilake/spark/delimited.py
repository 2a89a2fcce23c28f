"""Delimited text, line by line: every line becomes a row, or is refused with a reason. None is lost on the way.

Spark's own CSV reader takes a row with too few or too many fields for a good one, and what it calls corrupt depends on
the columns that are read. So lines are read as text, their fields are counted first, and only then are they parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType

# The text that stands for a missing value in a source.
MISSING = "NA"
TIMESTAMP_FORMAT = "yyyy-MM-dd'T'HH:mm:ssX"
# Without one Spark takes the beginning of a text for a date: "2013", or what has a blank and anything else behind it.
DATE_FORMAT = "yyyy-MM-dd"
TIMESTAMP_NTZ_FORMAT = "yyyy-MM-dd'T'HH:mm:ss"

ROW = "row"
REASON = "reason"
_CORRUPT = "_corrupt"
# A value with quotes within is several of these. No alternatives in it: Java's stack would grow with the text.
_QUOTED = '"[^"]*"'
# No character (Unicode keeps it free), and Spark's parser takes it for the end of the text: what is behind it would
# become the beginning of the next line. Lines with it are refused, so it may stand for something here.
_END = "\uffff"
_TEXT_BEHIND_QUOTED = f"(?<![^,]){_END}+[^,{_END}]"
# Spark's parser drops it from the first line that it sees, and from no other.
_BYTE_ORDER_MARK = "\ufeff"
# Java takes more for a number: with blanks around it, a "d" or an "f" behind it, or hexadecimal digits.
_NUMBER = r"\A[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\z"
_NO_ZERO = "^[^eE]*[1-9]"
_NOT_FINITE = ("NaN", "Inf", "-Inf", "Infinity", "-Infinity")


def header_of(schema: StructType) -> str:
    """The first line that a file of this schema has."""
    return ",".join(schema.fieldNames())


def without_end(line: Column) -> Column:
    """A line of a file whose lines end as on Windows, without the end's first half: one, and at the very end alone."""
    from pyspark.sql import functions as F

    # not "$", which is also before what Java takes for a line's end. And a regular expression makes text of bytes that
    # are none: those are left for `parse_lines` to refuse.
    return F.when(F.is_valid_utf8(line), F.regexp_replace(line, "\r\\z", "")).otherwise(line)


def parse_lines(lines: DataFrame, schema: StructType) -> DataFrame:
    """Parse comma-separated lines.

    :param lines: columns ``file``, ``partition``, ``raw`` (a line without its end) and ``size`` (bytes, with its end);
        header lines among them.
    :param schema: of a line. A field that is not nullable may not be missing.
    :return: ``file``, ``partition``, ``raw``, ``size``, and either ``row`` (a struct of the schema) or ``reason``. The
        first header line of each file is gone; another one is refused like any bad line.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    header = header_of(schema)
    is_header = F.col("raw") == F.lit(header)
    # as often as it stands there, less one
    repeated = (
        lines.where(is_header)
        .groupBy("file", "partition", "raw")
        .agg(F.count("*").alias("times"), F.max("size").alias("size"))
        .where("times > 1")
        .select("file", "partition", "raw", "size", F.explode(F.sequence(F.lit(2), F.col("times"))).alias("_"))
        .drop("_")
    )
    body = lines.where(~is_header | F.col("raw").isNull()).unionByName(repeated)

    # of these Spark makes what they do not say, and the text is gone then
    numbers = {field.name: field.dataType for field in schema.fields if isinstance(field.dataType, T.FractionalType)}
    types = ", ".join(
        f"`{field.name}` {'string' if field.name in numbers else field.dataType.simpleString()}"
        for field in schema.fields
    )
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _CORRUPT,
        "escape": '"',  # a quote within quotes is written twice (RFC 4180), not behind a backslash
        "charToEscapeQuoteEscaping": _END,  # the zero, if nothing is said: it would vanish before a quote
        "nullValue": MISSING,
        "timestampFormat": TIMESTAMP_FORMAT,
        "timestampNTZFormat": TIMESTAMP_NTZ_FORMAT,
        "dateFormat": DATE_FORMAT,
        "maxCharsPerColumn": "-1",
    }
    text = F.when(F.col("_text_reason").isNull(), F.col("raw"))
    parsed = body.withColumn("_text_reason", _reason_of_text(len(schema))).withColumn(
        "_parsed", F.from_csv(text, f"{types}, `{_CORRUPT}` string", options)
    )
    told = {name: F.col("_parsed").getField(name) for name in schema.fieldNames()}
    values = told
    if numbers:
        # in a step of its own: it is asked for twice, and made once
        parsed = parsed.withColumn("_numbers", F.struct(*(told[n].try_cast(t).alias(n) for n, t in numbers.items())))
        values = told | {name: F.col("_numbers").getField(name) for name in numbers}
    reason = F.coalesce(
        F.col("_text_reason"),
        F.when(F.col("_parsed").getField(_CORRUPT).isNotNull(), F.lit("type")),
        *(
            F.when(told[name].isNotNull() & ~_says(told[name], values[name], kind), F.lit("type"))
            for name, kind in numbers.items()
        ),
        *(
            F.when(told[field.name].isNull(), F.lit(f"missing {field.name}"))
            for field in schema.fields
            if not field.nullable
        ),
    )
    row = F.struct(*(value.alias(name) for name, value in values.items()))
    return (
        parsed.withColumn(REASON, reason)
        .withColumn(ROW, F.when(F.col(REASON).isNull(), row))
        .select("file", "partition", F.make_valid_utf8("raw").alias("raw"), "size", REASON, ROW)
    )


def refuse(parsed: DataFrame, condition: Column, reason: str) -> DataFrame:
    """Refuse the rows that meet `condition` (over ``row.…`` and ``partition``) and were good so far."""
    from pyspark.sql import functions as F

    bad = F.col(REASON).isNull() & F.coalesce(condition, F.lit(False))
    # both at once: the condition is over the row, and the row goes
    return parsed.withColumns(
        {ROW: F.when(~bad, F.col(ROW)), REASON: F.when(bad, F.lit(reason)).otherwise(F.col(REASON))}
    )


def _says(text: Column, number: Column, kind: DataType) -> Column:
    """Whether a text says the number with a fraction that a cast has made of it.

    A ``float`` or ``double`` is the nearest one: of what is too large for it, or too small to be more than zero, none.
    A ``decimal`` is the very number; it is written without an exponent.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(kind, T.DecimalType):
        fraction = rf"\.[0-9]{{0,{kind.scale}}}0*"
        return number.isNotNull() & text.rlike(rf"\A[-+]?(?:[0-9]+(?:{fraction})?|{fraction})\z")
    infinite = F.abs(number) == float("inf")
    return F.when(infinite | F.isnan(number), text.isin(*_NOT_FINITE)).otherwise(
        number.isNotNull() & text.rlike(_NUMBER) & ((number != 0) | ~text.rlike(_NO_ZERO))
    )


def _reason_of_text(fields: int) -> Column:
    """Why the line cannot be parsed at all, from its text alone; null if it can."""
    from pyspark.sql import functions as F

    raw = F.col("raw")
    # few lines have a quote, and a regular expression costs more than all else here
    quotes = F.contains(raw, F.lit('"'))
    bare = F.when(quotes, F.regexp_replace(raw, _QUOTED, _END)).otherwise(raw)
    return (
        F.when(raw.isNull() | (F.length(raw) == 0), F.lit("empty line"))
        .when(~F.is_valid_utf8(raw), F.lit("not UTF-8"))
        .when(F.contains(raw, F.lit(_END)), F.lit("not a character"))
        .when(F.startswith(raw, F.lit(_BYTE_ORDER_MARK)), F.lit("byte order mark"))
        .when(quotes & (F.contains(bare, F.lit('"')) | bare.rlike(_TEXT_BEHIND_QUOTED)), F.lit("unbalanced quote"))
        .when(F.length(bare) - F.length(F.replace(bare, F.lit(","), F.lit(""))) != fields - 1, F.lit("field count"))
    )
