"""Integers, floats, decimals and booleans."""

from __future__ import annotations

import math
import operator
import re
import struct
from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.exact.base import NoError, RefusedValueError, a, each, is_a

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

INT64 = range(-(1 << 63), 1 << 63)
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)


def limits_of(base: str) -> range | None:
    """The values of an integer type such as UInt8. None: it is not one."""
    if match := re.fullmatch(r"(U?)Int(\d+)", base):
        bits = int(match[2])
        return range(1 << bits) if match[1] else range(-(1 << (bits - 1)), 1 << (bits - 1))
    return None


def integers(_: ClickHouseType, values: Sequence[Any], limits: range) -> Sequence[Any]:
    """Integers from `limits`."""
    if is_a(values, int) and limits.start <= min(values) and max(values) < limits.stop:
        return values

    def one(value: Any) -> int:
        number = _integer(value)
        if not limits.start <= number < limits.stop:
            raise NoError(f"it is not from {limits.start} to {limits.stop - 1}")
        return number

    return each(values, one)


def _integer(value: Any) -> int:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise NoError("it is not an integer")
        return int(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or value != int(value):
            raise NoError("it is not an integer")
        return int(value)
    if hasattr(value, "__index__"):
        return operator.index(value)
    raise NoError(f"{a(value)} is not an integer")


def as_float(value: Any) -> float:
    """
    :raises NoError: no float is equal to the value.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bool):
        raise NoError("a bool is not a number with a fraction")
    if isinstance(value, str):
        if _NOT_FINITE.fullmatch(value):
            return float(value)
        if not _NUMBER.fullmatch(value):
            raise NoError("it is not a number")
        number = float(value)
        if math.isinf(number) or (number == 0 and re.search("[1-9]", value.lower().partition("e")[0])):
            raise NoError("it is out of the range of a float")
        return number
    if isinstance(value, int):
        number = float(value)
        if int(number) != value:
            raise NoError("a float has no such integer")
        return number
    if isinstance(value, Decimal):
        number = float(value)
        # a Decimal of up to 15 digits is the text of one float
        if value.is_finite() and (math.isinf(number) or Decimal(repr(number)) != value):
            raise NoError("it has more digits than a float")
        return number
    raise NoError(f"{a(value)} is not a number")


def floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Floats of 64 bits."""
    doubles = values if is_a(values, float) else each(values, as_float)
    if kind.low_card:
        for position, value in enumerate(doubles):
            if value == 0 and math.copysign(1, value) < 0:
                raise RefusedValueError(position, values[position], "the driver writes 0.0 and -0.0 as one value here")
    return doubles


def small_floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Floats that a Float32 holds, or whose text is that of a Float32."""
    import numpy

    doubles = floats(kind, values)
    wide = numpy.asarray(doubles, dtype=numpy.float64)
    with numpy.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(numpy.float32)
    equal = (narrow.astype(numpy.float64) == wide) | numpy.isnan(wide)
    for position in numpy.nonzero(~equal)[0].tolist():
        # 0.1 is not a float32, but the text of one
        if float(str(narrow[position])) != wide[position]:
            raise RefusedValueError(position, values[position], "a Float32 has fewer digits, or a smaller range")
    return doubles


def tiny_floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Floats that a BFloat16 holds."""
    doubles = small_floats(kind, values)
    for position, value in enumerate(doubles):
        packed = struct.pack("<f", value)
        bits, narrow = struct.unpack("<I", packed)[0], struct.unpack("<f", packed)[0]
        if bits & 0xFFFF or (narrow != value and not math.isnan(value)):
            raise RefusedValueError(position, values[position], "a BFloat16 has fewer digits")
    return doubles


def decimals(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Decimals of the column's scale."""
    digits, scale = kind.prec, kind.scale  # type: ignore[attr-defined]
    context = Context(prec=digits, traps=[Inexact, InvalidOperation, Overflow])
    step = Decimal(1).scaleb(-scale)

    def one(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise NoError(f"{a(value)} is not a decimal number")
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            raise NoError("it is not a decimal number")
        number = value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else value)
        if not number.is_finite():
            raise NoError("a Decimal has no such value")
        try:
            return number.quantize(step, context=context)
        except (Inexact, InvalidOperation, Overflow):
            raise NoError(f"it has more than {digits - scale} digits before the point or {scale} behind it") from None

    return each(values, one)


def bools(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """True and false."""

    def one(value: Any) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "t", "1", "false", "f", "0"):
            return value.lower() in ("true", "t", "1")
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise NoError("it is neither true nor false")

    return values if is_a(values, bool) else each(values, one)
