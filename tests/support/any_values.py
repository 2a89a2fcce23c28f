"""Columns of ClickHouse of every type with random values, edges among them, and the same values in other forms.

A value is in a plain form that equals itself: an integer; the bits of a float; a Decimal; bytes of a String; the name
of an Enum; days since 1970 of a date; ticks of a moment or a time since its zero; an integer of an address or a UUID;
a list; a list of pairs for a map; a dict for a tuple; None.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAN = "nan"
_TEXTS = (
    b"", b" ", b"a", b"NULL", b"\\N", b"a,b\t\"c'\\", b"line\r\nbreak", "Z\u00fcrich \U0001f980".encode(), b"1", b"nan",
    b"x" * 5_000,
)  # fmt: skip
_BAD_TEXTS = (b"a\0b", b"caf\xe9", b"\xff\x00")


@dataclass(frozen=True)
class Kind:
    """A type of ClickHouse.

    :param name: as ClickHouse writes it.
    :param family: as docs/reference/types.md names it.
    :param draw: a random value.
    :param sql: a value as an expression of this type.
    :param parts: of a nested type: the types inside.
    """

    name: str
    family: str
    draw: Callable[[Random], Any]
    sql: Callable[[Any], str]
    parts: tuple[Kind, ...] = ()
    nullable: bool = False
    digits: int = 0
    zone: str = ""
    names: tuple[str, ...] = field(default=())

    def value(self, chance: Random) -> Any:
        return None if self.nullable and chance.random() < 0.2 else self.draw(chance)

    def literal(self, value: Any) -> str:
        return f"CAST(NULL, {quoted(self.name)})" if value is None else f"CAST({self.sql(value)}, {quoted(self.name)})"

    def has(self, *families: str) -> bool:
        """Whether the type or one inside is of one of these families."""
        return self.family in families or any(part.has(*families) for part in self.parts)


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def bits_of(value: float, size: int = 64) -> Any:
    """A float's bits, or `NAN`."""
    if math.isnan(value):
        return NAN
    return struct.unpack("<Q" if size == 64 else "<I", struct.pack("<d" if size == 64 else "<f", value))[0]


def float_of(bits: Any, size: int = 64) -> float:
    if bits == NAN:
        return math.nan
    return float(struct.unpack("<d" if size == 64 else "<f", struct.pack("<Q" if size == 64 else "<I", bits))[0])


# --- scalars


def _whole(bits: int, signed: bool) -> Kind:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    name = f"{'' if signed else 'U'}Int{bits}"
    edges = [low, high, 0, 1, *(v for v in (2**53 + 1, 2**63, -(2**63) - 1, 2**64) if low <= v <= high)]
    return Kind(name, name, lambda c: c.choice([*edges, c.randint(low, high)]), lambda v: f"'{v}'")


def _float(bits: int) -> Kind:
    edges = [0.0, -0.0, math.inf, -math.inf, 1.5, 1e16, 1e22, 0.1]
    edges += (
        [5e-324, 1.7976931348623157e308, 2.0**53 + 2] if bits == 64 else [1.401298464324817e-45, 3.4028234663852886e38]
    )

    def draw(chance: Random) -> Any:
        value = chance.choice([*(bits_of(edge, bits) for edge in edges), NAN, chance.getrandbits(bits)])
        return bits_of(float_of(value, bits), bits)

    def sql(value: Any) -> str:
        return "nan" if value == NAN else f"reinterpretAsFloat{bits}(toUInt{bits}('{value}'))"

    return Kind(f"Float{bits}", f"Float{bits}", draw, sql)


def _decimal(precision: int, scale: int) -> Kind:
    limit = 10**precision - 1

    def draw(chance: Random) -> Decimal:
        number = chance.choice([limit, -limit, 0, 1, -1, chance.randint(-limit, limit)])
        sign, digits = ("-" if number < 0 else ""), str(abs(number)).rjust(scale + 1, "0")
        return Decimal(
            f"{sign}{digits[: len(digits) - scale]}.{digits[len(digits) - scale :]}" if scale else f"{number}"
        )

    return Kind(f"Decimal({precision}, {scale})", "Decimal", draw, lambda v: f"'{v:f}'", digits=scale)


def _texts(chance: Random) -> bytes:
    return chance.choice([*_TEXTS, "".join(chance.choices("abc \u00e4\u2028\U0001f980\"',\\", k=6)).encode()])


STRING = Kind("String", "String", _texts, lambda v: f"unhex('{v.hex()}')")
BYTES = Kind("String", "String", lambda c: c.choice([*_BAD_TEXTS, c.randbytes(7)]), STRING.sql)
FIXED = Kind(
    "FixedString(3)",
    "FixedString",
    lambda c: c.choice([b"abc", b"a\0\0", c.randbytes(3)]),
    lambda v: f"unhex('{v.hex()}')",
)
_NAMES = ("a", "b'\t", "DateTime(", "\u00e9")
ENUM = Kind("Enum8('a' = 1, 'b\\'\\t' = -2, 'DateTime(' = 3, '\u00e9' = 4)", "Enum8", lambda c: c.choice(_NAMES),
            lambda v: f"unhex('{v.encode().hex()}')")  # fmt: skip


def _days(name: str, first: date, last: date) -> Kind:
    low, high = ((day - date(1970, 1, 1)).days for day in (first, last))
    edges = [low, high, 0, *(v for v in (-1, 15_710, 49_709, 65_535) if low <= v <= high)]
    zero = "toDate32('1970-01-01')"
    return Kind(name, name, lambda c: c.choice([*edges, c.randint(low, high)]), lambda v: f"addDays({zero}, {v})")


def _seconds(zone: str) -> Kind:
    edges = [0, 1, 2**31, 2**32 - 1, 1_364_693_400, 1_382_835_600]  # both changes of the clock in Berlin in 2013
    return Kind(f"DateTime('{zone}')", "DateTime", lambda c: c.choice([*edges, c.getrandbits(32)]),
                lambda v: f"toDateTime(toUInt32({v}), '{zone}')", zone=zone)  # fmt: skip


def _ticks(digits: int, zone: str) -> Kind:
    unit = 10**digits
    first, last = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2299, 12, 31, 23, 59, 59, tzinfo=UTC))
    low, high = (int((moment - _EPOCH).total_seconds()) for moment in (first, last))
    if digits > 6:
        low, high = -(2**63 // 10**9) + 2, 2**63 // 10**9 - 2  # Parquet and Arrow count nanoseconds
    edges = [low * unit, high * unit + unit - 1, 0, -1, 1_364_693_400 * unit, 1_382_835_600 * unit + 1, 2**32 * unit]
    name = f"DateTime64({digits}, '{zone}')"
    return Kind(name, "DateTime64", lambda c: c.choice([*edges, c.randint(low * unit, high * unit)]),
                lambda v: f"reinterpret(toInt64('{v}'), {quoted(name)})", digits=digits, zone=zone)  # fmt: skip


def _clock(seconds: int, digits: int = 0) -> str:
    sign, (rest, fraction) = ("-" if seconds < 0 else ""), divmod(abs(seconds), 10**digits)
    text = f"{sign}{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{text}.{fraction:0{digits}}" if digits else text


def _time(digits: int) -> Kind:
    last = (999 * 3600 + 3599) * 10**digits
    name = f"Time64({digits})" if digits else "Time"
    draw = lambda c: c.choice([0, 1, 86_399 * 10**digits, -1, last, -last, c.randint(-last, last)])  # noqa: E731
    return Kind(name, name.partition("(")[0], draw, lambda v: f"'{_clock(v, digits)}'", digits=digits)


def _address(name: str, bits: int, made: Callable[[int], object]) -> Kind:
    return Kind(name, name, lambda c: c.choice([0, 2**bits - 1, c.getrandbits(bits)]), lambda v: f"'{made(v)}'")


SCALARS: tuple[Kind, ...] = (
    *(_whole(bits, signed) for bits in (8, 16, 32, 64, 128, 256) for signed in (True, False)),
    _float(32), _float(64), _decimal(9, 2), _decimal(18, 18), _decimal(38, 10), _decimal(76, 40), _decimal(5, 0),
    Kind("Bool", "Bool", lambda c: c.random() < 0.5, lambda v: str(v).lower()),
    STRING, FIXED, ENUM,
    _days("Date", date(1970, 1, 1), date(2149, 6, 6)), _days("Date32", date(1900, 1, 1), date(2299, 12, 31)),
    _seconds("UTC"), _seconds("Europe/Berlin"), _ticks(0, "UTC"), _ticks(3, "America/New_York"), _ticks(6, "UTC"),
    _ticks(9, "UTC"), _time(0), _time(6),
    _address("UUID", 128, lambda v: UUID(int=v)), _address("IPv4", 32, IPv4Address), _address("IPv6", 128, IPv6Address),
)  # fmt: skip


# --- nested types


def nullable(kind: Kind) -> Kind:
    if kind.parts or kind.nullable:
        return kind
    return Kind(f"Nullable({kind.name})", kind.family, kind.draw, kind.sql, (), True, kind.digits, kind.zone)


def dictionary(kind: Kind) -> Kind:
    return Kind(f"LowCardinality({kind.name})", kind.family, kind.draw, kind.sql, (), kind.nullable)


def array(kind: Kind) -> Kind:
    draw = lambda c: [kind.value(c) for _ in range(c.choice([0, 0, 1, 2, 3]))]  # noqa: E731
    return Kind(f"Array({kind.name})", "Array", draw, lambda v: f"[{', '.join(map(kind.literal, v))}]", (kind,))


def mapping(key: Kind, value: Kind) -> Kind:
    def draw(chance: Random) -> list[Any]:
        pairs = [(key.draw(chance), value.value(chance)) for _ in range(chance.choice([0, 1, 2]))]
        return [list(pair) for n, pair in enumerate(pairs) if pair[0] not in [other for other, _ in pairs[:n]]]

    def sql(pairs: Any) -> str:
        return "map(" + ", ".join(f"{key.literal(k)}, {value.literal(v)}" for k, v in pairs) + ")"

    return Kind(f"Map({key.name}, {value.name})", "Map", draw, sql, (key, value))


def pair(*kinds: Kind) -> Kind:
    names = tuple(f"f{number}" for number in range(len(kinds)))
    listed = ", ".join(f"{name} {kind.name}" for name, kind in zip(names, kinds, strict=True))

    def draw(chance: Random) -> dict[str, Any]:
        return {name: kind.value(chance) for name, kind in zip(names, kinds, strict=True)}

    def sql(value: Any) -> str:
        return "tuple(" + ", ".join(kind.literal(value[name]) for name, kind in zip(names, kinds, strict=True)) + ")"

    return Kind(f"Tuple({listed})", "Tuple", draw, sql, kinds, names=names)


def nested(chance: Random, kinds: Sequence[Kind], depth: int = 2) -> Kind:
    """A random nested type of some kinds."""

    def inside() -> Kind:
        if depth > 1 and chance.random() < 0.3:
            return nested(chance, kinds, depth - 1)
        kind = chance.choice(kinds)
        return nullable(kind) if chance.random() < 0.5 else kind

    keys = [kind for kind in kinds if kind.family in ("String", "Int32", "UInt64", "Date")] or [STRING]
    return chance.choice([lambda: array(inside()), lambda: mapping(chance.choice(keys), inside()),
                          lambda: pair(inside(), inside())])()  # fmt: skip


def columns_of(chance: Random, kinds: Sequence[Kind], more: int) -> list[Kind]:
    """Every kind once, with and without NULL by chance, and more columns: nested ones and others."""
    found = [nullable(kind) if chance.random() < 0.5 else kind for kind in kinds]
    found += [dictionary(nullable(STRING)), dictionary(STRING)]
    for _ in range(more):
        found.append(nested(chance, kinds) if chance.random() < 0.7 else nullable(chance.choice(kinds)))
    return found


def rows_sql(kinds: Sequence[Kind], rows: Sequence[Sequence[Any]]) -> str:
    """A query of these rows: ``n`` and a column ``c0``, ``c1``, ... for each kind."""
    return " UNION ALL ".join(
        f"SELECT toUInt32({n}) AS n, "
        + ", ".join(f"{kind.literal(value)} AS c{i}" for i, (kind, value) in enumerate(zip(kinds, row, strict=True)))
        for n, row in enumerate(rows)
    )


# --- Python's values


_PYTHON: dict[str, Callable[[Kind, Any], Any]] = {
    "Float32": lambda _, bits: float_of(bits, 32),
    "Float64": lambda _, bits: float_of(bits),
    "String": lambda _, value: text(value),
    **dict.fromkeys(("Date", "Date32"), lambda _, days: date(1970, 1, 1) + timedelta(days)),
    **dict.fromkeys(("DateTime", "DateTime64"), lambda kind, ticks: _moment(ticks, kind)),
    **dict.fromkeys(("Time", "Time64"), lambda kind, ticks: timedelta(microseconds=ticks * 10 ** (6 - kind.digits))),
    "UUID": lambda _, number: UUID(int=number),
    "IPv4": lambda _, number: IPv4Address(number),
    "IPv6": lambda _, number: IPv6Address(number),
    "Array": lambda kind, items: [python(kind.parts[0], item) for item in items],
    "Map": lambda kind, pairs: {python(kind.parts[0], key): python(kind.parts[1], item) for key, item in pairs},
    "Tuple": lambda kind, found: {n: python(part, found[n]) for n, part in zip(kind.names, kind.parts, strict=True)},
}


def python(kind: Kind, value: Any) -> Any:
    """A value as Python has it, exactly; nanoseconds as ticks."""
    convert = _PYTHON.get(kind.family)
    return value if value is None or convert is None else convert(kind, value)


def _moment(ticks: int, kind: Kind) -> datetime | int:
    if kind.digits > 6:
        return ticks
    found = _EPOCH + timedelta(microseconds=ticks * 10 ** (6 - kind.digits))
    return found.astimezone(ZoneInfo(kind.zone)) if kind.zone else found


def text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _ticks_of(kind: Kind, value: datetime) -> int:
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 10**kind.digits // 10**6


def _pairs(value: Any) -> Any:
    return value.items() if isinstance(value, dict) else value


_PLAIN: dict[str, Callable[[Kind, Any], Any]] = {
    "Float32": lambda _, value: bits_of(value, 32),
    "Float64": lambda _, value: bits_of(value),
    "String": lambda _, value: value.encode() if isinstance(value, str) else bytes(value),
    **dict.fromkeys(("Date", "Date32"), lambda _, value: (value - date(1970, 1, 1)).days),
    **dict.fromkeys(("DateTime", "DateTime64"), _ticks_of),
    **dict.fromkeys(
        ("Time", "Time64"), lambda kind, value: value // timedelta(microseconds=1) * 10**kind.digits // 10**6
    ),
    "UUID": lambda _, value: value.int,
    **dict.fromkeys(("IPv4", "IPv6"), lambda _, value: int(value)),
    "Array": lambda kind, value: [plain(kind.parts[0], item) for item in value],
    "Map": lambda kind, value: [[plain(kind.parts[0], k), plain(kind.parts[1], item)] for k, item in _pairs(value)],
    "Tuple": lambda kind, value: {n: plain(part, value[n]) for n, part in zip(kind.names, kind.parts, strict=True)},
}


def plain(kind: Kind, value: Any) -> Any:
    """The plain form of a value that Python has read."""
    convert = _PLAIN.get(kind.family)
    return value if value is None or convert is None else convert(kind, value)
