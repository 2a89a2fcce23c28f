"""What the driver would change when it reads a result is refused by name instead.

The driver returns text that is not UTF-8 as hexadecimal digits, cuts nanoseconds of a DateTime64 to microseconds, and
keeps one value of a key that a Map has twice. It has no option for this. So some methods of its types (version 1.12,
which the locks pin) get a second form here. It runs only for results of clients that went through `read_exactly`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from trilake.errors import TrilakeError

if TYPE_CHECKING:
    import pyarrow
    from clickhouse_connect.driver.client import Client

_SHOWN = 80
# Types whose values pandas could take for integers in one block, and for floats in another.
_MIXED = ("Int128", "UInt128", "Int256", "UInt256", "Variant", "Dynamic")
_MARK = "trilake_rows"  # an attribute of a query's context: how many rows were read before the current block


class UnreadableValueError(TrilakeError):
    """A value of a result that Python or Arrow cannot hold exactly."""


class _LossyError(Exception):
    """
    :ivar position: the value's place in its block, from 0. Values of nested columns are counted one by one.
    """

    def __init__(self, position: int, shown: str, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.position, self.shown, self.hint = position, shown, hint


def read_exactly(client: Client) -> Client:
    """Makes the results of a client exact: a value that the driver would change is an `UnreadableValueError`."""
    _install()
    client._transform = _ExactTransform(client._transform)  # type: ignore[attr-defined]
    return client


class _ExactTransform:
    """The driver's codec, which marks the context of each result."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.threaded_insert = inner.threaded_insert

    def build_insert(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner.build_insert(*args, **kwargs)

    def parse_response(self, source: Any, context: Any) -> Any:
        setattr(context, _MARK, 0)
        result = self._inner.parse_response(source, context)
        if getattr(result, "_block_gen", None) is not None:
            result._block_gen = _counted(result._block_gen, context)
        return result


def _counted(blocks: Iterator[Sequence[Any]], context: Any) -> Iterator[Sequence[Any]]:
    for block in blocks:
        yield block
        setattr(context, _MARK, getattr(context, _MARK) + (len(block[0]) if block else 0))


@cache
def _install() -> None:
    from clickhouse_connect.datatypes.base import ClickHouseType
    from clickhouse_connect.datatypes.container import Map
    from clickhouse_connect.datatypes.string import String
    from clickhouse_connect.datatypes.temporal import Date, Date32, DateTime64, Time64

    _replace(ClickHouseType, "read_column", _named)
    _replace(String, "_read_column_binary", _text)
    _replace(String, "_read_nullable_column", _text_or_null)
    _replace(DateTime64, "_read_column_binary", _moments)
    _replace(Time64, "_read_column_binary", _times)
    _replace(Map, "read_column_data", _maps)
    for kind in (Date, Date32):
        _replace(kind, "_read_column_binary", _dates)


def _replace(kind: type[Any], method: str, exact: Callable[..., Any]) -> None:
    lenient = getattr(kind, method)

    def read(self: Any, source: Any, number: int, context: Any, *rest: Any) -> Any:
        if not hasattr(context, _MARK):
            return lenient(self, source, number, context, *rest)
        return exact(lenient, self, source, number, context, *rest)

    setattr(kind, method, read)


def _named(lenient: Any, kind: Any, source: Any, number: int, context: Any) -> Any:
    from clickhouse_connect.driver.exceptions import NotSupportedError

    try:
        found = lenient(kind, source, number, context)
        return _as_objects(found) if context.as_pandas and kind.base_type in _MIXED and type(found) is list else found
    except NotSupportedError as e:
        raise UnreadableValueError(
            f"Column {context.column_name} ({kind.name}) cannot be read: {e}.",
            hint="Select finalizeAggregation(column), or toString(column).",
        ) from None
    except _LossyError as e:
        before = getattr(context, _MARK)
        plain = not kind.low_card and not hasattr(kind, "element_type") and kind.base_type not in ("Map", "Tuple")
        place = f"row {before + e.position + 1}" if plain else f"one of the rows {before + 1} to {before + number}"
        raise UnreadableValueError(
            f"Column {context.column_name} ({kind.name}), {place}: {e.shown} {e}.", hint=e.hint
        ) from None


def _as_objects(values: list[Any]) -> Any:
    """A block of a frame's column as objects. pandas would choose a type for each block, and join blocks as floats."""
    import numpy

    column = numpy.empty(len(values), dtype=object)
    for position, value in enumerate(values):  # an assignment of all would take lists for more dimensions
        column[position] = value
    return column


def _encoding(kind: Any, context: Any) -> str:
    return kind._active_encoding(context) or ""


def _text(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    encoding = _encoding(kind, context)
    if not encoding:
        return lenient(kind, source, number, context, state)
    return _decoded(source.read_str_col(number, None), encoding, None)


def _text_or_null(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    encoding = _encoding(kind, context)
    if not encoding:
        return lenient(kind, source, number, context, state)
    return _decoded(source.read_str_col(number, None, True, None), encoding, kind._active_null(context))


def _decoded(values: Sequence[bytes | None], encoding: str, null: Any) -> list[Any]:
    try:
        if None in values:
            return [null if value is None else value.decode(encoding) for value in values]
        return [value.decode(encoding) for value in values]  # type: ignore[union-attr]
    except UnicodeDecodeError:
        position, value = next((at, v) for at, v in enumerate(values) if v is not None and not _is_text(v, encoding))
        raise _not_text(position, value) from None


def _is_text(value: bytes, encoding: str = "utf-8") -> bool:
    try:
        value.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _not_text(position: int, value: bytes) -> _LossyError:
    return _LossyError(
        position,
        _cut(repr(value)),
        "is not UTF-8, so it is not text",
        "Select base64Encode(column) or hex(column), or correct the text with toValidUTF8(column). query_arrow and "
        "stream_arrow return bytes with text=False.",
    )


def _moments(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    if context.use_numpy and not kind.unit:
        raise _LossyError(
            0, "pandas", f"has no moments with {kind.scale} digits of a second", "Select a DateTime64(3), (6) or (9)."
        )
    if context.use_numpy or kind.read_format(context) == "int":
        return lenient(kind, source, number, context, state)
    ticks = source.read_array("q", number)
    _refuse_nanoseconds(ticks, kind.scale)
    zone = context.active_tz(kind.tzinfo)
    try:
        return kind._read_binary_tz(ticks, zone) if zone else kind._read_binary_naive(ticks)
    except (ValueError, OverflowError, OSError):
        raise _out_of_range(ticks) from None


def _times(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    if context.use_numpy or kind.read_format(context) != "native":
        return lenient(kind, source, number, context, state)
    ticks = source.read_array("q", number)
    _refuse_nanoseconds(ticks, kind.scale)
    return [kind._ticks_to_timedelta(tick) for tick in ticks]


def _refuse_nanoseconds(ticks: Sequence[int], digits: int) -> None:
    step = 10 ** max(0, digits - 6)
    if step > 1:
        for position, tick in enumerate(ticks):
            if tick % step:
                seconds, rest = divmod(tick, 10**digits)
                raise _LossyError(
                    position,
                    f"{seconds}.{rest:0{digits}} s",
                    "has nanoseconds, and Python's moments have microseconds",
                    "Select toString(column), or a type with 6 digits of a second. query_df and query_arrow hold "
                    "nanoseconds.",
                )


def _dates(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    try:
        return lenient(kind, source, number, context, state)
    except (ValueError, OverflowError):
        raise _out_of_range([]) from None


def _out_of_range(ticks: Sequence[int]) -> _LossyError:
    return _LossyError(0, "a value", "is not in the years 1 to 9999, which Python can hold", "Select toString(column).")


def _maps(lenient: Any, kind: Any, source: Any, number: int, context: Any, state: Any) -> Any:
    if kind.read_format(context) == "pairs":
        return lenient(kind, source, number, context, state)
    offsets = source.read_array("Q", number)
    total = offsets[-1] if len(offsets) else 0
    keys = kind.key_type.read_column_data(source, total, context, state[0])
    values = kind.value_type.read_column_data(source, total, context, state[1])
    # a slice of pandas' arrays for each row is slow
    keys, values = ([*items] if context.as_pandas else items for items in (keys, values))
    column, start = [], 0
    for position, end in enumerate(offsets):
        made = dict(zip(keys[start:end], values[start:end], strict=True))
        if len(made) != end - start:
            twice = next(key for at, key in enumerate(keys[start:end]) if key in keys[start : start + at])
            raise _LossyError(
                position,
                _cut(f"the key {twice!r}"),
                "occurs twice in a map, and a dict holds it once",
                "Select CAST(column, 'Array(Tuple(...))'), or mapKeys(column) and mapValues(column).",
            )
        column.append(made)
        start = end
    return column


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def checked_text(data: pyarrow.Table | pyarrow.RecordBatch, before: int = 0) -> Any:
    """Arrow's data, if all its text is UTF-8. Arrow itself does not look.

    :param before: rows that came before.
    :raises UnreadableValueError: a column of type string has bytes that are not UTF-8.
    """
    import pyarrow as pa

    for name, column in zip(data.schema.names, data.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            place, shown = f"one of the rows {before + 1} to {before + data.num_rows}", "a value"
            if pa.types.is_string(column.type):
                values = column.cast(pa.binary()).to_pylist()
                at = next((at for at, value in enumerate(values) if value and not _is_text(value)), None)
                if at is not None:
                    place, shown = f"row {before + at + 1}", _cut(repr(values[at]))
            lossy = _not_text(0, b"")
            reason = str(lossy) if "UTF8" in str(error) or "UTF-8" in str(error) else f"cannot be read: {error}"
            raise UnreadableValueError(f"Column {name}, {place}: {shown} {reason}.", hint=lossy.hint) from None
    return data
