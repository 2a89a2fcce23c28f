"""A table's own checks: queries that must give no row, run on staging before anyone reads.

A check is a file of ``sql/clickhouse/<table>/checks/``: one SELECT of the rows that must not be, over ``{table}``. Its
first line may say ``-- warning``: then rows are reported, and published all the same. Otherwise the check blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trilake.errors import ConfigurationError, TrilakeError

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


def read_checks(sql_folder: Path, table: str) -> tuple[Check, ...]:
    """The checks of a table, by name; none if it has no such folder.

    :param sql_folder: the project's ``sql/``.
    :raises ConfigurationError: a file that does not read ``{table}``.
    """
    checks = []
    for path in sorted((sql_folder / "clickhouse" / table / "checks").glob("*.sql")):
        sql = path.read_text(encoding="utf-8").strip().rstrip(";")
        if PLACEHOLDER not in sql:
            raise ConfigurationError(f"The check {path.name} of {table} does not read {PLACEHOLDER}.")
        first = sql.splitlines()[0].replace(" ", "").lower()
        checks.append(Check(path.stem, sql, blocking=not first.startswith("--warning")))
    return tuple(checks)
