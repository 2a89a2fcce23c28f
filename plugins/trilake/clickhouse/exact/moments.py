"""Dates, datetimes and times. A datetime without a time zone is in UTC."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from trilake.clickhouse.exact.base import NoError, a, each, is_a
from trilake.clickhouse.exact.numbers import INT64

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

UTC_NAMES = ("UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "Universal")

_EPOCH, _NAIVE_EPOCH = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999
_LAST_TIME_S = 999 * 3600 + 59 * 60 + 59
_UNITS_NS = {"W": 604_800 * 10**9, "D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6,
             "us": 1_000, "ns": 1}  # fmt: skip
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<minute>\d\d:\d\d)(?P<second>:\d\d)?(?:\.(?P<fraction>\d{1,9}))? ?"
    r"(?P<offset>Z|[-+]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_TIME = re.compile(r"(?P<sign>-?)(?P<h>\d{1,3}):(?P<m>[0-5]\d):(?P<s>[0-5]\d)(?:\.(?P<fraction>\d{1,9}))?", re.ASCII)
_BOUND = re.compile(r"\{\s*(\w+)\s*:[^{}]*DateTime(?:64)?\s*\((?:\s*\d\s*,)?\s*'([^']+)'")


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


def dates(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Days since 1970."""
    first, last = (0, 65_535) if kind.base_type == "Date" else (1 - _EPOCH_DAY, date.max.toordinal() - _EPOCH_DAY)

    def one(value: Any) -> int:
        days = _days(value)
        if not first <= days <= last:
            limits = [date.fromordinal(day + _EPOCH_DAY) for day in (first, last)]
            raise NoError(f"it is not from {limits[0]} to {limits[1]}")
        return days

    if is_a(values, date) and first <= min(values).toordinal() - _EPOCH_DAY:
        days = [value.toordinal() - _EPOCH_DAY for value in values]
        if max(days) <= last:
            return days
    return each(values, one)


def _days(value: Any) -> int:
    if isinstance(value, str):
        if not _DATE.fullmatch(value):
            raise NoError("it is not a date such as 2013-01-31")
        return date.fromisoformat(value).toordinal() - _EPOCH_DAY
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.toordinal() - _EPOCH_DAY
    if isinstance(value, Ticks) or _is_moment(value):
        nanoseconds, zoned = _nanoseconds(value)
        days, rest = divmod(nanoseconds, 86_400 * 10**9)
        if rest or (zoned and not isinstance(value, Ticks) and getattr(value, "utcoffset", lambda: None)()):
            raise NoError("it has a time of day or a time zone, which a date has not")
        return days
    raise NoError(f"{a(value)} is not a date")


def datetimes(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Ticks since 1970 in UTC: seconds, or a DateTime64's part of a second."""
    wide = kind.base_type == "DateTime64"
    digits: int = kind.scale if wide else 0  # type: ignore[attr-defined]
    naive = naive_is_utc(kind)
    low, high = (_FIRST_SECOND, _LAST_SECOND) if wide else (0, (1 << 32) - 1)
    unit, step = 10**digits, 10 ** (9 - digits)

    def in_range(ticks: int) -> bool:
        return low <= ticks // unit <= high and ticks in INT64

    ticks = _ticks_of_datetimes(values, digits, naive=naive) if is_a(values, datetime) else []
    if ticks and in_range(min(ticks)) and in_range(max(ticks)):
        return ticks

    def one(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            nanoseconds, zoned = _nanoseconds(value)
            if not zoned and not naive:
                raise NoError(f"it has no time zone, and the column's zone is {kind.tzinfo}")  # type: ignore[attr-defined]
            number, rest = divmod(nanoseconds, step)
            if rest:
                raise NoError(f"the column holds {digits} digits of a second")
        if not in_range(number):
            years = "1 to 9999, or in the range of 64 bits" if wide else "1970 to 2106"
            raise NoError(f"it is not in the years {years}")
        return number

    return each(values, one)


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
        raise NoError("a date has no time of day")
    raise NoError(f"{a(value)} is not a moment")


def _numpy_nanoseconds(value: Any) -> int:
    import numpy

    unit, count = numpy.datetime_data(value.dtype)
    if unit not in _UNITS_NS:
        raise NoError(f"numpy's unit {unit} is not a fixed time")
    return int(value.astype("int64")) * int(count) * _UNITS_NS[unit]


def _nanoseconds_of_text(text: str) -> tuple[int, bool]:
    match = _MOMENT.fullmatch(text)
    if match is None or (match["fraction"] and not match["second"]):
        raise NoError("it is not a moment such as 2013-01-31 23:59:59")
    plain = datetime.fromisoformat(f"{match['day']} {match['minute']}{match['second'] or ':00'}")
    offset = match["offset"] or ""
    minutes = 0
    if offset not in ("", "Z"):
        numbers = offset[1:].replace(":", "").ljust(4, "0")
        if int(numbers[:2]) > 18 or int(numbers[2:]) > 59:
            raise NoError("its time zone is not an offset")
        minutes = (int(numbers[:2]) * 60 + int(numbers[2:])) * (-1 if offset[0] == "-" else 1)
    span = plain - _NAIVE_EPOCH
    seconds = span.days * 86_400 + span.seconds - minutes * 60
    return seconds * 10**9 + int((match["fraction"] or "").ljust(9, "0")), bool(offset)


def times(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Ticks since midnight: seconds, or a Time64's part of a second."""
    digits: int = getattr(kind, "scale", 0) if kind.base_type == "Time64" else 0
    step = 10 ** (9 - digits)

    def one(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            ticks = value
        else:
            ticks, rest = divmod(_nanoseconds_of_time(value), step)
            if rest:
                raise NoError(f"the column holds {digits} digits of a second")
        if abs(ticks) > _LAST_TIME_S * 10**digits:
            raise NoError("it is not from -999:59:59 to 999:59:59")
        return ticks

    return each(values, one)


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
    raise NoError(f"{a(value)} is not a time without a zone")
