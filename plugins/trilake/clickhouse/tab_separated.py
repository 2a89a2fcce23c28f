"""ClickHouse's format TabSeparated, read strictly: the server's own reader wraps 300 in an Int8 around, for example."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.blocks import RefusedColumnError, Target, columns_of_rows
from trilake.clickhouse.exact import RefusedValueError

if TYPE_CHECKING:
    from clickhouse_connect.datatypes.base import ClickHouseType

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_SIGNS = {b"b": b"\b", b"f": b"\f", b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"a": b"\a", b"v": b"\v"}
_TOKEN = re.compile(rb" *('(?:[^'\\]|\\.)*'|[\[\](){},:]|[^\[\](){},:' ]+)", re.DOTALL)
_CLOSING = {b"[": b"]", b"(": b")", b"{": b"}"}
_NESTED = frozenset({"Array", "Map", "Tuple", "Nested", "Point", "Ring", "LineString", "MultiPoint", "Polygon",
                     "MultiLineString", "MultiPolygon"})  # fmt: skip


def columns_of_lines(target: Target, lines: Sequence[bytes]) -> list[Sequence[Any]]:
    """The lines' values, as the driver writes them without a change; see `trilake.clickhouse.exact`.

    :raises RefusedColumnError: the first value that its column cannot hold exactly, or a line with other columns.
    """
    rows = []
    for number, line in enumerate(lines):
        fields = line.removesuffix(b"\n").split(b"\t")
        if len(fields) != len(target.names):
            problem = RefusedValueError(number, line, f"the line has {len(fields)} values and not {len(target.names)}")
            raise RefusedColumnError(", ".join(target.names), "the line's columns", problem)
        row = []
        for name, kind, field in zip(target.names, target.types, fields, strict=True):
            try:
                row.append(_value(kind, field))
            except ValueError as e:
                raise RefusedColumnError(name, kind.name, RefusedValueError(number, field, str(e))) from None
        rows.append(row)
    return columns_of_rows(target, rows)


def _value(kind: ClickHouseType, field: bytes) -> Any:
    """Text, NULL, or nested lists of them. Text that is not UTF-8 stays bytes."""
    if field == b"\\N":
        return None
    if kind.base_type not in _NESTED:
        if field.endswith(b"\r"):
            raise ValueError("it ends in a carriage return; write \\r if it belongs to the value")
        return _text(field)
    tokens = _tokens(field)
    value = _parsed(next(tokens, b""), tokens)
    if next(tokens, None) is not None:
        raise ValueError("text follows its end")
    return value


def _tokens(field: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(field):
        match = _TOKEN.match(field, position)
        if match is None:
            raise ValueError("it is not an array, map or tuple")
        yield match[1]
        position = match.end()


def _parsed(token: bytes, tokens: Iterator[bytes]) -> Any:
    if token.startswith(b"'"):
        return _text(token[1:-1])
    if token not in _CLOSING:
        if not token or token in b"])},:":
            raise ValueError("it is not an array, map or tuple")
        return None if token == b"NULL" else _text(token)
    items: list[Any] = []
    end, separators = _CLOSING[token], (b",", b":") if token == b"{" else (b",",)
    following = next(tokens, b"")
    while following != end:
        items.append(_parsed(following, tokens))
        following = next(tokens, b"")
        if following in separators:
            following = next(tokens, b"")
        elif following != end:
            raise ValueError("it has no closing bracket")
    if token == b"{":
        if len(items) % 2:
            raise ValueError("a key has no value")
        return list(zip(items[::2], items[1::2], strict=True))
    return items


def _text(field: bytes) -> str | bytes:
    plain = _ESCAPE.sub(lambda match: _SIGNS.get(match[1], match[1]), field) if b"\\" in field else field
    try:
        return plain.decode()
    except UnicodeDecodeError:
        return plain
