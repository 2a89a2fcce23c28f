"""Errors that Trilake raises: each names the thing that failed and says what to do next."""

from __future__ import annotations

# The code that raises an error does not know whether the reader uses a laptop or a host.
IS_IT_UP = "Is it up? `trilake status` shows it on a laptop, `docker compose ps` on its host."


class TrilakeError(Exception):
    """Something failed. The error names it, and the next step.

    :param message: one line that names the thing (host, table, partition, run id). Never a secret.
    :param hint: what the reader can do about it, as a full sentence; empty if the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ConfigurationError(TrilakeError):
    """A connection, a file or a parameter is missing or wrong."""


class UnreachableError(TrilakeError):
    """A service did not answer."""

    def __init__(self, message: str, *, hint: str = IS_IT_UP) -> None:
        super().__init__(message, hint=hint)


class RefusedError(UnreachableError):
    """A service refused our credentials. Another try does not help."""


class CountMismatchError(TrilakeError):
    """The rows that came out, plus those that are accounted for, are not the rows that went in."""
