"""What becomes of the values of each type on each path: one table, for people and for tests.

``trilake types`` shows it, docs/reference/types.md is made from it, and tests compare it with the code of each path and
send values along the paths. There are three outcomes. A value arrives as it was (``exact``), or as another type or form
of the same value (``converted``), or it is refused before a reader sees it, by an error that names the column
(``refused``). A single value that its type cannot hold is always refused by name.
"""

from __future__ import annotations

import re
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
    return [Rule(", ".join(sources), how=why)]


_WHOLE = "Int8 to Int256, UInt8 to UInt256"
_FLOATS = "Float32, Float64, BFloat16"
_GEOMETRY = (
    "Geometry", "Point", "Ring", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon",
)  # fmt: skip
_TEXTS = "text, varchar(n), char(n)"
_NOT_OF_POSTGRES = (
    "array",
    "interval",
    "numeric without a precision",
    "money",
    "timetz",
    "xml",
    "point",
    "range",
    "bit",
)

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
    *_refused("read the column as string", "array", "map", "struct", "interval", "time", "variant"),
    *_refused("load it with S3ToClickHouseOperator, or write CSV", "a Parquet object"),
    *_refused("write CSV, with the document as a text", "a JSON object"),
)

_JOB_TO_ICEBERG = (
    *_exact(("int", "int"), ("bigint", "long"), ("float", "float"), ("double", "double"), ("string", "string")),
    *_exact(("binary", "binary"), ("boolean", "boolean"), ("date", "date"), ("decimal(p,s)", "decimal(p,s)")),
    *_exact(("timestamp", "timestamptz"), ("timestamp_ntz", "timestamp"), ("array", "list"), ("map", "map")),
    *_exact(("struct", "struct")),
    _converted("tinyint, smallint", "int", "a wider integer"),
    _converted("char(n), varchar(n)", "string", "without the length"),
    *_refused("cast it in the job: Iceberg has no such type", "interval", "variant", "void", "time", "geometry"),
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
    Rule("any type", "the same type of ClickHouse", "an array, map or struct that is NULL is refused"),
    _converted("a number", "another type of numbers", "if the number is equal there"),
    _converted("date", "Date, Date32", "if the date is in range"),
    _converted("timestamp", "DateTime, DateTime64", "if no digit of the second is lost"),
    _converted("string", "any type with a form in CSV", "by the rules of CSV"),
    *_refused("there is no equal value", "boolean to a number", "date to a time", "nested types that differ"),
)

_CLICKHOUSE_TO_POSTGRES = (
    Rule(_WHOLE, "smallint, integer, bigint, numeric", "a number out of the column's range is refused"),
    _converted(_WHOLE, "real, double precision", "up to 2^24, and up to 2^53"),
    _converted(_WHOLE, f"json, jsonb, {_TEXTS}", "the same digits"),
    Rule("Decimal(p, s)", "numeric, smallint, integer, bigint", "if no digit is cut"),
    _converted("Decimal(p, s)", f"real, double precision, json, jsonb, {_TEXTS}", "the same digits"),
    Rule(_FLOATS, "real, double precision", "if the column does not round it"),
    _converted(
        _FLOATS, f"numeric, smallint, integer, bigint, json, jsonb, {_TEXTS}", "the shortest digits of the float"
    ),
    Rule("Bool", "boolean"),
    _converted("Bool", f"json, jsonb, {_TEXTS}", "true or false"),
    Rule("String, FixedString(n)", f"{_TEXTS}, bytea", "NUL and bytes that are not UTF-8 are refused in a text"),
    Rule("Enum8, Enum16", f"{_TEXTS}, enum", "the name"),
    _converted("String, FixedString(n)", "any other type", "if PostgreSQL writes it in the same way"),
    _converted("Enum8, Enum16", "any other type", "if PostgreSQL writes it in the same way"),
    Rule("Date, Date32", "date"),
    _converted("Date, Date32", f"timestamp, timestamptz, json, jsonb, {_TEXTS}", "midnight in UTC, or the text"),
    Rule("DateTime, DateTime64(n)", "timestamptz", "nanoseconds are refused"),
    _converted("DateTime, DateTime64(n)", f"timestamp, {_TEXTS}", "in UTC; another zone is refused in a timestamp"),
    Rule("Time, Time64(n)", "time, interval", "nanoseconds are refused, and in a time what is not in a day"),
    _converted("Time, Time64(n)", f"json, jsonb, {_TEXTS}", "the text"),
    *_exact(("UUID", "uuid"), ("IPv4, IPv6", "inet, cidr")),
    _converted("UUID, IPv4, IPv6", f"json, jsonb, {_TEXTS}", "the text"),
    Rule("Array(T)", "an array of a type for T", "inner arrays that are empty or differ in length are refused"),
    _converted(
        "Array(T), Map(K, V), Tuple, Nested, JSON, Dynamic, Variant, Geometry, Point, Ring, LineString, Polygon, "
        "MultiPoint, MultiLineString, MultiPolygon, QBit",
        "json, jsonb",
        "numbers of any size are numbers; NaN and infinity are texts; times are in UTC",
    ),
    _converted("Nothing", "any type", "NULL"),
    *_refused("select finalizeAggregation(column)", "AggregateFunction"),
    *_refused("select the number: toInt64(column)", "Interval"),
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
    *_refused(
        "read a query that converts it", "DateTime64(7)", "DateTime64(9)", "Decimal(76, 10)", "UUID", "IPv4", "IPv6",
        "Int128", "Int256", "UInt128", "UInt256", "BFloat16", "FixedString(3)", "Map(String, Int32)", "Tuple(a Int32)",
        "Nested(a Int32)", "JSON", "Dynamic", "Variant(Int8, String)", "Time", "Time64(6)", "IntervalDay", "Nothing",
        "AggregateFunction(sum, Int64)", "QBit(Float32, 3)", *_GEOMETRY,
    ),
)  # fmt: skip

_CLICKHOUSE_TO_S3 = (
    *_exact(("Int8 to Int64, UInt8 to UInt64", "the same integer"), ("Float32, Float64", "float, double")),
    *_exact(("Decimal(p, s)", "decimal(p, s)"), ("Bool", "boolean"), ("Date, Date32", "date"), ("UUID", "uuid")),
    Rule("String", "string", "bytes stay as they are: some readers refuse text that is not UTF-8"),
    Rule("DateTime64(n)", "timestamp in UTC", "milliseconds, microseconds or nanoseconds, whichever holds n digits"),
    _converted("DateTime", "timestamp in UTC", "milliseconds"),
    *_exact(("FixedString(n)", "fixed(n)"), ("Array(T)", "list"), ("Map(K, V)", "map"), ("Tuple", "struct")),
    *_exact(("Nested", "list of structs"), ("JSON", "json")),
    _converted("Enum8, Enum16", "binary", "the name"),
    _converted("IPv4", "uint32", "the number of the address"),
    _converted("IPv6", "fixed(16)", "the bytes of the address"),
    _converted("Int128, Int256, UInt128, UInt256", "fixed(16), fixed(32)", "the bytes, the lowest one first"),
    *_refused(
        "ClickHouse writes no such Parquet", "BFloat16", "Time", "Time64", "Interval", "Variant", "Dynamic", "Nothing",
        "AggregateFunction", "QBit",
    ),
    *_refused("ClickHouse writes bytes (WKB) and calls them text: cast it to a tuple", *_GEOMETRY),
)  # fmt: skip

_FROM_POSTGRES = (
    *_exact(("boolean", "boolean"), ("smallint", "int16"), ("integer", "int32"), ("bigint", "int64")),
    *_exact(("real", "float"), ("double precision", "double"), ("bytea", "binary"), ("date", "date")),
    *_exact(("text, varchar(n), char(n)", "string"), ("time", "time in microseconds"), ("timestamp", "timestamp")),
    *_exact(("timestamptz", "timestamp in UTC"), ("numeric(p, s)", "decimal(p, s)")),
    _converted("oid", "int64", "a wider integer"),
    _converted("json, jsonb, uuid, inet, cidr, enum, name", "string", "the text that PostgreSQL writes"),
    _converted("domain", "as the type below it", ""),
    *_refused("cast it to text or jsonb", *_NOT_OF_POSTGRES),
)

_POSTGRES_TO_ICEBERG = (
    *_exact(("boolean", "boolean"), ("integer", "int"), ("bigint", "long"), ("real", "float")),
    *_exact(("double precision", "double"), ("bytea", "binary"), ("date", "date"), ("time", "time")),
    *_exact(("text, varchar(n), char(n)", "string"), ("timestamp", "timestamp"), ("timestamptz", "timestamptz")),
    *_exact(("numeric(p, s)", "decimal(p, s)")),
    _converted("smallint", "int", "a wider integer"),
    _converted("oid", "long", "a wider integer"),
    _converted("json, jsonb, uuid, inet, cidr, enum, name", "string", "the text that PostgreSQL writes"),
    _converted("domain", "as the type below it", ""),
    *_refused("cast it to text or jsonb", *_NOT_OF_POSTGRES),
)

_SPARK_TO_POSTGRES = (
    Rule("tinyint, smallint, int, bigint", "smallint, integer, bigint, numeric", "a number out of range is refused"),
    _converted("tinyint, smallint, int, bigint", "real, double precision", "up to 2^24, and up to 2^53"),
    _converted("tinyint, smallint, int, bigint", f"json, jsonb, {_TEXTS}", "the same digits"),
    Rule("decimal(p,s)", "numeric, smallint, integer, bigint", "if no digit is cut"),
    _converted("decimal(p,s)", f"real, double precision, json, jsonb, {_TEXTS}", "the same digits"),
    Rule("float, double", "real, double precision", "if the column does not round it"),
    _converted("float, double", f"numeric, smallint, integer, bigint, json, jsonb, {_TEXTS}", "the shortest digits"),
    Rule("boolean", "boolean"),
    _converted("boolean", f"json, jsonb, {_TEXTS}", "true or false"),
    Rule("string, char(n), varchar(n)", _TEXTS, "NUL and bytes that are not UTF-8 are refused"),
    _converted("string, char(n), varchar(n)", "any other type", "if PostgreSQL writes it in the same way"),
    Rule("binary", "bytea"),
    Rule("date", "date"),
    _converted("date", f"timestamp, timestamptz, {_TEXTS}", "midnight in UTC, or the text"),
    Rule("timestamp", "timestamptz"),
    _converted("timestamp", f"timestamp, {_TEXTS}", "in UTC"),
    Rule("timestamp_ntz", "timestamp"),
    _converted("timestamp_ntz", _TEXTS, "the text"),
    _converted("array, map, struct", "json, jsonb", "fields that are NULL stay"),
    _converted("void", "any type", "NULL"),
    *_refused("cast it in the job", "interval", "variant", "time", "geometry"),
)

_PYTHON_TO_CLICKHOUSE = (
    Rule("int", _WHOLE, "in range"),
    _converted("float, Decimal, str, bool", _WHOLE, "if it is an integer; true and false are 1 and 0"),
    Rule("float", "Float64"),
    Rule("float", "Float32, BFloat16", "if the type has it; for Float32 also the shortest text of one, such as 0.1"),
    _converted("int, Decimal, str", _FLOATS, "if a float is equal; the text of a number becomes the nearest float"),
    Rule("Decimal", "Decimal(p, s)", "if no digit is cut"),
    _converted("int, float, str", "Decimal(p, s)", "the shortest text of a float, if no digit is cut"),
    Rule("bool", "Bool"),
    _converted("0, 1, and the texts true, t, 1, false, f, 0", "Bool", ""),
    Rule("str, bytes", "String", "text that UTF-8 can hold"),
    _converted("UUID, IPv4Address, IPv6Address", "String", "the text"),
    Rule("str, bytes", "FixedString(n)", "exactly n bytes"),
    Rule("str", "Enum8, Enum16", "a name of the Enum"),
    _converted("int", "Enum8, Enum16", "a number of the Enum"),
    Rule("date", "Date, Date32", "in range"),
    _converted("str, int, datetime", "Date, Date32", "2013-01-31; days since 1970; midnight without a zone"),
    Rule(
        "datetime", "DateTime, DateTime64(n)", "without a zone it is in UTC, and is refused if the column has another"
    ),
    _converted("str, int", "DateTime, DateTime64(n)", "text of ISO 8601; the column's unit since 1970"),
    Rule("time, timedelta", "Time, Time64(n)", "a time without a zone"),
    _converted("str", "Time, Time64(n)", "12:00:00"),
    *_exact(("UUID", "UUID"), ("IPv4Address", "IPv4"), ("IPv6Address", "IPv6")),
    _converted("str, 16 bytes", "UUID", ""),
    _converted("str", "IPv4, IPv6", ""),
    Rule("list, tuple", "Array(T)", "elements by these rules"),
    Rule("dict", "Map(K, V), Tuple, JSON", "all names of a tuple; JSON leaves out a key whose value is null"),
    Rule("tuple", "Tuple, Point", ""),
    Rule("list of dicts", "Nested"),
    Rule("list of tuples", "Ring, LineString, Polygon, MultiPoint, MultiLineString, MultiPolygon"),
    _converted("int", "Interval", "in the column's unit"),
    Rule("as T", "SimpleAggregateFunction(f, T)"),
    *_refused(
        "write it with INSERT ... SELECT", "any value for Variant", "Dynamic", "AggregateFunction", "QBit", "Geometry"
    ),
)

_CLICKHOUSE_TO_PYTHON = (
    *_exact((_WHOLE, "int"), ("Float64", "float"), ("Decimal(p, s)", "Decimal"), ("Bool", "bool")),
    _converted("Float32, BFloat16", "float", "the float of the same value: 0.10000000149011612 for 0.1"),
    Rule("String", "str", "bytes that are not UTF-8 are refused"),
    *_exact(("FixedString(n)", "bytes"), ("Date, Date32", "date"), ("UUID", "UUID"), ("IPv4", "IPv4Address")),
    *_exact(("IPv6", "IPv6Address"), ("Time, Time64(n)", "timedelta"), ("Array(T)", "list")),
    _converted("Enum8, Enum16", "str", "the name"),
    _converted(
        "DateTime, DateTime64(n)", "datetime", "in UTC without a zone, or in the zone of the type; microseconds"
    ),
    Rule("Map(K, V)", "dict", "a key that occurs twice is refused"),
    *_exact(("Tuple", "tuple, or dict by its names"), ("Nested", "list of dicts"), ("JSON", "dict")),
    *_exact(("Dynamic, Variant", "as the type of the value"), ("QBit", "list of floats"), ("Nothing", "None")),
    *_exact((", ".join(_GEOMETRY), "tuples and lists of floats")),
    _converted("Interval", "int", "in the unit of the type"),
    *_refused("select finalizeAggregation(column)", "AggregateFunction"),
)

_CLICKHOUSE_TO_XCOM = (
    Rule("Int8 to Int64, UInt8 to UInt64", "int"),
    _converted("Int128, Int256, UInt128, UInt256", "int, str", "a text if it has more than 64 bits"),
    Rule(_FLOATS, "float"),
    _converted(_FLOATS, "str", "NaN, infinity, -0.0, and from 1e16 on"),
    Rule("Decimal(p, s)", "Decimal"),
    _converted("Decimal(p, s)", "str", "if it has more digits than XCom keeps"),
    *_exact(("Bool", "bool"), ("Date, Date32", "date"), ("UUID", "UUID"), ("Array(T)", "list"), ("Nothing", "None")),
    Rule("String", "str", "NUL and bytes that are not UTF-8 are refused"),
    _converted("FixedString(n), Enum8, Enum16", "str", "the text or the name"),
    _converted("DateTime, DateTime64(n)", "datetime", "in UTC, or in the zone of the type"),
    _converted("IPv4, IPv6, Time, Time64(n)", "str", "the text"),
    _converted(
        "Map(K, V)", "dict", "keys are texts, in any order; `__classname__`, `__id__`, `__type`, `__var` are refused"
    ),
    *_exact(("Tuple", "tuple, or dict by its names"), ("Nested", "list of dicts"), ("JSON", "dict")),
    *_exact(("Dynamic, Variant", "as the type of the value"), ("QBit", "list of floats")),
    *_exact((", ".join(_GEOMETRY), "tuples and lists of floats")),
    _converted("Interval", "int", "in the unit of the type"),
    *_refused("select finalizeAggregation(column)", "AggregateFunction"),
)

PATHS: tuple[Path, ...] = (
    Path("csv-job", "Raw object to job", "`Job.read`", _CSV_TO_JOB, "A line with another text is quarantined."),
    Path("job-iceberg", "Job to Iceberg", "`Job.commit`", _JOB_TO_ICEBERG,
         "The type of a column of an existing table must hold the rows' type, or Iceberg must be able to widen it."),
    Path("iceberg-clickhouse", "Iceberg to ClickHouse", "publications", _ICEBERG_TO_CLICKHOUSE,
         "Nullable and LowCardinality make no difference. A NULL for a column without NULL is refused."),
    Path("csv-clickhouse", "CSV object to ClickHouse", "`S3ToClickHouseOperator`", _TEXT_TO_CLICKHOUSE),
    Path("parquet-clickhouse", "Parquet object to ClickHouse", "`S3ToClickHouseOperator`", _PARQUET_TO_CLICKHOUSE),
    Path("clickhouse-postgres", "ClickHouse to PostgreSQL", "`ClickHouseToPostgresOperator`", _CLICKHOUSE_TO_POSTGRES,
         "Nullable, LowCardinality and SimpleAggregateFunction make no difference. A domain is as the type below it."),
    Path("clickhouse-s3", "ClickHouse to S3", "`ClickHouseToS3Operator`", _CLICKHOUSE_TO_S3,
         "LowCardinality and SimpleAggregateFunction make no difference."),
    Path("clickhouse-job", "ClickHouse to job", "`Job.read_table`", _CLICKHOUSE_TO_JOB,
         "Nullable and LowCardinality make no difference."),
    Path("postgres-s3", "PostgreSQL to S3 (Parquet)", "`PostgresToS3Operator`", _FROM_POSTGRES,
         "Infinite dates, years before 1 and after 9999, and NaN in a numeric are refused. CSV has PostgreSQL's text."),
    Path("postgres-iceberg", "PostgreSQL to Iceberg", "`PostgresToIcebergOperator`", _POSTGRES_TO_ICEBERG,
         "Infinite dates, years before 1 and after 9999, and NaN in a numeric are refused."),
    Path("spark-postgres", "Job to PostgreSQL", "`write_postgres`", _SPARK_TO_POSTGRES),
    Path("python-clickhouse", "Python to ClickHouse", "`insert_rows` and the other inserts of the hook",
         _PYTHON_TO_CLICKHOUSE, "A value of another type, or one that the column cannot hold, is refused by its row."),
    Path("clickhouse-python", "ClickHouse to Python", "`get_records` and `stream_rows`", _CLICKHOUSE_TO_PYTHON,
         "A value out of the years 1 to 9999 is refused. Frames and Arrow: see provider.md."),
    Path("clickhouse-xcom", "ClickHouse to XCom", "`ClickHouseOperator`", _CLICKHOUSE_TO_XCOM,
         "What `clickhouse-python` refuses is refused here too."),
)  # fmt: skip

_HEAD = """# Types

<!-- `trilake types --markdown` writes this file. A test compares them. -->

A value arrives exactly, or by a conversion of this page, or it is refused before a reader sees it. The error names the
column, the place, the value and the next step. The same holds for a single value that its type cannot hold, such as
1.239 for `Decimal(9, 2)`. `trilake types` shows this page, and `trilake types NAME` one path.

An array, a map or a struct has its rule, and its elements have theirs. [provider.md](provider.md) explains the paths of
ClickHouse's hook and of PostgreSQL in more words.

"""


def find(name: str) -> Path | None:
    """The path of this name."""
    return next((path for path in PATHS if path.name == name), None)


def markdown(paths: Sequence[Path] = PATHS) -> str:
    """The table as Markdown, with a section for each path."""
    index = "".join(f"| [{path.name}](#{_anchor(path.title)}) | {path.title} | {path.by} |\n" for path in PATHS)
    return f"{_HEAD}| path | | by |\n|---|---|---|\n{index}" + "".join("\n".join(_section(path)) for path in paths)


def _anchor(title: str) -> str:
    """The name of a heading in a link, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _section(path: Path) -> Iterator[str]:
    yield f"\n## {path.title}\n"
    yield f"By {path.by}; `trilake types {path.name}`. {path.note}".rstrip() + "\n"
    yield "| from | to | outcome | |"
    yield "|---|---|---|---|"
    for rule in path.rules:
        yield f"| {rule.source} | {rule.target} | {rule.outcome} | {rule.how} |"
    yield ""
