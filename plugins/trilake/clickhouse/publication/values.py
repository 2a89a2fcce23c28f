"""SQL that converts a value of a plain object to a type of ClickHouse, and that says whether it did so exactly.

ClickHouse's own casts are lenient: 1.239 becomes Decimal 1.23, 2013-13-45 becomes 1970-01-01, hour 99 becomes another
day, and `accurateCast` to a Nullable type gives NULL instead of an error (tried on version 26.9). So each value is
converted leniently, and a condition compares the result with the text, or with the value that it came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trilake.clickhouse.cluster import quote_text
from trilake.clickhouse.publication.types import bare, holds_null

_INTEGER = re.compile(r"U?Int(8|16|32|64|128|256)")
_FLOAT = re.compile(r"Float(32|64)")
_DECIMAL = re.compile(r"Decimal\((\d+), (\d+)\)")
_FIXED = re.compile(r"FixedString\((\d+)\)")
_MOMENT = re.compile(r"DateTime(?:64\((?P<digits>\d)(?:, )?|\(|)(?:'(?P<zone>[^']*)')?\)?")
_ENUM = re.compile(r"Enum(8|16)\(.*\)")
_UTC = ("UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "Universal")
_DATES = ("Date", "Date32")

_NUMBER_TEXT = r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"
_NOT_FINITE = ("nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
_DATE_TEXT = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME_TEXT = r"([01]\d|2[0-3]):[0-5]\d"
_OFFSET = r"(Z|[-+](0\d|1[0-8])(:?[0-5]\d)?)"


@dataclass(frozen=True)
class Conversion:
    """:param value: an expression of the target type, or of its Nullable form.
    :param exact: a condition on the same row: the value is what the object holds. It is never NULL.
    """

    value: str
    exact: str


class NoConversionError(Exception):
    """There is no exact way from the one type to the other. The message is the reason, as half of a sentence."""


def from_text(text: str, target: str) -> Conversion:
    """Conversion of a field of CSV.

    :param text: an expression of type Nullable(String): NULL, or the field without its quotes.
    :param target: a type of ClickHouse, as `system.columns` writes it.
    :raises NoConversionError: CSV cannot hold such values.
    """
    kind = bare(target)
    for pattern, convert in _FROM_TEXT:
        if match := pattern.fullmatch(kind):
            return _nullable(text, target, *convert(text, kind, match))
    raise NoConversionError(f"CSV has no exact form of {kind}")


def from_value(value: str, source: str, target: str) -> Conversion:
    """Conversion of a value of Parquet.

    :param value: an expression of type `source`.
    :param source: the type that ClickHouse reads the column as.
    :raises NoConversionError: a value of the one type is never a value of the other.
    """
    have, want = bare(source), bare(target)
    if have == "String" and not _STRING.fullmatch(want):
        return from_text(value, target)
    if have == want or _same_nested(source, target):
        return _nullable(value, target, value, "1")
    if not _comparable(have, want):
        raise NoConversionError(f"{have} is not converted to {want}")
    cast = f"accurateCastOrNull({value}, {quote_text(want)})"
    back = f"CAST({cast}, {quote_text(f'Nullable({have})')})"
    same = f"ifNull({back} = {value}, 0)"
    if _FLOAT.fullmatch(have) and _FLOAT.fullmatch(want):
        same = f"({same} OR isNaN({value}))"
    elif _FLOAT.fullmatch(have):  # other numbers have no negative zero
        same = f"({same} AND ({value} != 0 OR NOT startsWith(toString({value}), '-')))"
    return _nullable(value, target, cast, same)


def _nullable(value: str, target: str, converted: str, exact: str) -> Conversion:
    """The conversion with NULL: it stays NULL, and is not exact if the target has no NULL."""
    null = "1" if holds_null(target) else "0"
    return Conversion(f"if(isNull({value}), NULL, {converted})", f"if(isNull({value}), {null}, ifNull({exact}, 0))")


def _integer(text: str, kind: str, _: re.Match[str]) -> tuple[str, str]:
    value = f"accurateCastOrNull({text}, {quote_text(kind)})"
    plain = rf"replaceRegexpOne({text}, '^[+]?(-?)0*(\\d+)$', '\\1\\2')"
    # Numbers of 128 and 256 bits wrap around. The text of the value shows it. -0 is 0.
    return value, rf"match({text}, '^[-+]?\\d+$') AND toString({value}) = if({plain} = '-0', '0', {plain})"


def _float(text: str, kind: str, _: re.Match[str]) -> tuple[str, str]:
    value = f"accurateCastOrNull({text}, {quote_text(kind)})"
    names = ", ".join(map(quote_text, _NOT_FINITE))
    # too large a number would be an infinity, and too small a number would be zero
    in_range = rf"isFinite({value}) AND ({value} != 0 OR NOT match({text}, '^[^eE]*[1-9]'))"
    return value, f"if(match({text}, {quote_text(_NUMBER_TEXT)}), {in_range}, lower({text}) IN ({names}))"


def _decimal(text: str, kind: str, match: re.Match[str]) -> tuple[str, str]:
    digits, scale = int(match[1]), int(match[2])
    value = f"accurateCastOrNull({text}, {quote_text(kind)})"
    whole = digits - scale
    # leading zeros of the whole part and trailing zeros of the fraction are not digits of the number
    pattern = rf"^[-+]?0*\d{{0,{whole}}}(\.\d{{0,{scale}}}0*)?$"
    return value, rf"match({text}, {quote_text(pattern)}) AND match({text}, '\\d')"


def _bool(text: str, _kind: str, _: re.Match[str]) -> tuple[str, str]:
    word = f"lower({text})"
    return f"CAST({word} IN ('true', 't', '1'), 'Nullable(Bool)')", f"{word} IN ('true', 't', '1', 'false', 'f', '0')"


def _date(text: str, kind: str, _: re.Match[str]) -> tuple[str, str]:
    value = f"accurateCastOrNull({text}, {quote_text(kind)})"
    return value, f"toString({value}) = {text}"


def _moment(text: str, kind: str, match: re.Match[str]) -> tuple[str, str]:
    wide = kind.startswith("DateTime64")
    digits, zone = int(match["digits"] or 0) if wide else 0, match["zone"] or "UTC"
    # A time without an offset may be ambiguous or missing in a zone with daylight saving time.
    offset = _OFFSET + ("?" if zone in _UTC else "")
    pattern = rf"^{_DATE_TEXT}[T ]{_TIME_TEXT}(:[0-5]\d(\.\d{{0,{digits}}}0*)?)? ?{offset}$"
    parsed = f"parseDateTime64BestEffortOrNull(replaceOne({text}, 'T', ' '), {digits}, 'UTC')"
    day = f"substring({text}, 1, 10)"
    if not wide:
        first, last = "1970-01-01 00:00:00", "2106-02-07 06:28:15"
        value = f"toDateTime({parsed}, {quote_text(zone)})"
    else:
        # nine digits of a fraction leave years up to 2262
        first, last = "1900-01-01 00:00:00", "2262-04-11 00:00:00" if digits == 9 else "2299-12-31 23:59:59"
        value = f"toTimeZone({parsed}, {quote_text(zone)})"
    limits = [f"toDateTime64({quote_text(limit)}, 0, 'UTC')" for limit in (first, last)]
    in_range = f"toDateTime64({parsed}, 0, 'UTC') BETWEEN {limits[0]} AND {limits[1]}"
    # the parser takes 30 February for 2 March, and wraps around beyond its range
    date = f"toString(toDate32OrNull({day})) = {day} AND {day} <= {quote_text(last[:10])}"
    return value, f"match({text}, {quote_text(pattern)}) AND {date} AND {in_range}"


def _round_trip(text: str, kind: str, _: re.Match[str]) -> tuple[str, str]:
    value = f"accurateCastOrNull({text}, {quote_text(kind)})"
    return value, f"lower(toString({value})) = lower({text})"


def _fixed(text: str, kind: str, match: re.Match[str]) -> tuple[str, str]:
    # a shorter text would be padded with zeros
    return f"accurateCastOrNull({text}, {quote_text(kind)})", f"length({text}) = {match[1]}"


def _ipv6(text: str, _kind: str, _: re.Match[str]) -> tuple[str, str]:
    return f"toIPv6OrNull({text})", f"isIPv6String({text})"


def _enum(text: str, kind: str, _: re.Match[str]) -> tuple[str, str]:
    names = ", ".join(re.findall(r"'(?:[^'\\]|\\.|'')*'(?= = -?\d)", kind))
    # a cast of an unknown name is an error, also in a branch that is not taken
    safe = f"if({text} IN ({names}), {text}, {names.partition(', ')[0]})"
    return f"CAST({safe}, {quote_text(kind)})", f"{text} IN ({names})"


def _string(text: str, _kind: str, _: re.Match[str]) -> tuple[str, str]:
    return text, "1"


_STRING = re.compile(r"String")
_FROM_TEXT: tuple[tuple[re.Pattern[str], Callable[[str, str, re.Match[str]], tuple[str, str]]], ...] = (
    (_STRING, _string),
    (_INTEGER, _integer),
    (_FLOAT, _float),
    (_DECIMAL, _decimal),
    (re.compile("Bool"), _bool),
    (re.compile("Date|Date32"), _date),
    (_MOMENT, _moment),
    (_FIXED, _fixed),
    (_ENUM, _enum),
    (re.compile("IPv6"), _ipv6),
    (re.compile(r"UUID|IPv4|Time|Time64\(\d\)"), _round_trip),
)


def _comparable(have: str, want: str) -> bool:
    """Whether values of the two types can be equal, and a cast there and back shows whether they are."""

    def number(kind: str) -> bool:
        return any(pattern.fullmatch(kind) for pattern in (_INTEGER, _FLOAT, _DECIMAL))

    def moment(kind: str) -> bool:
        return kind.startswith("DateTime") and bool(_MOMENT.fullmatch(kind))

    return (
        (number(have) and number(want))
        or (have in _DATES and want in _DATES)
        or (moment(have) and moment(want))
        or (_FIXED.fullmatch(have) is not None and want == "String")
        or (_ENUM.fullmatch(have) is not None and want == "String")
    )


def _same_nested(source: str, target: str) -> bool:
    """Whether nested types are equal, but for parts that may be NULL in the target alone."""
    if source == target:
        return True

    def plain(kind: str) -> str:
        return re.sub(r"LowCardinality\(((?:[^()]|\([^()]*\))*)\)", r"\1", kind)

    source, target = plain(source), plain(target)
    nullable = re.sub(r"Nullable\(((?:[^()]|\([^()]*\))*)\)", r"\1", target)
    return source in (target, nullable)
