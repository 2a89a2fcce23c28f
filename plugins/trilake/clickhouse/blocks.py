"""Blocks of rows, frames and Arrow tables, as columns that the driver writes without a change.

See `trilake.clickhouse.exact`. Columns of numpy and Arrow whose type is the column's go in as they are; all others are
converted value by value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.exact import RefusedValueError, Ticks, exact_column, naive_is_utc

if TYPE_CHECKING:
    import numpy
    import pandas
    import pyarrow
    from clickhouse_connect.datatypes.base import ClickHouseType

# Types of ClickHouse, and the types of Arrow that the server reads as them exactly.
_ARROW = {
    "Float32": ("float",),
    "Float64": ("double",),
    "Bool": ("bool",),
    "Date32": ("date32[day]",),
    "String": ("string", "large_string", "binary", "large_binary"),
}
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


@dataclass(frozen=True)
class Target:
    """The columns that an INSERT fills, by name and type, in the order of its rows."""

    names: tuple[str, ...]
    types: tuple[ClickHouseType, ...]


class RefusedColumnError(Exception):
    """A value that a column cannot hold. The message is the reason, as half of a sentence.

    :ivar row: its row in the block, from 0.
    :ivar shown: the value, for a message.
    """

    def __init__(self, column: str, kind: str, error: RefusedValueError) -> None:
        super().__init__(str(error))
        self.column = column
        self.kind = kind
        self.row = error.position
        self.shown = error.shown


def columns_of_rows(target: Target, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """
    :raises RefusedColumnError: the first value that its column cannot hold exactly, or a row of another length.
    """
    width = len(target.names)
    for number, row in enumerate(rows):
        if len(row) != width:
            problem = RefusedValueError(number, row, f"the row has {len(row)} values and not {width}")
            raise RefusedColumnError(", ".join(target.names), "the row's columns", problem)
    pairs = zip(target.names, target.types, zip(*rows, strict=True), strict=True)
    return [_exact(name, kind, values) for name, kind, values in pairs]


def columns_of_frame(target: Target, df: pandas.DataFrame) -> list[Sequence[Any]]:
    """NaN is NULL if the column can be NULL. Otherwise NaN is a number, and None, NA and NaT are refused.

    :raises RefusedColumnError: the first value that its column cannot hold exactly.
    """
    columns: list[Sequence[Any]] = []
    for number, (name, kind) in enumerate(zip(target.names, target.types, strict=True)):
        series = df.iloc[:, number]
        ready = _numpy_column(kind, series)
        columns.append(ready if ready is not None else _exact(name, kind, _values_of(kind, series)))
    return columns


def columns_of_arrow(target: Target, table: pyarrow.Table) -> list[Sequence[Any]] | None:
    """None: the server reads each column of the table exactly as it is.

    :raises RefusedColumnError: the first value that its column cannot hold exactly.
    """
    columns = list(zip(target.names, target.types, table.columns, strict=True))
    if all(_fits(kind, column) for _, kind, column in columns):
        return None
    return [_exact(name, kind, _values_of_arrow(column)) for name, kind, column in columns]


def _exact(name: str, kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    try:
        return exact_column(kind, values)
    except RefusedValueError as e:
        raise RefusedColumnError(name, kind.name, e) from None


# --- frames


def _numpy_column(kind: ClickHouseType, series: pandas.Series[Any]) -> Any | None:
    """The column as numpy has it, if all its values are in range. None: convert it value by value."""
    import numpy

    dtype = series.dtype
    if kind.low_card:
        return None
    if (parts := _moments_of(series)) is not None:
        return _moments(kind, *parts)
    if kind.nullable or not isinstance(dtype, numpy.dtype) or not len(series):
        return None
    values, base = series.to_numpy(), kind.base_type or ""
    ready = False
    if dtype.kind in "iu" and re.fullmatch(r"U?Int(8|16|32|64)", base):
        limits = numpy.iinfo(numpy.dtype(kind.np_type))
        ready = int(values.min()) >= int(limits.min) and int(values.max()) <= int(limits.max)
    elif dtype.kind == "f":
        ready = (base, dtype.itemsize) in (("Float64", 8), ("Float32", 4), ("Float64", 4))
    return values.astype(kind.np_type) if ready else None


def _moments_of(series: pandas.Series[Any]) -> tuple[numpy.ndarray[Any, Any], int, bool] | None:
    """Numbers since 1970, the digits of a second that they have, and whether they have a time zone."""
    import numpy
    import pandas

    dtype = series.dtype
    if isinstance(dtype, pandas.DatetimeTZDtype):
        values = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    elif isinstance(dtype, numpy.dtype) and dtype.kind == "M":
        values = series.to_numpy()
    else:
        return None
    unit, count = numpy.datetime_data(values.dtype)
    if unit not in _DIGITS or count != 1:
        return None
    return values, _DIGITS[unit], isinstance(dtype, pandas.DatetimeTZDtype)


def _moments(kind: ClickHouseType, values: numpy.ndarray[Any, Any], digits: int, zoned: bool) -> list[Any] | None:
    import numpy

    if kind.base_type not in ("DateTime", "DateTime64") or not (zoned or naive_is_utc(kind)):
        return None
    missing = numpy.isnat(values)
    if missing.any() and not kind.nullable:
        return None
    numbers = values.astype("int64")
    numbers[missing] = 0
    scale: int = kind.scale if kind.base_type == "DateTime64" else 0  # type: ignore[attr-defined]
    if scale < digits:
        step = 10 ** (digits - scale)
        if (numbers % step).any():
            return None
        numbers //= step
    found = numbers.tolist()
    if scale > digits:
        found = [number * 10 ** (scale - digits) for number in found]
    if missing.any():
        found = [None if gone else number for number, gone in zip(found, missing.tolist(), strict=True)]
    try:
        return list(exact_column(kind, found))
    except RefusedValueError:
        return None  # out of range: then the value is named


def _values_of(kind: ClickHouseType, series: pandas.Series[Any]) -> Sequence[Any]:
    if (parts := _moments_of(series)) is not None:
        import numpy

        numbers, digits, zoned = parts
        return [
            None if gone else Ticks(number, digits, zoned)
            for number, gone in zip(numbers.astype("int64").tolist(), numpy.isnat(numbers).tolist(), strict=True)
        ]
    values = series.tolist()
    missing = series.isna()
    if not missing.any():
        return values
    keep_nan = not kind.nullable and (kind.base_type or "").startswith(("Float", "BFloat"))
    return [
        None if gone and not (keep_nan and isinstance(value, float)) else value
        for value, gone in zip(values, missing.tolist(), strict=True)
    ]


# --- Arrow


def _fits(kind: ClickHouseType, column: Any) -> bool:
    """Whether the server reads each value of an Arrow column as the same value of the type."""
    import pyarrow as pa

    if column.null_count and not kind.nullable:
        return False
    have, base, fits = column.type, kind.base_type or "", False
    if re.fullmatch(r"U?Int(8|16|32|64)", base):
        fits = have == getattr(pa, base.lower())()
    elif base in _ARROW:
        fits = str(have) in _ARROW[base]
    elif base == "FixedString":
        fits = have == pa.binary(kind.byte_size)
    elif base == "Date" and have == pa.date32():
        fits = _all_between(column.cast(pa.int32()), 0, 65_535)
    elif base == "DateTime64" and pa.types.is_timestamp(have):
        scale: int = kind.scale  # type: ignore[attr-defined]
        fits = _DIGITS[have.unit] == scale and (have.tz is not None or naive_is_utc(kind))
    elif base == "Decimal" and pa.types.is_decimal(have):
        fits = have.scale == kind.scale and have.precision <= kind.prec  # type: ignore[attr-defined]
    elif base == "Array" and (pa.types.is_list(have) or pa.types.is_large_list(have)):
        import pyarrow.compute as pc

        fits = _fits(kind.element_type, pc.list_flatten(column))  # type: ignore[attr-defined]
    return bool(fits)


def _all_between(column: Any, low: int, high: int) -> bool:
    import pyarrow.compute as pc

    limits = pc.min_max(column)
    least, most = limits["min"].as_py(), limits["max"].as_py()
    return least is None or (least >= low and most <= high)


def _values_of_arrow(column: Any) -> list[Any]:
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    digits, zoned = _DIGITS[column.type.unit], column.type.tz is not None
    numbers = column.cast(pa.int64()).to_pylist()
    return [None if number is None else Ticks(number, digits, zoned) for number in numbers]
