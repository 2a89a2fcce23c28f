"""A table's own checks: queries that find wrong rows. They run on staging, before readers see the rows.

A check is a file in ``sql/clickhouse/<table>/checks/``: one SELECT of the wrong rows of ``{table}``. If its first line
is ``-- warning``, its rows are reported and published anyway. Otherwise a row blocks the publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trilake.clickhouse.sql import has_result, split_statements
from trilake.errors import ConfigurationError, TrilakeError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PLACEHOLDER = "{table}"


class CheckFailedError(TrilakeError):
    """A blocking check found rows: nothing was published."""


@dataclass(frozen=True)
class Check:
    """:param sql: a SELECT of the wrong rows of ``{table}``."""

    name: str
    sql: str
    blocking: bool = True

    def on(self, table: str) -> str:
        """A query that counts the rows of `table` (quoted) that the check finds."""
        return f"SELECT count() FROM (\n{self.sql.replace(PLACEHOLDER, table)}\n)"  # its last line may be a comment


def read_checks(sql_folder: Traversable, table: str) -> tuple[Check, ...]:
    """The checks of a table, ordered by name. Empty if it has no folder ``checks/``.

    :param sql_folder: the project's ``sql/``: a folder, or one in a zip (`zipfile.Path`).
    :raises ConfigurationError: a file is not one query, or does not read ``{table}``.
    """
    checks = []
    folder = sql_folder / "clickhouse" / table / "checks"
    files = [path for path in folder.iterdir() if path.name.endswith(".sql")] if folder.is_dir() else []
    for path in sorted(files, key=lambda path: path.name):
        statements = split_statements(path.read_text(encoding="utf-8"))
        if len(statements) != 1 or not has_result(statements[0]):
            raise ConfigurationError(
                f"The check {path.name} of {table} is not one query.",
                hint=f"Write one SELECT of the wrong rows of {PLACEHOLDER}.",
            )
        sql = statements[0]
        if PLACEHOLDER not in sql:
            raise ConfigurationError(
                f"The check {path.name} of {table} does not read {PLACEHOLDER}.",
                hint=f"Write FROM {PLACEHOLDER} in its query.",
            )
        first = sql.splitlines()[0].replace(" ", "").lower()
        checks.append(Check(path.name.removesuffix(".sql"), sql, blocking=not first.startswith("--warning")))
    return tuple(checks)
