"""Apply steps to one PostgreSQL database, all in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError
from trilake.schema.resources import open_resource
from trilake.schema.steps import RECORD, MigrationError, Planned, Step, plan

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


def migrate_postgres(connection: Connection, steps: list[Step], database: str, *, dry_run: bool) -> list[Planned]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (f"public.{RECORD}",))
        record = cursor.fetchone()
        applied: dict[str, str] = {}
        if record and record[0]:
            cursor.execute(f"SELECT path, checksum FROM public.{RECORD}")
            applied = dict(cursor.fetchall())
        planned = plan(steps, database, applied)
        if dry_run:
            return planned
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS public.{RECORD} (path text PRIMARY KEY, checksum text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for item in planned:
            if item.state == "pending":
                _apply_postgres(connection, item.step)
                cursor.execute(
                    f"INSERT INTO public.{RECORD} (path, checksum) VALUES (%s, %s)",
                    (item.step.path, item.step.checksum),
                )
    return planned


def _apply_postgres(connection: Connection, step: Step) -> None:
    with connection.cursor() as cursor:
        if not step.source:
            cursor.execute(step.sql)
            return
        try:
            with open_resource(step.source) as file:
                cursor.copy_expert(step.sql, file)
        except ConfigurationError as e:
            raise MigrationError(f"{step.file} cannot read {step.source}: {e.message}", hint=e.hint) from None
