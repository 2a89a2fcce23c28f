"""Delimited text, line by line: every line becomes a row, or is refused with a reason. None is lost on the way.

Spark's own CSV reader takes a row with too few or too many fields for a good one, and what it calls corrupt depends on
the columns that are read. So lines are read as text, their fields are counted first, and only then are they parsed.
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
# A value with quotes within is several of these. No alternatives in it: Java's stack would grow with the text.
_QUOTED = '"[^"]*"'
# No character (Unicode keeps it free), and Spark's parser takes it for the end of the text: what is behind it would
# become the beginning of the next line. Lines with it are refused, so it may stand for something here.
_END = "\uffff"
_TEXT_BEHIND_QUOTED = f"(?<![^,]){_END}+[^,{_END}]"
# Spark's parser drops it from the first line that it sees, and from no other.
_BYTE_ORDER_MARK = "\ufeff"
# A reason shows so much of a value.
_SHOWN_LETTERS = 100


def header_of(schema: StructType) -> str:
    """The first line that a file of this schema has."""
    return ",".join(schema.fieldNames())


def without_end(line: Column) -> Column:
    """A line of a file whose lines end as on Windows, without the end's first half: one, and at the very end alone."""
    from pyspark.sql import functions as F

    # not "$", which is also before what Java takes for a line's end. And a regular expression makes text of bytes that
    # are none: those are left for `parse_lines` to refuse.
    return F.when(F.is_valid_utf8(line), F.regexp_replace(line, "\r\\z", "")).otherwise(line)


def parse_lines(lines: DataFrame, schema: StructType, *, missing: str = "") -> DataFrame:
    """Parse comma-separated lines.

    :param lines: columns ``file``, ``partition``, ``raw`` (a line without its end) and ``size`` (bytes, with its end);
        header lines among them.
    :param schema: of a line. A field that is not nullable may not be missing.
    :param missing: a text that stands for a missing value, besides the empty field without quotes.
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

    # Every field is read as text first. Spark's own conversions accept texts that say something else, or nothing.
    names = schema.fieldNames()
    columns = ", ".join(f"`{name.replace('`', '``')}` string" for name in names)
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _CORRUPT,
        "escape": '"',  # a quote within quotes is written twice (RFC 4180), not behind a backslash
        "charToEscapeQuoteEscaping": _END,  # the zero, if nothing is said: it would vanish before a quote
        # an empty field without quotes; with the empty text here, "" would be NULL too
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
        # a separate step, because each value is used twice
        parsed = parsed.withColumn("_typed", F.struct(*(convert(texts[n], kind).alias(n) for n, kind in typed.items())))
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
    """Refuse the rows that meet `condition` (over ``row.…`` and ``partition``) and were good so far.

    :param value: an expression over the same columns; the reason names it.
    """
    from pyspark.sql import functions as F

    bad = F.col(REASON).isNull() & F.coalesce(condition, F.lit(False))
    named = F.lit(reason)
    if value is not None:
        named = F.concat(named, F.lit(": "), F.coalesce(value.cast("string"), F.lit("NULL")))
    # both at once: the condition is over the row, and the row goes
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
