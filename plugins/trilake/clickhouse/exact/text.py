"""Text, names of an Enum, UUIDs and IP addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any
from uuid import UUID

from trilake.clickhouse.exact.base import NoError, a, each, is_a

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def texts(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Text alone, or bytes alone."""
    if is_a(values, bytes):
        return values
    if is_a(values, str):
        try:
            "".join(values).encode()
            return values
        except UnicodeEncodeError:
            pass
    done = each(values, as_text)
    # the driver writes a column of text alone, or of bytes alone
    return done if is_a(done, str) else [item.encode() if isinstance(item, str) else item for item in done]


def as_text(value: Any) -> str | bytes:
    """Text that UTF-8 can hold, or bytes.

    :raises NoError: the value is neither.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NoError("it has half of a surrogate pair, which UTF-8 cannot hold") from None
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, UUID | IPv4Address | IPv6Address):
        return str(value)
    raise NoError(f"{a(value)} is not text")


def fixed_strings(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Bytes of the column's length."""
    size = kind.byte_size

    def one(value: Any) -> bytes:
        text = as_text(value)
        data = text.encode() if isinstance(text, str) else text
        if len(data) != size:
            raise NoError(f"it has {len(data)} bytes and not {size}")
        return data

    return each(values, one)


def enums(kind: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """Names of the Enum."""
    names: Mapping[str, int] = kind._name_map  # type: ignore[attr-defined]
    numbers: Mapping[int, str] = kind._int_map  # type: ignore[attr-defined]
    if is_a(values, str) and names.keys() >= set(values):
        return values

    def one(value: Any) -> str:
        if isinstance(value, str) and value in names:
            return str.__str__(value)
        if isinstance(value, int) and not isinstance(value, bool) and value in numbers:
            return numbers[value]
        listed = ", ".join(list(names)[:10]) + (", ..." if len(names) > 10 else "")
        raise NoError(f"the Enum has no such name; it has {listed}")

    return each(values, one)


def uuids(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """UUIDs."""

    def one(value: Any) -> UUID:
        if isinstance(value, UUID):
            return value
        if isinstance(value, str) and _UUID.fullmatch(value):
            return UUID(value)
        if isinstance(value, bytes) and len(value) == 16:
            return UUID(bytes=value)
        raise NoError("it is not a UUID")

    return values if is_a(values, UUID) else each(values, one)


def ipv4(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """IPv4 addresses."""

    def one(value: Any) -> IPv4Address:
        if isinstance(value, IPv4Address | str):
            try:
                return IPv4Address(value)
            except AddressValueError:
                pass
        raise NoError("it is not an IPv4 address")

    return values if is_a(values, IPv4Address) else each(values, one)


def ipv6(_: ClickHouseType, values: Sequence[Any]) -> Sequence[Any]:
    """IPv6 addresses without a zone."""

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
        raise NoError("it is not an IPv6 address without a zone")

    return each(values, one)
