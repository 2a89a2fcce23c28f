"""Values of a result as XCom holds them, exactly.

XCom is JSON in a column of type jsonb, and travels to it as MessagePack. So it has no negative zero, no NaN, no
infinity and no NUL; it returns a float without a fraction as an integer; and an integer has at most 64 bits. Airflow
keeps a Decimal and a moment as a float. Values that this would change become texts, or are refused.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

_WHOLE = range(-(1 << 63), 1 << 64)
# From here on Python writes a float with an exponent, and jsonb returns it as an integer.
_LARGE = 1e16
# Airflow reads a dict with such keys as another object.
_RESERVED = frozenset({"__classname__", "__id__", "__type", "__var"})
_SHOWN = 80


class NotHeldError(Exception):
    """XCom cannot hold a value. The message is the value and the reason, as the end of a sentence."""

    def __init__(self, shown: object, reason: str, hint: str) -> None:
        text = repr(shown)
        super().__init__(f"{text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'} {reason}, so XCom cannot hold it")
        self.hint = hint


def as_xcom(value: Any) -> Any:
    """A value as XCom can hold it: JSON and a few more types.

    :raises NotHeldError: bytes that are not UTF-8, a NUL byte, or a key of a map that Airflow reserves.
    """
    made: Any = value
    match value:
        case bool():
            pass
        case int():
            made = value if value in _WHOLE else str(value)
        case float():
            lost = not math.isfinite(value) or abs(value) >= _LARGE or (value == 0 and math.copysign(1, value) < 0)
            made = repr(value) if lost else value
        case bytes():
            made = _text(_decoded(value), value)
        case list() | tuple():
            made = type(value)(as_xcom(item) for item in value)
        case dict():
            made = {_key(key): as_xcom(item) for key, item in value.items()}
        case Decimal():
            made = value if _is_kept(value) else format(value, "f")
        case datetime():
            # Airflow keeps a moment as a float, and reads one without a zone in the zone of the worker
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            made = moment if _is_kept_moment(moment) else moment.isoformat()
        case None | date() | UUID():
            pass
        case _:
            made = _text(str(value), value)
    return made


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise NotHeldError(value, "is not UTF-8", "Select hex(column) or base64Encode(column).") from None


def _text(text: str, value: object) -> str:
    if "\0" in text:
        raise NotHeldError(value, "has a NUL byte", "Select hex(column), or replaceAll(column, char(0), '').")
    return text


def _key(key: Any) -> str:
    text = str(as_xcom(key))
    if text in _RESERVED:
        raise NotHeldError(text, "is a key that Airflow reserves", "Select toString(column).")
    return text


def _is_kept(value: Decimal) -> bool:
    """Whether Airflow gives the same Decimal back. It keeps one with a fraction as a float, any other as an integer."""
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= 0:
        return int(value) in _WHOLE
    return abs(value) < _LARGE and Decimal(repr(float(value))) == value


def _is_kept_moment(moment: datetime) -> bool:
    try:
        return datetime.fromtimestamp(moment.timestamp(), moment.tzinfo) == moment
    except (ValueError, OverflowError):  # rounded up to the year 10000
        return False
