"""Python's values for a column of ClickHouse: each is exactly what the column holds then, or it is refused.

The driver converts leniently: it cuts 1.239 to Decimal 1.23, takes "false" as true, writes an unknown name of an Enum
as a number that nobody can read, and shifts a datetime without a time zone by the worker's zone. So every column of a
block is converted here first, to the one Python type that the driver writes without a change.

What is converted, and how, is in docs/reference/provider.md. In short: numbers of any type if they are equal; text if
it is exactly such a value; a datetime without a time zone is in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.exact import moments, nested, numbers, text
from trilake.clickhouse.exact.base import RefusedValueError
from trilake.clickhouse.exact.moments import UTC_NAMES, Ticks, bound_in_utc, naive_is_utc

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

__all__ = [
    "UTC_NAMES",
    "RefusedValueError",
    "Ticks",
    "bound_in_utc",
    "exact_column",
    "is_missing",
    "naive_is_utc",
]

_MISSING = ("NAType", "NaTType", "datetime64", "timedelta64")  # of pandas; of numpy only NaT
# These have other names in ClickHouse, and the same values.
_SHAPES = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "MultiPoint": "Array(Point)",
    "Polygon": "Array(Ring)",
    "MultiLineString": "Array(LineString)",
    "MultiPolygon": "Array(Polygon)",
}


def exact_column(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """The values as the driver writes them to a column of type `kind` without a change.

    :raises RefusedValueError: the first value that the column cannot hold exactly.
    """
    found = {item.__name__ for item in set(map(type, values))}
    if "NoneType" not in found and found.isdisjoint(_MISSING):
        return _convert(kind, values)
    if not found.isdisjoint(_MISSING):
        values = [None if is_missing(value) else value for value in values]
        if all(value is not None for value in values):
            return _convert(kind, values)
    places = [place for place, value in enumerate(values) if value is not None]
    if not _holds_null(kind):
        position = next(place for place, value in enumerate(values) if value is None)
        raise RefusedValueError(position, None, "the column cannot hold NULL")
    try:
        present = iter(_convert(kind, [values[place] for place in places]))
    except RefusedValueError as e:
        raise RefusedValueError(places[e.position], e.value, str(e)) from None
    return [None if value is None else next(present) for value in values]


def is_missing(value: Any) -> bool:
    """Whether a value is None, or what pandas writes for it."""
    name = type(value).__name__
    if value is None or name not in _MISSING:
        return value is None
    if name.startswith("Na") or name == "NAType":
        return True
    import numpy

    return bool(numpy.isnat(value))


def _holds_null(kind: ClickHouseType) -> bool:
    if kind.base_type == "SimpleAggregateFunction":
        return kind.nullable or _holds_null(kind.element_type)  # type: ignore[attr-defined]
    return bool(kind.nullable) or kind.base_type == "Nothing"


def _convert(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    base = kind.base_type or ""
    if not values and base not in ("Array", "Map", "Tuple", "Nested"):
        return values
    if base in _SHAPES:
        from clickhouse_connect.datatypes.registry import get_from_name

        return exact_column(get_from_name(_SHAPES[base]), values)
    if base.startswith("Interval"):
        return numbers.integers(kind, values, numbers.INT64)
    if (limits := numbers.limits_of(base)) is not None:
        return numbers.integers(kind, values, limits)
    convert = _CONVERT.get(base)
    if convert is None:
        raise RefusedValueError(0, values[0], f"values of {base} cannot be checked before they are sent")
    return convert(kind, values)


def _of_aggregate(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    return exact_column(kind.element_type, values)  # type: ignore[attr-defined]


_CONVERT: Mapping[str, Callable[[Any, Sequence[Any]], Sequence[Any]]] = {
    "Float64": numbers.floats,
    "Float32": numbers.small_floats,
    "BFloat16": numbers.tiny_floats,
    **dict.fromkeys(("Decimal", "Decimal32", "Decimal64", "Decimal128", "Decimal256"), numbers.decimals),
    "Bool": numbers.bools,
    "Boolean": numbers.bools,
    "String": text.texts,
    "FixedString": text.fixed_strings,
    **dict.fromkeys(("Enum", "Enum8", "Enum16"), text.enums),
    "Date": moments.dates,
    "Date32": moments.dates,
    "DateTime": moments.datetimes,
    "DateTime64": moments.datetimes,
    "Time": moments.times,
    "Time64": moments.times,
    "UUID": text.uuids,
    "IPv4": text.ipv4,
    "IPv6": text.ipv6,
    "Array": nested.arrays,
    "Map": nested.maps,
    "Tuple": nested.tuples,
    "Nested": nested.nested,
    "JSON": nested.documents,
    "SimpleAggregateFunction": _of_aggregate,
}
