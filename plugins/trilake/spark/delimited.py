"""Parses delimited text line by line. Every line becomes a row, or is refused with a reason. No line is lost.

Spark's own CSV reader accepts a row with too few or too many fields. Which rows it calls corrupt depends on the columns
that are read. So this module reads lines as text, counts their fields first, and parses them afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.spark.text_values import convert

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType

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
# A reason shows so much of a value.
_SHOWN_LETTERS = 100


def header_of(schema: StructType) -> str:
    """The first line of a file with this schema."""
    return ",".join(schema.fieldNames())


def without_end(line: Column) -> Column:
    """A line without the carriage return of a Windows line end. Only one is removed, and only at the end."""
    from pyspark.sql import functions as F

    # Not "$": it also matches before other characters that Java takes as a line end. A regular expression also turns
    # bytes that are not UTF-8 into text, so such lines stay unchanged, and `parse_lines` refuses them.
    return F.when(F.is_valid_utf8(line), F.regexp_replace(line, "\r\\z", "")).otherwise(line)


def parse_lines(lines: DataFrame, schema: StructType, *, missing: str = "") -> DataFrame:
    """Parse comma-separated lines.

    :param lines: columns ``file``, ``partition``, ``raw`` (a line without its end) and ``size`` (bytes, with its end).
        Header lines are included.
    :param schema: schema of a line. A field that is not nullable is required.
    :param missing: the text of a missing value, besides the empty field without quotes.
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

    # Every field is read as a string first: Spark's own conversions change some values without an error.
    names = schema.fieldNames()
    columns = ", ".join(f"`{name.replace('`', '``')}` string" for name in names)
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _CORRUPT,
        "escape": '"',  # a quote within quotes is written twice (RFC 4180), not behind a backslash
        "charToEscapeQuoteEscaping": _END,  # the default is the NUL character, which would be dropped before a quote
        # The empty field without quotes gets this value. If it were the empty string, "" would be NULL too.
        "nullValue": missing or _END,
        "maxCharsPerColumn": "-1",
    }
    text = F.when(F.col("_text_reason").isNull(), F.col("raw"))
    parsed = body.withColumn("_text_reason", _reason_of_text(len(schema))).withColumn(
        "_parsed", F.from_csv(text, f"{columns}, `{_CORRUPT}` string", options)
    )
    texts = {name: F.col("_parsed").getField(name) for name in names}
    typed = {field.name: field.dataType for field in schema.fields if not isinstance(field.dataType, T.StringType)}
    values = texts
    if typed:
        # a separate column, because it is used twice and should be computed once
        parsed = parsed.withColumn(
            "_typed", F.struct(*(convert(texts[n], kind, n).alias(n) for n, kind in typed.items()))
        )
        values = texts | {name: F.col("_typed").getField(name) for name in typed}
    reason = F.coalesce(
        F.col("_text_reason"),
        F.when(F.col("_parsed").getField(_CORRUPT).isNotNull(), F.lit("not CSV")),
        *(
            F.when(texts[name].isNotNull() & values[name].isNull(), _type_reason(name, kind, texts[name]))
            for name, kind in typed.items()
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


def refuse(parsed: DataFrame, condition: Column, reason: str, value: Column | None = None) -> DataFrame:
    """Refuse the rows that were good so far and meet `condition` (over ``row.…`` and ``partition``).

    :param value: an expression over the same columns; the reason names its value.
    """
    from pyspark.sql import functions as F

    bad = F.col(REASON).isNull() & F.coalesce(condition, F.lit(False))
    named = F.lit(reason)
    if value is not None:
        named = F.concat(named, F.lit(": "), F.coalesce(value.cast("string"), F.lit("NULL")))
    # both columns in one step: the condition reads the row, and this step removes the row
    return parsed.withColumns({ROW: F.when(~bad, F.col(ROW)), REASON: F.when(bad, named).otherwise(F.col(REASON))})


def _type_reason(name: str, kind: DataType, text: Column) -> Column:
    from pyspark.sql import functions as F

    return F.concat(
        F.lit(f"type of {name}: "), F.left(text, F.lit(_SHOWN_LETTERS)), F.lit(f" is not {kind.simpleString()}")
    )


def kind_of(reason: Column) -> Column:
    """A reason without the value that it names, for counting."""
    from pyspark.sql import functions as F

    return F.split_part(reason, F.lit(": "), F.lit(1))


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
