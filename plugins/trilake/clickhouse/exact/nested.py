"""Arrays, maps, tuples, nested columns and JSON."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.exact.base import NoError, RefusedValueError, a, each
from trilake.clickhouse.exact.numbers import as_float
from trilake.clickhouse.exact.text import as_text

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType


def _inside(kind: ClickHouseType, values: list[Any], sizes: Sequence[int]) -> Sequence[Any]:
    """Converts the elements of rows. An element that is refused is named with the position of its row."""
    # Here and not above: the package imports this module, and an element can be of any type.
    from trilake.clickhouse.exact import exact_column

    try:
        return exact_column(kind, values)
    except RefusedValueError as e:
        row = bisect_right(list(accumulate(sizes)), e.position)
        raise RefusedValueError(row, e.value, f"{e} (an element of type {kind.name})") from None


def _cut(values: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    start = 0
    for size in sizes:
        yield list(values[start : start + size])
        start += size


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    if type(value).__name__ == "ndarray" and value.ndim:
        return list(value) if value.dtype.kind in "mM" else list(value.tolist())
    raise NoError(f"{a(value)} is not an array")


def arrays(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Lists."""
    rows = each(values, _sequence)
    sizes = list(map(len, rows))
    element: ClickHouseType = kind.element_type  # type: ignore[attr-defined]
    return list(_cut(_inside(element, list(chain.from_iterable(rows)), sizes), sizes))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return value  # as Arrow gives a map
    raise NoError(f"{a(value)} is not a map")


def maps(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Dicts. A key that occurs twice is refused."""
    rows = each(values, _pairs)
    sizes = list(map(len, rows))
    keys = _inside(kind.key_type, [key for row in rows for key, _ in row], sizes)  # type: ignore[attr-defined]
    items = _inside(kind.value_type, [item for row in rows for _, item in row], sizes)  # type: ignore[attr-defined]
    done = [dict(zip(k, v, strict=True)) for k, v in zip(_cut(keys, sizes), _cut(items, sizes), strict=True)]
    for position, (made, size) in enumerate(zip(done, sizes, strict=True)):
        if len(made) != size:
            raise RefusedValueError(position, values[position], "a key of the map occurs twice")
    return done


def tuples(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Tuples, in the order of the type's elements."""
    names: Sequence[str] = tuple(kind.element_names)  # type: ignore[attr-defined]
    kinds: Sequence[ClickHouseType] = kind.element_types  # type: ignore[attr-defined]

    def one(value: Any) -> Sequence[Any]:
        if isinstance(value, Mapping):
            if not names or value.keys() != set(names):
                raise NoError(f"its keys are not the elements {', '.join(names) or 'of a tuple without names'}")
            return [value[name] for name in names]
        row = _sequence(value)
        if len(row) != len(kinds):
            raise NoError(f"it has {len(row)} elements and not {len(kinds)}")
        return row

    rows = each(values, one)
    if not kinds or not rows:
        return list(map(tuple, rows))
    one_each = [1] * len(rows)
    columns = [
        _inside(element, list(column), one_each) for element, column in zip(kinds, zip(*rows, strict=True), strict=True)
    ]
    return list(zip(*columns, strict=True))


def nested(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Lists of dicts."""
    from clickhouse_connect.datatypes.registry import get_from_name

    names: Sequence[str] = tuple(kind.element_names)  # type: ignore[attr-defined]
    rows = each(values, _sequence)
    sizes = list(map(len, rows))
    elements = [
        [item[name] for name in names] if isinstance(item, Mapping) and item.keys() == set(names) else item
        for row in rows
        for item in row
    ]
    types = ", ".join(element.name for element in kind.element_types)  # type: ignore[attr-defined]
    done = _inside(get_from_name(f"Tuple({types})"), elements, sizes)
    return list(_cut([dict(zip(names, item, strict=True)) for item in done], sizes))


def documents(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Dicts. Text is read as a JSON object."""

    def one(value: Any) -> dict[str, Any]:
        document = json.loads(value, parse_float=_json_float) if isinstance(value, str) else value
        if not isinstance(document, dict):
            raise NoError("it is not a JSON object")
        _check_document(document)
        return document

    return each(values, one)


def _json_float(text: str) -> float:
    return as_float(Decimal(text))


def _check_document(value: Any) -> None:
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or "." in key:
                    raise NoError(f"its key {key!r} is not text, or has a dot, which separates the names of a path")
                _check_document(item)
        case list():
            for item in value:
                _check_document(item)
        case str():
            as_text(value)
        case None | bool():
            pass
        case int() if -(1 << 63) <= value < 1 << 64:
            pass
        case float() if math.isfinite(value):
            pass
        case _:
            raise NoError(f"JSON in ClickHouse does not hold {value!r}"[:200])
