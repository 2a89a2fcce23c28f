"""The steps of a schema: SQL files that are applied in order, each once to every database that it is meant for."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilake.clickhouse.sql import tokens
from trilake.errors import TrilakeError

RECORD = "schema_migrations"
# Trilake's own tables, in database `lake`. Existing installations have recorded these files' checksums, so no byte
# may change, not even in a comment that names a module by an older path.
OWN = Path(__file__).parent / "sql"

_STEP = re.compile(r"table\.sql|\d{3}_[a-z0-9_]+\.sql")
_OPTION = re.compile(r"^--\s*(database|source):\s*(\S+)\s*$", re.MULTILINE)


class MigrationError(TrilakeError):
    """A step of sql/ cannot be applied."""


@dataclass(frozen=True)
class Step:
    """One file of SQL.

    :param path: relative to its ``sql/``. The database records this path.
    :param database: ``clickhouse``, or a database of PostgreSQL (``oltp``, ``lake``).
    :param source: a file of an installed package that COPY FROM STDIN reads, as ``package:resource``.
    :param own: whether the table is Trilake's own and not the project's.
    """

    path: str
    table: str
    database: str
    sql: str
    source: str = ""
    own: bool = False

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statement(self) -> str:
        """The SQL without the comments before and behind it, and without the last semicolon."""
        seen = [token for token in tokens(self.sql) if token.kind not in ("space", "end")]
        return self.sql[seen[0].start : seen[-1].end] if seen else ""

    @property
    def first(self) -> bool:
        return self.path.endswith("/table.sql")

    @property
    def file(self) -> str:
        """The file's path for messages: in the project, or in the package."""
        return f"trilake/schema/sql/{self.path}" if self.own else f"sql/{self.path}"


@dataclass(frozen=True)
class Planned:
    """A step, and whether `target` (a database, or a shard) has it already."""

    step: Step
    target: str
    state: Literal["applied", "pending"]


def own_steps() -> list[Step]:
    """The steps of Trilake's own tables. They are applied before the project's steps."""
    return read_steps(OWN, own=True)


def read_steps(sql_folder: Path, *, own: bool = False) -> list[Step]:
    """The steps in the order in which they are applied: first every ``table.sql``, then the numbered steps by number.

    :param own: whether the folder is the package's and not a project's.
    :raises MigrationError: a folder has no ``table.sql``, a file has a number but is not named like a step, or a table
        is Trilake's own.
    """
    steps = []
    for kind in ("postgres", "clickhouse"):
        for folder in sorted(path for path in (sql_folder / kind).glob("*") if path.is_dir()):
            files = sorted(path for path in folder.glob("*.sql") if _STEP.fullmatch(path.name))
            for path in folder.glob("[0-9]*.sql"):
                if path not in files:
                    raise MigrationError(
                        f"{path.relative_to(sql_folder.parent)} begins with a digit but is not named like a step.",
                        hint="Name it like 001_what_changes.sql: three digits, then lower-case letters and digits.",
                    )
            if not (folder / "table.sql").exists() and files:
                raise MigrationError(
                    f"{folder.relative_to(sql_folder.parent)} has no table.sql.",
                    hint="Add table.sql with the CREATE TABLE of this table: it is the first step.",
                )
            steps += [_read(sql_folder, kind, path, own=own) for path in files]
    if not own:
        _refuse_own_tables(steps)
    return sorted(steps, key=lambda step: (not step.first, step.path.rsplit("/", 1)[1][:3] * (not step.first)))


def _refuse_own_tables(steps: list[Step]) -> None:
    ours = {(step.database, step.table) for step in own_steps()}
    for step in steps:
        if (step.database, step.table) in ours:
            raise MigrationError(
                f"{step.file} is for table {step.table} of database {step.database}, which is Trilake's own table.",
                hint="Remove the folder. `trilake migrate` applies the package's files; applied steps are kept.",
            )


def _read(sql_folder: Path, kind: str, path: Path, *, own: bool = False) -> Step:
    sql = path.read_text(encoding="utf-8")
    options = dict(_OPTION.findall(sql))
    database = "clickhouse" if kind == "clickhouse" else options.get("database", "oltp")
    if database not in ("clickhouse", "oltp", "lake"):
        raise MigrationError(
            f"{path.parent.name}/{path.name} is for an unknown database {database}.",
            hint="Write `-- database: oltp` or `-- database: lake`.",
        )
    return Step(
        path=path.relative_to(sql_folder).as_posix(),
        table=path.parent.name,
        database=database,
        sql=sql,
        source=options.get("source", ""),
        own=own,
    )


def plan(steps: list[Step], target: str, applied: dict[str, str]) -> list[Planned]:
    """The state of each step on a target.

    :param applied: path -> checksum, as recorded on the target.
    :raises MigrationError: a file was changed after it was applied.
    """
    planned = []
    for step in steps:
        recorded = applied.get(step.path)
        if recorded not in (None, step.checksum):
            raise MigrationError(
                f"{step.file} was changed after it was applied to {target}.",
                hint="Undo the change, and write it as a new step in the same folder.",
            )
        planned.append(Planned(step, target, "applied" if recorded else "pending"))
    return planned
