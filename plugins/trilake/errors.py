"""Errors that Trilake raises: each names the thing that failed and says what to do next."""

from __future__ import annotations

# The hint names both places, because the code that raises an error does not know whether it runs on a laptop or a host.
IS_IT_UP = "Is it up? `trilake status` shows it on a laptop, `docker compose ps` on its host."


class TrilakeError(Exception):
    """Base class of Trilake's errors. An error names the thing that failed, and the next step.

    :param message: one line that names the thing (host, table, partition, run id). Never a secret.
    :param hint: what the reader can do about it, in full sentences; empty if the message is enough.
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
    """A service refused the credentials or a permission. Another try does not help."""


class CountMismatchError(TrilakeError):
    """Numbers of rows do not match: rows were lost or added on the way."""
