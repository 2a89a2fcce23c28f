"""Python's values for a column of ClickHouse: each is exactly what the column holds then, or it is refused.

The driver converts leniently: it cuts 1.239 to Decimal 1.23, takes "false" as true, writes an unknown name of an Enum
as a number that nobody can read, and shifts a datetime without a time zone by the worker's zone. So every column of a
block is converted here first, to the one Python type that the driver writes without a change.

What is converted, and how, is in docs/reference/provider.md. In short: numbers of any type if they are equal; text if
it is exactly such a value; a datetime without a time zone is in UTC.
"""

from __future__ import annotations

import json
import math
import operator
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

_EPOCH, _NAIVE_EPOCH = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999
_LAST_TIME_S = 999 * 3600 + 59 * 60 + 59
_INT64 = range(-(1 << 63), 1 << 63)
UTC_NAMES = ("UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "Universal")

_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<minute>\d\d:\d\d)(?P<second>:\d\d)?(?:\.(?P<fraction>\d{1,9}))? ?"
    r"(?P<offset>Z|[-+]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_TIME = re.compile(r"(?P<sign>-?)(?P<h>\d{1,3}):(?P<m>[0-5]\d):(?P<s>[0-5]\d)(?:\.(?P<fraction>\d{1,9}))?", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_BOUND = re.compile(r"\{\s*(\w+)\s*:[^{}]*DateTime(?:64)?\s*\((?:\s*\d\s*,)?\s*'([^']+)'")
_MISSING = ("NAType", "NaTType")  # of pandas
_SHOWN = 80
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


class RefusedValueError(Exception):
    """A value that the column cannot hold exactly.

    :ivar position: its place in the column, from 0.
    """

    def __init__(self, position: int, value: Any, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.value = value

    @property
    def shown(self) -> str:
        """The value for a message, cut."""
        text = repr(self.value)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _NoError(Exception):
    """The reason why a value is refused, as half of a sentence."""


class Ticks(NamedTuple):
    """A moment as a number: `digits` digits of a second since 1970. Without a zone it is in UTC, or in no zone."""

    number: int
    digits: int
    zoned: bool

    def __repr__(self) -> str:
        seconds, rest = divmod(self.number, 10**self.digits)
        shown = (_NAIVE_EPOCH + timedelta(seconds=seconds)).isoformat(" ")
        fraction = f".{rest:0{self.digits}}" if self.digits else ""
        return f"{shown}{fraction}{' UTC' if self.zoned else ''}"


def exact_column(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """The values as the driver writes them to a column of type `kind` without a change.

    :raises RefusedValueError: the first value that the column cannot hold exactly.
    """
    found = {item.__name__ for item in set(map(type, values))}
    if "NoneType" not in found and found.isdisjoint(_MISSING):
        return _convert(kind, values)
    if not found.isdisjoint(_MISSING):
        values = [None if is_missing(value) else value for value in values]
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
    return value is None or type(value).__name__ in _MISSING


def bound_in_utc(statement: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a datetime without a time zone one in UTC, where the parameter's type ``DateTime('zone')`` names a zone."""
    names = {match[1] for match in _BOUND.finditer(statement) if match[2] not in UTC_NAMES}
    return {name: _in_utc(value) if name in names else value for name, value in parameters.items()}


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return type(value)(map(_in_utc, value)) if type(value) in (list, tuple) else value


def naive_is_utc(kind: ClickHouseType) -> bool:
    """Whether a column of moments is in UTC, or in no zone that is named."""
    zone = getattr(kind, "tzinfo", None)
    return zone is None or str(zone) in UTC_NAMES


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
        return _integers(kind, values, _INT64)
    if (limits := _limits(base)) is not None:
        return _integers(kind, values, limits)
    convert = _CONVERT.get(base)
    if convert is None:
        raise RefusedValueError(0, values[0], f"values of {base} cannot be checked before they are sent")
    return convert(kind, values)


def _each(values: Iterable[Any], convert: Callable[[Any], Any]) -> list[Any]:
    done: list[Any] = []
    for position, value in enumerate(values):
        try:
            done.append(convert(_python(value)))
        except (_NoError, ArithmeticError, ValueError) as e:
            reason = str(e) if isinstance(e, _NoError) else "it is not such a value"
            raise RefusedValueError(position, value, reason) from None
    return done


def _python(value: Any) -> Any:
    """A scalar of numpy as Python's. Moments and durations stay as they are: Python has no nanoseconds."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and value.dtype.kind not in "mMO":
        return value.item() if value.ndim == 0 else value
    return value


def _is_a(values: Sequence[Any], *kinds: type) -> bool:
    return set(map(type, values)) <= set(kinds)


# --- numbers


def _limits(base: str) -> range | None:
    if match := re.fullmatch(r"(U?)Int(\d+)", base):
        bits = int(match[2])
        return range(1 << bits) if match[1] else range(-(1 << (bits - 1)), 1 << (bits - 1))
    return None


def _integers(_: ClickHouseType, values: Sequence[Any], limits: range) -> Sequence[Any]:
    if _is_a(values, int) and limits.start <= min(values) and max(values) < limits.stop:
        return values

    def one(value: Any) -> int:
        number = _integer(value)
        if not limits.start <= number < limits.stop:
            raise _NoError(f"it is not from {limits.start} to {limits.stop - 1}")
        return number

    return _each(values, one)


def _integer(value: Any) -> int:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise _NoError("it is not an integer")
        return int(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or value != int(value):
            raise _NoError("it is not an integer")
        return int(value)
    if hasattr(value, "__index__"):
        return operator.index(value)
    raise _NoError(f"{_a(value)} is not an integer")


def _float(value: Any) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bool):
        raise _NoError("a bool is not a number with a fraction")
    if isinstance(value, str):
        if _NOT_FINITE.fullmatch(value):
            return float(value)
        if not _NUMBER.fullmatch(value):
            raise _NoError("it is not a number")
        number = float(value)
        if math.isinf(number) or (number == 0 and re.search("[1-9]", value.lower().partition("e")[0])):
            raise _NoError("it is out of the range of a float")
        return number
    if isinstance(value, int):
        number = float(value)
        if int(number) != value:
            raise _NoError("a float has no such integer")
        return number
    if isinstance(value, Decimal):
        number = float(value)
        # a Decimal of up to 15 digits is the text of one float
        if value.is_finite() and (math.isinf(number) or Decimal(repr(number)) != value):
            raise _NoError("it has more digits than a float")
        return number
    raise _NoError(f"{_a(value)} is not a number")


def _floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    doubles = values if _is_a(values, float) else _each(values, _float)
    if kind.low_card:
        for position, value in enumerate(doubles):
            if value == 0 and math.copysign(1, value) < 0:
                raise RefusedValueError(position, values[position], "the driver writes 0.0 and -0.0 as one value here")
    return doubles


def _small_floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    import numpy

    doubles = _floats(kind, values)
    wide = numpy.asarray(doubles, dtype=numpy.float64)
    with numpy.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(numpy.float32)
    equal = (narrow.astype(numpy.float64) == wide) | numpy.isnan(wide)
    for position in numpy.nonzero(~equal)[0].tolist():
        # 0.1 is not a float32, but the text of one
        if float(str(narrow[position])) != wide[position]:
            raise RefusedValueError(position, values[position], "a Float32 has fewer digits, or a smaller range")
    return doubles


def _tiny_floats(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    doubles = _small_floats(kind, values)
    for position, value in enumerate(doubles):
        packed = struct.pack("<f", value)
        bits, narrow = struct.unpack("<I", packed)[0], struct.unpack("<f", packed)[0]
        if bits & 0xFFFF or (narrow != value and not math.isnan(value)):
            raise RefusedValueError(position, values[position], "a BFloat16 has fewer digits")
    return doubles


def _decimals(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    digits, scale = kind.prec, kind.scale  # type: ignore[attr-defined]
    context = Context(prec=digits, traps=[Inexact, InvalidOperation, Overflow])
    step = Decimal(1).scaleb(-scale)

    def one(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise _NoError(f"{_a(value)} is not a decimal number")
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            raise _NoError("it is not a decimal number")
        number = value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else value)
        if not number.is_finite():
            raise _NoError("a Decimal has no such value")
        try:
            return number.quantize(step, context=context)
        except (Inexact, InvalidOperation, Overflow):
            raise _NoError(f"it has more than {digits - scale} digits before the point or {scale} behind it") from None

    return _each(values, one)


def _bools(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    def one(value: Any) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "t", "1", "false", "f", "0"):
            return value.lower() in ("true", "t", "1")
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise _NoError("it is neither true nor false")

    return values if _is_a(values, bool) else _each(values, one)


# --- text


def _texts(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    if _is_a(values, bytes):
        return values
    if _is_a(values, str):
        try:
            "".join(values).encode()
            return values
        except UnicodeEncodeError:
            pass
    done = _each(values, _text)
    # the driver writes a column of text alone, or of bytes alone
    return done if _is_a(done, str) else [item.encode() if isinstance(item, str) else item for item in done]


def _text(value: Any) -> str | bytes:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _NoError("it has half of a surrogate pair, which UTF-8 cannot hold") from None
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, UUID | IPv4Address | IPv6Address):
        return str(value)
    raise _NoError(f"{_a(value)} is not text")


def _fixed(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    size = kind.byte_size

    def one(value: Any) -> bytes:
        text = _text(value)
        data = text.encode() if isinstance(text, str) else text
        if len(data) != size:
            raise _NoError(f"it has {len(data)} bytes and not {size}")
        return data

    return _each(values, one)


def _enums(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    names: Mapping[str, int] = kind._name_map  # type: ignore[attr-defined]
    numbers: Mapping[int, str] = kind._int_map  # type: ignore[attr-defined]
    if _is_a(values, str) and names.keys() >= set(values):
        return values

    def one(value: Any) -> str:
        if isinstance(value, str) and value in names:
            return str.__str__(value)
        if isinstance(value, int) and not isinstance(value, bool) and value in numbers:
            return numbers[value]
        listed = ", ".join(list(names)[:10]) + (", ..." if len(names) > 10 else "")
        raise _NoError(f"the Enum has no such name; it has {listed}")

    return _each(values, one)


# --- moments


def _dates(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    first, last = (0, 65_535) if kind.base_type == "Date" else (1 - _EPOCH_DAY, date.max.toordinal() - _EPOCH_DAY)

    def one(value: Any) -> int:
        days = _days(value)
        if not first <= days <= last:
            limits = [date.fromordinal(day + _EPOCH_DAY) for day in (first, last)]
            raise _NoError(f"it is not from {limits[0]} to {limits[1]}")
        return days

    if _is_a(values, date) and first <= min(values).toordinal() - _EPOCH_DAY:
        days = [value.toordinal() - _EPOCH_DAY for value in values]
        if max(days) <= last:
            return days
    return _each(values, one)


def _days(value: Any) -> int:
    if isinstance(value, str):
        if not _DATE.fullmatch(value):
            raise _NoError("it is not a date such as 2013-01-31")
        return date.fromisoformat(value).toordinal() - _EPOCH_DAY
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.toordinal() - _EPOCH_DAY
    if isinstance(value, Ticks) or _is_moment(value):
        nanoseconds, zoned = _nanoseconds(value)
        days, rest = divmod(nanoseconds, 86_400 * 10**9)
        if rest or (zoned and not isinstance(value, Ticks) and getattr(value, "utcoffset", lambda: None)()):
            raise _NoError("it has a time of day or a time zone, which a date has not")
        return days
    raise _NoError(f"{_a(value)} is not a date")


def _moments(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    wide = kind.base_type == "DateTime64"
    digits: int = kind.scale if wide else 0  # type: ignore[attr-defined]
    naive = naive_is_utc(kind)
    low, high = (_FIRST_SECOND, _LAST_SECOND) if wide else (0, (1 << 32) - 1)
    unit, step = 10**digits, 10 ** (9 - digits)

    def in_range(ticks: int) -> bool:
        return low <= ticks // unit <= high and ticks in _INT64

    ticks = _ticks_of_datetimes(values, digits, naive=naive) if _is_a(values, datetime) else []
    if ticks and in_range(min(ticks)) and in_range(max(ticks)):
        return ticks

    def one(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            nanoseconds, zoned = _nanoseconds(value)
            if not zoned and not naive:
                raise _NoError(f"it has no time zone, and the column's zone is {kind.tzinfo}")  # type: ignore[attr-defined]
            number, rest = divmod(nanoseconds, step)
            if rest:
                raise _NoError(f"the column holds {digits} digits of a second")
        if not in_range(number):
            years = "1 to 9999, or in the range of 64 bits" if wide else "1970 to 2106"
            raise _NoError(f"it is not in the years {years}")
        return number

    return _each(values, one)


def _ticks_of_datetimes(values: Sequence[datetime], digits: int, *, naive: bool) -> list[int]:
    """Empty if not all values are alike, or if the column holds fewer digits of a second."""
    for epoch in (_EPOCH, _NAIVE_EPOCH) if naive else (_EPOCH,):
        try:
            spans = [value - epoch for value in values]
        except TypeError:
            continue
        micros = [(span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds for span in spans]
        if digits >= 6:
            return [micro * 10 ** (digits - 6) for micro in micros] if digits > 6 else micros
        step = 10 ** (6 - digits)
        return [] if any(micro % step for micro in micros) else [micro // step for micro in micros]
    return []


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) or type(value).__name__ == "datetime64"


def _nanoseconds(value: Any) -> tuple[int, bool]:
    """Nanoseconds since 1970, and whether the value has a time zone."""
    if isinstance(value, Ticks):
        return value.number * 10 ** (9 - value.digits), value.zoned
    if isinstance(value, datetime):
        zoned = value.utcoffset() is not None
        # pandas and pendulum subtract in ways of their own
        plain = datetime(
            value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
            tzinfo=value.tzinfo if zoned else None, fold=value.fold,
        )  # fmt: skip
        span = plain - (_EPOCH if zoned else _NAIVE_EPOCH)
        micros = (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds
        return micros * 1_000 + getattr(value, "nanosecond", 0), zoned
    if type(value).__name__ == "datetime64":
        return _numpy_nanoseconds(value), False
    if isinstance(value, str):
        return _nanoseconds_of_text(value)
    if isinstance(value, date):
        raise _NoError("a date has no time of day")
    raise _NoError(f"{_a(value)} is not a moment")


_UNITS_NS = {"W": 604_800 * 10**9, "D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6,
             "us": 1_000, "ns": 1}  # fmt: skip


def _numpy_nanoseconds(value: Any) -> int:
    import numpy

    unit, count = numpy.datetime_data(value.dtype)
    if unit not in _UNITS_NS:
        raise _NoError(f"numpy's unit {unit} is not a fixed time")
    return int(value.astype("int64")) * int(count) * _UNITS_NS[unit]


def _nanoseconds_of_text(text: str) -> tuple[int, bool]:
    match = _MOMENT.fullmatch(text)
    if match is None or (match["fraction"] and not match["second"]):
        raise _NoError("it is not a moment such as 2013-01-31 23:59:59")
    plain = datetime.fromisoformat(f"{match['day']} {match['minute']}{match['second'] or ':00'}")
    offset = match["offset"] or ""
    minutes = 0
    if offset not in ("", "Z"):
        numbers = offset[1:].replace(":", "").ljust(4, "0")
        if int(numbers[:2]) > 18 or int(numbers[2:]) > 59:
            raise _NoError("its time zone is not an offset")
        minutes = (int(numbers[:2]) * 60 + int(numbers[2:])) * (-1 if offset[0] == "-" else 1)
    span = plain - _NAIVE_EPOCH
    seconds = span.days * 86_400 + span.seconds - minutes * 60
    return seconds * 10**9 + int((match["fraction"] or "").ljust(9, "0")), bool(offset)


def _times(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    digits: int = getattr(kind, "scale", 0) if kind.base_type == "Time64" else 0
    step = 10 ** (9 - digits)

    def one(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            ticks = value
        else:
            ticks, rest = divmod(_nanoseconds_of_time(value), step)
            if rest:
                raise _NoError(f"the column holds {digits} digits of a second")
        if abs(ticks) > _LAST_TIME_S * 10**digits:
            raise _NoError("it is not from -999:59:59 to 999:59:59")
        return ticks

    return _each(values, one)


def _nanoseconds_of_time(value: Any) -> int:
    if isinstance(value, time) and value.tzinfo is None:
        return ((value.hour * 60 + value.minute) * 60 + value.second) * 10**9 + value.microsecond * 1_000
    if isinstance(value, timedelta):
        micros = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
        return micros * 1_000 + getattr(value, "nanoseconds", 0)
    if type(value).__name__ == "timedelta64":
        return _numpy_nanoseconds(value)
    if isinstance(value, str) and (match := _TIME.fullmatch(value)):
        seconds = int(match["h"]) * 3600 + int(match["m"]) * 60 + int(match["s"])
        nanoseconds = seconds * 10**9 + int((match["fraction"] or "").ljust(9, "0"))
        return -nanoseconds if match["sign"] else nanoseconds
    raise _NoError(f"{_a(value)} is not a time without a zone")


# --- addresses


def _uuids(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    def one(value: Any) -> UUID:
        if isinstance(value, UUID):
            return value
        if isinstance(value, str) and _UUID.fullmatch(value):
            return UUID(value)
        if isinstance(value, bytes) and len(value) == 16:
            return UUID(bytes=value)
        raise _NoError("it is not a UUID")

    return values if _is_a(values, UUID) else _each(values, one)


def _ipv4(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    def one(value: Any) -> IPv4Address:
        if isinstance(value, IPv4Address | str):
            try:
                return IPv4Address(value)
            except AddressValueError:
                pass
        raise _NoError("it is not an IPv4 address")

    return values if _is_a(values, IPv4Address) else _each(values, one)


def _ipv6(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    def one(value: Any) -> IPv6Address:
        try:
            if isinstance(value, str) and ":" not in value:
                value = IPv4Address(value)
            if isinstance(value, IPv4Address):
                return IPv6Address(f"::ffff:{value}")  # as ClickHouse itself writes it
            if isinstance(value, IPv6Address | str) and not (address := IPv6Address(value)).scope_id:
                return address
        except AddressValueError:
            pass
        raise _NoError("it is not an IPv6 address without a zone")

    return _each(values, one)


# --- nested types


def _inside(kind: ClickHouseType, values: list[Any], sizes: Sequence[int]) -> Sequence[Any]:
    """Converts the elements of rows. An element that is refused is named with the position of its row."""
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
    raise _NoError(f"{_a(value)} is not an array")


def _arrays(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    rows = _each(values, _sequence)
    sizes = list(map(len, rows))
    element: ClickHouseType = kind.element_type  # type: ignore[attr-defined]
    return list(_cut(_inside(element, list(chain.from_iterable(rows)), sizes), sizes))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return value  # as Arrow gives a map
    raise _NoError(f"{_a(value)} is not a map")


def _maps(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    rows = _each(values, _pairs)
    sizes = list(map(len, rows))
    keys = _inside(kind.key_type, [key for row in rows for key, _ in row], sizes)  # type: ignore[attr-defined]
    items = _inside(kind.value_type, [item for row in rows for _, item in row], sizes)  # type: ignore[attr-defined]
    done = [dict(zip(k, v, strict=True)) for k, v in zip(_cut(keys, sizes), _cut(items, sizes), strict=True)]
    for position, (made, size) in enumerate(zip(done, sizes, strict=True)):
        if len(made) != size:
            raise RefusedValueError(position, values[position], "a key of the map occurs twice")
    return done


def _tuples(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    names: Sequence[str] = tuple(kind.element_names)  # type: ignore[attr-defined]
    kinds: Sequence[ClickHouseType] = kind.element_types  # type: ignore[attr-defined]

    def one(value: Any) -> Sequence[Any]:
        if isinstance(value, Mapping):
            if not names or value.keys() != set(names):
                raise _NoError(f"its keys are not the elements {', '.join(names) or 'of a tuple without names'}")
            return [value[name] for name in names]
        row = _sequence(value)
        if len(row) != len(kinds):
            raise _NoError(f"it has {len(row)} elements and not {len(kinds)}")
        return row

    rows = _each(values, one)
    if not kinds or not rows:
        return list(map(tuple, rows))
    one_each = [1] * len(rows)
    columns = [
        _inside(element, list(column), one_each) for element, column in zip(kinds, zip(*rows, strict=True), strict=True)
    ]
    return list(zip(*columns, strict=True))


def _nested(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    from clickhouse_connect.datatypes.registry import get_from_name

    names: Sequence[str] = tuple(kind.element_names)  # type: ignore[attr-defined]
    rows = _each(values, _sequence)
    sizes = list(map(len, rows))
    elements = [
        [item[name] for name in names] if isinstance(item, Mapping) and item.keys() == set(names) else item
        for row in rows
        for item in row
    ]
    types = ", ".join(element.name for element in kind.element_types)  # type: ignore[attr-defined]
    done = _inside(get_from_name(f"Tuple({types})"), elements, sizes)
    return list(_cut([dict(zip(names, item, strict=True)) for item in done], sizes))


def _documents(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    def one(value: Any) -> dict[str, Any]:
        document = json.loads(value, parse_float=_json_float) if isinstance(value, str) else value
        if not isinstance(document, dict):
            raise _NoError("it is not a JSON object")
        _check_document(document)
        return document

    return _each(values, one)


def _json_float(text: str) -> float:
    return _float(Decimal(text))


def _check_document(value: Any) -> None:
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or "." in key:
                    raise _NoError(f"its key {key!r} is not text, or has a dot, which separates the names of a path")
                _check_document(item)
        case list():
            for item in value:
                _check_document(item)
        case str():
            _text(value)
        case None | bool():
            pass
        case int() if -(1 << 63) <= value < 1 << 64:
            pass
        case float() if math.isfinite(value):
            pass
        case _:
            raise _NoError(f"JSON in ClickHouse does not hold {value!r}"[:200])


def _of_aggregate(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    return exact_column(kind.element_type, values)  # type: ignore[attr-defined]


def _a(value: Any) -> str:
    """The value's type with its article, for messages."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


_CONVERT: Mapping[str, Callable[[Any, Sequence[Any]], Sequence[Any]]] = {
    "Float64": _floats,
    "Float32": _small_floats,
    "BFloat16": _tiny_floats,
    **dict.fromkeys(("Decimal", "Decimal32", "Decimal64", "Decimal128", "Decimal256"), _decimals),
    "Bool": _bools,
    "Boolean": _bools,
    "String": _texts,
    "FixedString": _fixed,
    **dict.fromkeys(("Enum", "Enum8", "Enum16"), _enums),
    "Date": _dates,
    "Date32": _dates,
    "DateTime": _moments,
    "DateTime64": _moments,
    "Time": _times,
    "Time64": _times,
    "UUID": _uuids,
    "IPv4": _ipv4,
    "IPv6": _ipv6,
    "Array": _arrays,
    "Map": _maps,
    "Tuple": _tuples,
    "Nested": _nested,
    "JSON": _documents,
    "SimpleAggregateFunction": _of_aggregate,
}
