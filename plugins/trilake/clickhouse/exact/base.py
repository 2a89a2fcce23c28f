"""What the modules of types share: the errors, and the conversion of a column value by value.

In those modules, a function for a type takes the column's type and its values, none of which is NULL. It returns them
as the driver writes them, or raises `RefusedValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

_SHOWN = 80


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


class NoError(Exception):
    """The reason why a value is refused, as half of a sentence."""


def each(values: Iterable[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """Converts each value. `convert` raises `NoError`, or an error of Python, for a value that it refuses.

    :raises RefusedValueError: the first value that is refused.
    """
    done: list[Any] = []
    for position, value in enumerate(values):
        try:
            done.append(convert(_python(value)))
        except (NoError, ArithmeticError, ValueError) as e:
            reason = str(e) if isinstance(e, NoError) else "it is not such a value"
            raise RefusedValueError(position, value, reason) from None
    return done


def _python(value: Any) -> Any:
    """A scalar of numpy as Python's. Moments and durations stay as they are: Python has no nanoseconds."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and value.dtype.kind not in "mMO":
        return value.item() if value.ndim == 0 else value
    return value


def is_a(values: Sequence[Any], *kinds: type) -> bool:
    """Whether each value is exactly of one of the types, and not of a subclass."""
    return set(map(type, values)) <= set(kinds)


def a(value: Any) -> str:
    """The value's type with its article, for messages."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
