"""A table's own checks: queries that must give no row, run on staging before anyone reads.

A check is a file of ``sql/clickhouse/<table>/checks/``: one SELECT of the rows that must not be, over ``{table}``. Its
first line may say ``-- warning``: then rows are reported, and published all the same. Otherwise the check blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError, TrilakeError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PLACEHOLDER = "{table}"


class CheckFailedError(TrilakeError):
    """A blocking check found rows: nothing was published."""


@dataclass(frozen=True)
class Check:
    """:param sql: a SELECT over ``{table}`` of the rows that must not be."""

    name: str
    sql: str
    blocking: bool = True

    def on(self, table: str) -> str:
        """How many rows of `table` (quoted) the check finds, as a query."""
        return f"SELECT count() FROM (\n{self.sql.replace(PLACEHOLDER, table)}\n)"  # its last line may be a comment


def read_checks(sql_folder: Traversable, table: str) -> tuple[Check, ...]:
    """The checks of a table, by name; none if it has no such folder.

    :param sql_folder: the project's ``sql/``: a folder, or one in a zip (`zipfile.Path`).
    :raises ConfigurationError: a file that does not read ``{table}``.
    """
    checks = []
    folder = sql_folder / "clickhouse" / table / "checks"
    found = [path for path in folder.iterdir() if path.name.endswith(".sql")] if folder.is_dir() else []
    for path in sorted(found, key=lambda path: path.name):
        sql = path.read_text(encoding="utf-8").strip().rstrip(";")
        if PLACEHOLDER not in sql:
            raise ConfigurationError(f"The check {path.name} of {table} does not read {PLACEHOLDER}.")
        first = sql.splitlines()[0].replace(" ", "").lower()
        checks.append(Check(path.name.removesuffix(".sql"), sql, blocking=not first.startswith("--warning")))
    return tuple(checks)
