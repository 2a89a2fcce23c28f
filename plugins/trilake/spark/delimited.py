"""Parses delimited text line by line. Every line becomes a row, or is refused with a reason. No line is lost.

Spark's own CSV reader accepts a row with too few or too many fields. Which rows it calls corrupt depends on the columns
that are read. So this module reads lines as text, counts their fields first, and parses them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType

# The text of a missing value in a source.
MISSING = "NA"
TIMESTAMP_FORMAT = "yyyy-MM-dd'T'HH:mm:ssX"
# Without a format Spark accepts "2013" as a date, and also a date that is followed by a space and any other text.
DATE_FORMAT = "yyyy-MM-dd"
TIMESTAMP_NTZ_FORMAT = "yyyy-MM-dd'T'HH:mm:ss"

ROW = "row"
REASON = "reason"
_CORRUPT = "_corrupt"
# A value that contains quotes matches several of these. No alternation here: Java's stack would grow with the text.
_QUOTED = '"[^"]*"'
# Unicode assigns no character to this code point. Spark's parser takes it as the end of the text: what follows it would
# become the beginning of the next line. Lines that contain it are refused, so it can be used as a placeholder here.
_END = "\uffff"
_TEXT_BEHIND_QUOTED = f"(?<![^,]){_END}+[^,{_END}]"
# Spark's parser removes it only from the first line that it reads.
_BYTE_ORDER_MARK = "\ufeff"
# Java accepts more as a number: spaces around it, a "d" or "f" after it, hexadecimal digits.
_NUMBER = r"\A[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\z"
_NONZERO = "^[^eE]*[1-9]"
_NOT_FINITE = ("NaN", "Inf", "-Inf", "Infinity", "-Infinity")


def header_of(schema: StructType) -> str:
    """The first line of a file with this schema."""
    return ",".join(schema.fieldNames())


def without_end(line: Column) -> Column:
    """A line without the carriage return of a Windows line end. Only one is removed, and only at the end."""
    from pyspark.sql import functions as F

    # Not "$": it also matches before other characters that Java takes as a line end. A regular expression also turns
    # bytes that are not UTF-8 into text, so such lines stay unchanged, and `parse_lines` refuses them.
    return F.when(F.is_valid_utf8(line), F.regexp_replace(line, "\r\\z", "")).otherwise(line)


def parse_lines(lines: DataFrame, schema: StructType) -> DataFrame:
    """Parse comma-separated lines.

    :param lines: columns ``file``, ``partition``, ``raw`` (a line without its end) and ``size`` (bytes, with its end).
        Header lines are included.
    :param schema: schema of a line. A field that is not nullable is required.
    :return: ``file``, ``partition``, ``raw``, ``size``, and either ``row`` (a struct of the schema) or ``reason``. The
        first header line of each file is removed. A second one is refused like any bad line.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    header = header_of(schema)
    is_header = F.col("raw") == F.lit(header)
    # all header lines of a file except the first
    repeated = (
        lines.where(is_header)
        .groupBy("file", "partition", "raw")
        .agg(F.count("*").alias("times"), F.max("size").alias("size"))
        .where("times > 1")
        .select("file", "partition", "raw", "size", F.explode(F.sequence(F.lit(2), F.col("times"))).alias("_"))
        .drop("_")
    )
    body = lines.where(~is_header | F.col("raw").isNull()).unionByName(repeated)

    # Spark's parser converts some texts to a wrong number and drops the text. So it reads these columns as strings.
    numbers = {field.name: field.dataType for field in schema.fields if isinstance(field.dataType, T.FractionalType)}
    types = ", ".join(
        f"`{field.name}` {'string' if field.name in numbers else field.dataType.simpleString()}"
        for field in schema.fields
    )
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _CORRUPT,
        "escape": '"',  # a quote within quotes is written twice (RFC 4180), not behind a backslash
        "charToEscapeQuoteEscaping": _END,  # the default is the NUL character, which would be dropped before a quote
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
    texts = {name: F.col("_parsed").getField(name) for name in schema.fieldNames()}
    values = texts
    if numbers:
        # a separate column, because it is used twice and should be computed once
        parsed = parsed.withColumn("_numbers", F.struct(*(texts[n].try_cast(t).alias(n) for n, t in numbers.items())))
        values = texts | {name: F.col("_numbers").getField(name) for name in numbers}
    reason = F.coalesce(
        F.col("_text_reason"),
        F.when(F.col("_parsed").getField(_CORRUPT).isNotNull(), F.lit("type")),
        *(
            F.when(texts[name].isNotNull() & ~_is_exact(texts[name], values[name], kind), F.lit("type"))
            for name, kind in numbers.items()
        ),
        *(
            F.when(texts[field.name].isNull(), F.lit(f"missing {field.name}"))
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
    """Refuse the rows that were good so far and meet `condition` (over ``row.…`` and ``partition``)."""
    from pyspark.sql import functions as F

    bad = F.col(REASON).isNull() & F.coalesce(condition, F.lit(False))
    # both columns in one step: the condition reads the row, and this step removes the row
    return parsed.withColumns(
        {ROW: F.when(~bad, F.col(ROW)), REASON: F.when(bad, F.lit(reason)).otherwise(F.col(REASON))}
    )


def _is_exact(text: Column, number: Column, kind: DataType) -> Column:
    """Whether a number with a fraction is a correct value of the text that it was cast from.

    A ``float`` or ``double`` must be the nearest value. A text that is too large for the type, or that is not zero and
    becomes zero, is not accepted. A ``decimal`` must be exactly the number in the text, which has no exponent.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(kind, T.DecimalType):
        fraction = rf"\.[0-9]{{0,{kind.scale}}}0*"
        return number.isNotNull() & text.rlike(rf"\A[-+]?(?:[0-9]+(?:{fraction})?|{fraction})\z")
    infinite = F.abs(number) == float("inf")
    return F.when(infinite | F.isnan(number), text.isin(*_NOT_FINITE)).otherwise(
        number.isNotNull() & text.rlike(_NUMBER) & ((number != 0) | ~text.rlike(_NONZERO))
    )


def _reason_of_text(fields: int) -> Column:
    """Why a line cannot be parsed, judged by its text; null if it can be parsed."""
    from pyspark.sql import functions as F

    raw = F.col("raw")
    # Few lines have a quote, and the regular expression is the slowest step here.
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
