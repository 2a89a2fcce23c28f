"""Which types of Iceberg and Spark correspond to which types of ClickHouse.

ClickHouse reads a file's column as the type that the statement names. A narrower type changes values without an error,
also inside of arrays. Therefore the two types of a column are compared before the load.
"""

from __future__ import annotations

import re

# Spark's types, and the ClickHouse types that hold all their values. No other pair is allowed: a narrower type would
# change values.
_EQUAL = {
    "int": ("Int32",),
    "bigint": ("Int64",),
    "float": ("Float32",),
    "double": ("Float64",),
    "string": ("String",),
    "binary": ("String",),
    "boolean": ("Bool",),
    "date": ("Date", "Date32"),
    "timestamp": ("DateTime64(6, 'UTC')",),
    # a time without a zone is shown as the same time in UTC
    "timestamp_ntz": ("DateTime64(6)", "DateTime64(6, 'UTC')"),
    "uuid": ("FixedString(16)",),
}
# Iceberg's names that differ from Spark's. Iceberg's `timestamp` has no time zone; Spark's is in UTC.
_OF_ICEBERG = {"long": "bigint", "timestamptz": "timestamp", "timestamp": "timestamp_ntz"}
_WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")
_DECIMAL = re.compile(r"decimal\((\d+), ?(\d+)\)")
_FIXED = re.compile(r"fixed[\[(](\d+)[\])]")
_ARRAY = re.compile(r"(?:array|list)<(.*)>", re.DOTALL)
_MAP = re.compile(r"map<(.*)>", re.DOTALL)
_STRUCT = re.compile(r"struct<(.*)>", re.DOTALL)
# Spark writes `name:type`, Iceberg `number: name: optional type`
_FIELD = re.compile(r"\s*(?:\d+: )?(?P<name>[^:]+): ?(?:optional |required )?(?P<kind>.*)", re.DOTALL)
_ELEMENT = re.compile(r"(?P<name>`(?:[^`\\]|\\.)*`|\w+) (?P<kind>.*)", re.DOTALL)


def bare(kind: str) -> str:
    """A type of ClickHouse without Nullable and LowCardinality."""
    while match := _WRAPPED.fullmatch(kind):
        kind = match[1]
    return kind


def holds_null(kind: str) -> bool:
    """Whether a column of this ClickHouse type can be NULL."""
    return kind.startswith(("Nullable(", "LowCardinality(Nullable("))


def can_be_nullable(kind: str) -> bool:
    """Whether ClickHouse has Nullable of a type: not of nested types, nor around LowCardinality."""
    return not kind.startswith(("Array(", "Map(", "Tuple(", "Nested(", "LowCardinality("))


def fits(kind: str, clickhouse: str) -> bool:
    """Whether the ClickHouse type can hold every value of Spark's type `kind`, nested types included. NULL is not
    considered.
    """
    inner = bare(clickhouse)
    if match := _DECIMAL.fullmatch(kind):
        return inner == f"Decimal({match[1]}, {match[2]})"
    if match := _FIXED.fullmatch(kind):
        return inner == f"FixedString({match[1]})"
    if match := _ARRAY.fullmatch(kind):
        return inner.startswith("Array(") and fits(match[1].strip(), inner[len("Array(") : -1])
    if match := _MAP.fullmatch(kind):
        parts, targets = split_types(match[1]), split_types(inner[len("Map(") : -1]) if inner.startswith("Map(") else []
        return len(parts) == len(targets) == 2 and all(map(fits, parts, targets))
    if match := _STRUCT.fullmatch(kind):
        return inner.startswith("Tuple(") and _fields_fit(match[1], inner[len("Tuple(") : -1])
    return inner in _EQUAL.get(kind, ())


def cuts(iceberg: str, clickhouse: str) -> bool:
    """Whether ClickHouse would or could change values of an Iceberg type."""
    return not fits(_as_spark(iceberg), clickhouse)


def _as_spark(iceberg: str) -> str:
    """An Iceberg type with Spark's names of the simple types."""
    return re.sub(r"(?<![\w:])(long|timestamptz|timestamp)(?![\w:])", lambda match: _OF_ICEBERG[match[1]], iceberg)


def _fields_fit(struct: str, tuple_: str) -> bool:
    """Whether a named Tuple has exactly the fields of a struct, in any order: ClickHouse reads them by name."""
    fields = {m["name"].strip(): m["kind"] for part in split_types(struct) if (m := _FIELD.fullmatch(part))}
    elements = split_fields(tuple_)
    return fields.keys() == elements.keys() and all(fits(fields[name], elements[name]) for name in fields)


def split_fields(tuple_: str) -> dict[str, str]:
    """Name -> type of the elements of a named Tuple, from what is between its brackets."""
    return {m["name"].strip("`"): m["kind"] for part in split_types(tuple_) if (m := _ELEMENT.fullmatch(part))}


def split_types(text: str) -> list[str]:
    """The parts of a list in a type. Commas inside of brackets and quotes do not separate."""
    parts, depth, start, quoted = [], 0, 0, ""
    for at, sign in enumerate(text):
        if quoted or sign in "'`":
            quoted = "" if sign == quoted else quoted or sign
        elif sign in "(<[":
            depth += 1
        elif sign in ")>]":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]
