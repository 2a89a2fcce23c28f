"""Which types of Iceberg and Spark are which of ClickHouse.

ClickHouse reads a file's column as the type that it is told. One that is narrower cuts values without a word, and what
audits the load reads them cut alike: so a column's two types are held against each other before.
"""

from __future__ import annotations

import re

# Spark's types as ClickHouse reads them from Iceberg's files. No other pair: a narrower one would cut values.
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
# Iceberg's own names, where they are others. Its `timestamp` has no zone, Spark's is UTC's.
_OF_ICEBERG = {"long": "bigint", "timestamptz": "timestamp", "timestamp": "timestamp_ntz"}
_WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
_ARRAY = re.compile(r"array<(.*)>")


def bare(kind: str) -> str:
    """A type of ClickHouse without Nullable and LowCardinality."""
    while found := _WRAPPED.fullmatch(kind):
        kind = found[1]
    return kind


def fits(kind: str, clickhouse: str) -> bool:
    """Whether each value of Spark's type `kind` is one of ClickHouse's, NULL aside."""
    inner = bare(clickhouse)
    if found := _DECIMAL.fullmatch(kind):
        return inner == f"Decimal({found[1]}, {found[2]})"
    if (found := _ARRAY.fullmatch(kind)) and inner.startswith("Array("):
        return fits(found[1], inner.removeprefix("Array(").removesuffix(")"))
    return inner in _EQUAL.get(kind, ())


def cuts(iceberg: str, clickhouse: str) -> bool:
    """Whether a column of Iceberg's simple type would be read as something else. Of nested ones ClickHouse decides."""
    kind = _OF_ICEBERG.get(iceberg, iceberg.replace(", ", ","))
    return (kind in _EQUAL or bool(_DECIMAL.fullmatch(kind))) and not fits(kind, clickhouse)
