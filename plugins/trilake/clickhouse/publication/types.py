"""Which types of Iceberg and Spark correspond to which types of ClickHouse.

ClickHouse reads a file's column as the type that the statement names. A narrower type changes values without an error.
The audit of the load reads the same changed values, so it cannot detect this. Therefore the two types of a column are
compared before the load.
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
}
# Iceberg's names that differ from Spark's. Iceberg's `timestamp` has no time zone; Spark's is in UTC.
_OF_ICEBERG = {"long": "bigint", "timestamptz": "timestamp", "timestamp": "timestamp_ntz"}
_WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
_ARRAY = re.compile(r"array<(.*)>")


def bare(kind: str) -> str:
    """A type of ClickHouse without Nullable and LowCardinality."""
    while match := _WRAPPED.fullmatch(kind):
        kind = match[1]
    return kind


def fits(kind: str, clickhouse: str) -> bool:
    """Whether the ClickHouse type can hold every value of Spark's type `kind`. NULL is not considered."""
    inner = bare(clickhouse)
    if match := _DECIMAL.fullmatch(kind):
        return inner == f"Decimal({match[1]}, {match[2]})"
    if (match := _ARRAY.fullmatch(kind)) and inner.startswith("Array("):
        return fits(match[1], inner.removeprefix("Array(").removesuffix(")"))
    return inner in _EQUAL.get(kind, ())


def cuts(iceberg: str, clickhouse: str) -> bool:
    """Whether ClickHouse would change values of a simple Iceberg type. For nested types ClickHouse itself decides."""
    kind = _OF_ICEBERG.get(iceberg, iceberg.replace(", ", ","))
    return (kind in _EQUAL or bool(_DECIMAL.fullmatch(kind))) and not fits(kind, clickhouse)
