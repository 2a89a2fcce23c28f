"""What becomes of the values of each type on each path: one table, for people and for tests.

``trilake types`` shows it, docs/reference/types.md is made from it, and tests compare it with the code of each path and
send values along the paths. There are three outcomes. A value arrives as it was (``exact``), or as another type or form
of the same value (``converted``), or it is refused before a reader sees it, by an error that names the column
(``refused``). A single value that its type cannot hold is always refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["exact", "converted", "refused"]


@dataclass(frozen=True)
class Rule:
    """One type on one path.

    :param source: the type where the value comes from.
    :param target: the type where it arrives; empty if it is refused.
    :param how: the conversion, or why it is refused; empty if there is nothing to say.
    """

    source: str
    target: str = ""
    how: str = ""
    same: bool = True

    @property
    def outcome(self) -> Outcome:
        if not self.target:
            return "refused"
        return "exact" if self.same else "converted"


@dataclass(frozen=True)
class Path:
    """A way of values from one store to another.

    :param name: for ``trilake types NAME``.
    :param by: what moves the values.
    """

    name: str
    title: str
    by: str
    rules: tuple[Rule, ...]
    note: str = ""


def _exact(*pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(source, target) for source, target in pairs]


def _converted(source: str, target: str, how: str) -> Rule:
    return Rule(source, target, how, same=False)


def _refused(why: str, *sources: str) -> list[Rule]:
    return [Rule(source, how=why) for source in sources]


_CSV_TO_JOB = (
    Rule("any text", "string", 'an empty field without quotes is NULL; `""` is the empty string'),
    Rule("decimal digits with an optional sign", "tinyint, smallint, int, bigint"),
    Rule("decimal digits, without an exponent", "decimal(p,s)", "more digits of the fraction than s must be zeros"),
    _converted("a number; NaN, Inf, Infinity", "float, double", "the nearest number of the type"),
    _converted("true, false, t, f, in any case", "boolean", ""),
    Rule("2013-01-05", "date"),
    _converted("2013-01-05T10:00:00.123456+01:00", "timestamp", "to UTC; `T` or a blank, `Z` or an offset"),
    Rule("2013-01-05T10:00:00.123456", "timestamp_ntz"),
    _converted(r"`\x00ff`, as PostgreSQL writes bytes", "binary", ""),
    *_refused("read the column as string", "array", "map", "struct", "interval"),
)

_JOB_TO_ICEBERG = (
    *_exact(("int", "int"), ("bigint", "long"), ("float", "float"), ("double", "double"), ("string", "string")),
    *_exact(("binary", "binary"), ("boolean", "boolean"), ("date", "date"), ("decimal(p,s)", "decimal(p,s)")),
    *_exact(("timestamp", "timestamptz"), ("timestamp_ntz", "timestamp"), ("array", "list"), ("map", "map")),
    *_exact(("struct", "struct")),
    _converted("tinyint, smallint", "int", "a wider integer"),
    *_refused("Iceberg has no such type", "interval", "variant", "void"),
)

_ICEBERG_TO_CLICKHOUSE = (
    *_exact(("int", "Int32"), ("long", "Int64"), ("float", "Float32"), ("double", "Float64"), ("boolean", "Bool")),
    *_exact(("string", "String"), ("binary", "String"), ("decimal(p, s)", "Decimal(p, s)"), ("date", "Date32")),
    Rule("date", "Date", "a date outside of 1970 to 2149 is refused"),
    Rule("timestamptz", "DateTime64(6, 'UTC')"),
    _converted("timestamp", "DateTime64(6)", "the same time of day, in UTC"),
    *_exact(("fixed[n]", "FixedString(n)"), ("uuid", "FixedString(16)")),
    Rule("list<T>", "Array(T)", "a list that is NULL is refused: ClickHouse has no such arrays"),
    Rule("map<K, V>", "Map(K, V)", "a map that is NULL is refused"),
    Rule("struct<name: T>", "Tuple(name T)", "the same fields in any order; a struct that is NULL is refused"),
    *_refused("ClickHouse has no equal type", "time"),
)

_TEXT_TO_CLICKHOUSE = (
    Rule("any text", "String", "bytes stay as they are; an empty field is the empty string, or NULL if it can be"),
    Rule("text of exactly n bytes", "FixedString(n)"),
    Rule("decimal digits with an optional sign", "Int8 to Int256, UInt8 to UInt256"),
    _converted("a number; nan, inf, infinity", "Float32, Float64", "the nearest number of the type"),
    Rule("decimal digits, without an exponent", "Decimal(p, s)", "more digits of the fraction than s must be zeros"),
    _converted("true, false, t, f, 1, 0, in any case", "Bool", ""),
    *_exact(("2013-01-05", "Date, Date32"), ("10:00:00", "Time, Time64(n)")),
    _converted(
        "2013-01-05T10:00:00.123+01:00",
        "DateTime, DateTime64(n, zone)",
        "the same moment; without an offset it is UTC, and is refused if the column has another zone",
    ),
    *_exact(("61f0c404-5cb3-11e7-907b-a6006ad3dba0", "UUID"), ("1.2.3.4", "IPv4"), ("::1", "IPv6")),
    Rule("a name of the Enum", "Enum8, Enum16"),
    *_refused("load nested values as Parquet", "Array", "Map", "Tuple", "JSON", "Variant"),
)

_PARQUET_TO_CLICKHOUSE = (
    Rule("any type", "the same type of ClickHouse"),
    _converted("a number", "another type of numbers", "if the number is equal there"),
    _converted("date", "Date, Date32", "if the date is in range"),
    _converted("timestamp", "DateTime, DateTime64", "if no digit of the second is lost"),
    _converted("string", "any type with a form in CSV", "by the rules of CSV"),
    *_refused("there is no equal value", "boolean to a number", "date to a time", "nested types that differ"),
)

_CLICKHOUSE_TO_JOB = (
    *_exact(("Bool", "boolean"), ("String", "string"), ("Float32", "float"), ("Float64", "double")),
    *_exact(("Date", "date"), ("Date32", "date"), ("Int8", "tinyint"), ("Int16", "smallint"), ("Int32", "int")),
    *_exact(("Int64", "bigint"), ("Decimal(p, s)", "decimal(p,s)"), ("Array(T)", "array<T>")),
    _converted("UInt8", "smallint", "a wider integer"),
    _converted("UInt16", "int", "a wider integer"),
    _converted("UInt32", "bigint", "a wider integer"),
    _converted("UInt64", "decimal(20,0)", "a decimal without a fraction"),
    _converted("Enum8, Enum16", "string", "the name"),
    _converted("DateTime, DateTime64(0 to 6)", "timestamp", "in UTC"),
    *_refused("read a query that converts it", "DateTime64(7)", "DateTime64(9)", "Decimal(76, 10)", "UUID", "IPv4"),
    *_refused("read a query that converts it", "IPv6", "Int128", "UInt256", "FixedString(3)", "Map(String, Int32)"),
    *_refused("read a query that converts it", "Tuple(a Int32)", "JSON", "Time"),
)

_CLICKHOUSE_TO_S3 = (
    *_exact(("Int8 to Int64, UInt8 to UInt64", "the same integer"), ("Float32, Float64", "float, double")),
    *_exact(("Decimal(p, s)", "decimal(p, s)"), ("Bool", "boolean"), ("Date, Date32", "date"), ("UUID", "uuid")),
    Rule("String", "string", "bytes stay as they are: some readers refuse text that is not UTF-8"),
    Rule("DateTime64(n)", "timestamp in UTC", "milliseconds, microseconds or nanoseconds"),
    _converted("DateTime", "timestamp in UTC", "milliseconds"),
    *_exact(("FixedString(n)", "fixed(n)"), ("Array", "list"), ("Map", "map"), ("Tuple", "struct"), ("JSON", "json")),
    _converted("Enum8, Enum16", "binary", "the name"),
    _converted("IPv4", "uint32", "the number of the address"),
    _converted("IPv6", "fixed(16)", "the bytes of the address"),
    _converted("Int128, Int256, UInt128, UInt256", "fixed(16), fixed(32)", "the bytes, the lowest one first"),
    *_refused("ClickHouse writes no such Parquet", "BFloat16", "Time", "Time64", "Interval", "Variant", "Nothing"),
)

_FROM_POSTGRES = (
    *_exact(("boolean", "boolean"), ("smallint", "int16"), ("integer", "int32"), ("bigint", "int64")),
    *_exact(("real", "float"), ("double precision", "double"), ("bytea", "binary"), ("date", "date")),
    *_exact(("text, varchar, char", "string"), ("time", "time in microseconds"), ("timestamp", "timestamp")),
    *_exact(("timestamptz", "timestamp in UTC"), ("numeric(p, s)", "decimal(p, s)")),
    _converted("oid", "int64", "a wider integer"),
    _converted("json, jsonb, uuid, inet, cidr, enum", "string", "the text that PostgreSQL writes"),
    *_refused("cast it to text or jsonb", "array", "interval", "numeric without a precision", "money", "point"),
)

PATHS: tuple[Path, ...] = (
    Path("csv-job", "CSV file to job", "`Job.read`", _CSV_TO_JOB, "A line with another text is quarantined."),
    Path("job-iceberg", "Job to Iceberg", "`Job.commit`", _JOB_TO_ICEBERG,
         "The type of a column of an existing table must hold the rows' type, or Iceberg must be able to widen it."),
    Path("iceberg-clickhouse", "Iceberg to ClickHouse", "publications", _ICEBERG_TO_CLICKHOUSE,
         "Nullable and LowCardinality make no difference. A NULL for a column without NULL is refused."),
    Path("csv-clickhouse", "CSV object to ClickHouse", "`S3ToClickHouseOperator`", _TEXT_TO_CLICKHOUSE),
    Path("parquet-clickhouse", "Parquet object to ClickHouse", "`S3ToClickHouseOperator`", _PARQUET_TO_CLICKHOUSE),
    Path("clickhouse-job", "ClickHouse to job", "`Job.read_table`", _CLICKHOUSE_TO_JOB),
    Path("clickhouse-s3", "ClickHouse to S3", "`ClickHouseToS3Operator`", _CLICKHOUSE_TO_S3),
    Path("postgres-s3", "PostgreSQL to S3 (Parquet) and to Iceberg", "`PostgresToS3Operator`, "
         "`PostgresToIcebergOperator`", _FROM_POSTGRES,
         "Infinite dates, years before 1 and after 9999, and NaN in a numeric are refused. CSV has PostgreSQL's text."),
)  # fmt: skip

_HEAD = """# Types

<!-- `trilake types --markdown` writes this file. A test compares them. -->

A value arrives exactly, or by a conversion of this page, or it is refused before a reader sees it. The error names the
column, the place, the value and the next step. The same holds for a single value that its type cannot hold, such as
1.239 for `Decimal(9, 2)`. `trilake types` shows this page, and `trilake types NAME` one path.

[provider.md](provider.md) has the paths that depend on two types in more detail: ClickHouse and Spark to PostgreSQL
(marts), the hook's inserts and reads, and XCom.
"""


def find(name: str) -> Path | None:
    """The path of this name."""
    return next((path for path in PATHS if path.name == name), None)


def markdown(paths: Sequence[Path] = PATHS) -> str:
    """The table as Markdown, with a section for each path."""
    return _HEAD + "".join("\n".join(_section(path)) for path in paths)


def _section(path: Path) -> Iterator[str]:
    yield f"\n## {path.title}\n"
    yield f"By {path.by}; `trilake types {path.name}`. {path.note}".rstrip() + "\n"
    yield "| from | to | outcome | |"
    yield "|---|---|---|---|"
    for rule in path.rules:
        yield f"| {rule.source} | {rule.target} | {rule.outcome} | {rule.how} |"
    yield ""
