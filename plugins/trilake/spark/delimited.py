"""Delimited text, line by line: every line becomes a row, or is refused with a reason. None is lost on the way.

Spark's own CSV reader takes a row with too few or too many fields for a good one, and what it calls corrupt depends on
the columns that are read. So lines are read as text, their fields are counted first, and only then are they parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

# The text that stands for a missing value in a source.
MISSING = "NA"
TIMESTAMP_FORMAT = "yyyy-MM-dd'T'HH:mm:ssX"
# Without one Spark takes the beginning of a text for a date: "2013", or what has a blank and anything else behind it.
DATE_FORMAT = "yyyy-MM-dd"

ROW = "row"
REASON = "reason"
_CORRUPT = "_corrupt"
_QUOTED = '"(?:[^"]|"")*"'


def header_of(schema: StructType) -> str:
    """The first line that a file of this schema has."""
    return ",".join(schema.fieldNames())


def parse_lines(lines: DataFrame, schema: StructType) -> DataFrame:
    """Parse comma-separated lines.

    :param lines: columns ``file``, ``partition``, ``raw`` (a line without its end) and ``size`` (bytes, with its end);
        header lines among them.
    :param schema: of a line. A field that is not nullable may not be missing.
    :return: ``file``, ``partition``, ``raw``, ``size``, and either ``row`` (a struct of the schema) or ``reason``. The
        first header line of each file is gone; another one is refused like any bad line.
    """
    from pyspark.sql import functions as F

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

    types = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in schema.fields)
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _CORRUPT,
        "escape": '"',  # a quote within quotes is written twice (RFC 4180), not behind a backslash
        "nullValue": MISSING,
        "timestampFormat": TIMESTAMP_FORMAT,
        "dateFormat": DATE_FORMAT,
        "maxCharsPerColumn": "-1",
    }
    text = F.when(_reason_of_text(len(schema)).isNull(), F.col("raw"))
    parsed = body.withColumn("_text_reason", _reason_of_text(len(schema))).withColumn(
        "_parsed", F.from_csv(text, f"{types}, `{_CORRUPT}` string", options)
    )
    reason = F.coalesce(
        F.col("_text_reason"),
        F.when(F.col("_parsed").getField(_CORRUPT).isNotNull(), F.lit("type")),
        *(
            F.when(F.col("_parsed").getField(field.name).isNull(), F.lit(f"missing {field.name}"))
            for field in schema.fields
            if not field.nullable
        ),
    )
    row = F.struct(*(F.col("_parsed").getField(name).alias(name) for name in schema.fieldNames()))
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


def _reason_of_text(fields: int) -> Column:
    """Why the line cannot be parsed at all, from its text alone; null if it can."""
    from pyspark.sql import functions as F

    raw = F.col("raw")
    # few lines have a quote, and a regular expression costs more than all else here
    bare = F.when(F.contains(raw, F.lit('"')), F.regexp_replace(raw, _QUOTED, "")).otherwise(raw)
    return (
        F.when(raw.isNull() | (F.length(raw) == 0), F.lit("empty line"))
        .when(~F.is_valid_utf8(raw), F.lit("not UTF-8"))
        .when(F.contains(bare, F.lit('"')), F.lit("unbalanced quote"))
        .when(F.length(bare) - F.length(F.replace(bare, F.lit(","), F.lit(""))) != fields - 1, F.lit("field count"))
    )
