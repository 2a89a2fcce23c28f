"""What an agent is told when it may not do something, or when something failed."""

from __future__ import annotations

import json
import unicodedata

from trilake.errors import TrilakeError

# An error of a server quotes values, and may be long.
MAX_TEXT = 1_000


class CallError(TrilakeError):
    """A call that is not done.

    :param code: a short name of the reason, in snake_case, such as ``unknown_table``.
    :param hint: what to do instead.
    :param retry: whether the same call can succeed later.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry = retry

    @classmethod
    def of(cls, error: TrilakeError, *, code: str = "failed", retry: bool = False) -> CallError:
        """Another error as a refusal, with its message and its hint."""
        return error if isinstance(error, cls) else cls(code, error.message, hint=error.hint, retry=retry)

    def to_json(self) -> str:
        """The one form in which an agent gets every refusal."""
        return json.dumps(
            {
                "error": self.code,
                "says": plain(self.message, MAX_TEXT),
                "do": plain(self.hint, MAX_TEXT),
                "retry": self.retry,
            },
            ensure_ascii=False,
        )


def plain(text: str, length: int) -> str:
    """Text that cannot hide anything from who reads it: characters that are not visible are escaped, such as those that
    change the direction of writing or have no width. Text of more than `length` characters is cut, and ends with ``…``.
    """
    shown = text if len(text) <= length else text[: length - 1] + "…"
    if shown.isprintable():  # nearly every text
        return shown
    return "".join(c if c in "\n\t " or unicodedata.category(c)[0] not in "CZ" else f"\\u{{{ord(c):x}}}" for c in shown)
