"""Apply steps to every shard of ClickHouse, and derive from them the tables over all shards."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.clickhouse.readers_table import MISSING, readers_table_ddl, readers_table_problem
from trilake.clickhouse.sql import Token, split_statements, tokens
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.lake import DataSet
from trilake.schema.steps import RECORD, MigrationError, Planned, Step, plan

log = logging.getLogger(__name__)

# The database over all shards.
_DATABASE = "analytics"
_GUARDS = (["IF", "NOT", "EXISTS"], ["IF", "EXISTS"])
_UNQUOTED = re.compile(r"[a-z][a-z0-9_]*")


def migrate_clickhouse(
    cluster: Cluster,
    steps: list[Step],
    *,
    dry_run: bool,
    shards_that_lost: Callable[[str], Collection[int]] = lambda _table: (),
    resharding: Mapping[str, int] | None = None,
) -> list[Planned]:
    """Apply the pending steps to every shard, then create or update the tables over all shards.

    :param shards_that_lost: the numbers of the shards that do not hold the published rows of a table. Then nobody may
        read the table over all shards: a query would see too few rows without an error.
    :param resharding: tables that may not be altered now, because their rows are being copied to other shards, and to
        how many.
    :raises MigrationError: a step would alter such a table.
    """
    planned: list[Planned] = []
    record = quote_name(RECORD)
    if not dry_run:
        cluster.every_host(Statement(f"CREATE DATABASE IF NOT EXISTS {quote_name(cluster.endpoint.database)}"))
        cluster.every_shard(Statement("CREATE DATABASE IF NOT EXISTS {shard}"))
        cluster.every_shard(Statement("CREATE DATABASE IF NOT EXISTS {staging}"))
        cluster.every_shard(
            Statement(
                f"CREATE TABLE IF NOT EXISTS {{shard}}.{record} (path String, checksum String, "
                "applied_at DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY path"
            )
        )
    for shard in cluster.shards:
        ours = plan(steps, str(shard), _still_there(cluster, shard, steps, _recorded(cluster, shard)))
        planned += ours
        created = set[str]()  # the tables that this shard did not have: nothing can be copied from them
        for item in ours:
            if dry_run or item.state == "applied":
                continue
            if item.step.first:
                created.add(item.step.table)
            if item.step.table in (resharding or {}) and item.step.table not in created:
                raise MigrationError(
                    f"{item.step.file} would alter {item.step.table}, whose rows are being spread over other shards.",
                    hint=f"Finish the reshard first: `trilake reshard --table {item.step.table} --shards "
                    f"{(resharding or {})[item.step.table]}`.",
                )
            # This is not a transaction: if the process dies here, a step is applied but not recorded. It is then
            # applied again, so CREATE has IF NOT EXISTS (added below), and ALTER must have it too.
            cluster.on_shard(shard, Statement(local_ddl(item.step, shard)))
            _record(cluster, shard, item.step.path, item.step.checksum)
    if not dry_run:
        new = {item.step.table for item in planned if item.step.first and item.state == "pending"}
        lost = {table: set(shards_that_lost(table)) for table in new | _not_everywhere(cluster, steps)}
        for host in cluster.hosts:
            hidden = {step.table for step in steps if step.first and _reads(step, host, lost.get(step.table, set()))}
            for table in sorted(hidden):
                log.warning("%s: published rows of %s are lost, so nobody can read it there now. `trilake rebuild "
                            "--table %s` brings them back.", host, table, table)  # fmt: skip
                name = f"{quote_name(cluster.endpoint.database)}.{quote_name(table)}"
                cluster.on_shard(host, Statement(f"DROP TABLE IF EXISTS {name} SYNC"))
            _derive_overall(cluster, [step for step in steps if step.table not in hidden], host, resharding or ())
    return planned


def _reads(step: Step, host: ClickHouseShard, shards: Collection[int]) -> bool:
    """Whether a query on a host reads the rows of one of these shards: all, or its own copy of a dimension table."""
    return bool(shards) if _is_partitioned(step.statement) else host.number in shards


def _not_everywhere(cluster: Cluster, steps: list[Step]) -> set[str]:
    """The tables that a host does not have in the database over all shards."""
    tables = {step.table for step in steps}
    return {table for host in cluster.hosts for table in tables - _tables(cluster, host, cluster.endpoint.database)}


def _derive_overall(cluster: Cluster, steps: list[Step], host: ClickHouseShard, resharding: Collection[str]) -> None:
    """Create or update the tables over all shards on one host.

    They are recorded separately, because a migration may die after the last step of a local table and before this.
    """
    recorded = _recorded(cluster, host)
    for step in steps:
        if step.first:
            ddl = overall_ddl(step, cluster.endpoint, host)
            parts = [ddl, *(other.checksum for other in steps if other.table == step.table)]
            checksum = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            path = f"{step.path} over all shards"
            data_set = DataSet(step.table)
            look = partial(readers_table_problem, cluster.endpoint, data_set.table, data_set.local_table)
            problem = cluster.on_shard(host, look)
            if step.table in resharding and problem != MISSING:
                problem = ""  # readers may see the copies now
            if recorded.get(path) != checksum or problem:
                cluster.on_shard(host, Statement(ddl))
                _record(cluster, host, path, checksum)


def _recorded(cluster: Cluster, shard: ClickHouseShard) -> dict[str, str]:
    record = f"{{shard}}.{quote_name(RECORD)}"
    if not cluster.on_shard(shard, Statement(f"EXISTS TABLE {record}"))[0][0]:
        return {}
    # the last record of a path is the valid one
    return dict(cluster.on_shard(shard, Statement(f"SELECT path, checksum FROM {record} ORDER BY applied_at")))


def _still_there(
    cluster: Cluster, shard: ClickHouseShard, steps: list[Step], recorded: dict[str, str]
) -> dict[str, str]:
    """The records without those of tables that somebody dropped. Their steps have to be applied again."""
    if not recorded:
        return recorded
    there = _tables(cluster, shard, shard.database)
    dropped = {step.path for step in steps if DataSet(step.table).local_table not in there}
    return {path: checksum for path, checksum in recorded.items() if path not in dropped}


def _tables(cluster: Cluster, shard: ClickHouseShard, database: str) -> set[str]:
    sql = f"SELECT name FROM system.tables WHERE database = {quote_text(database)}"
    return {name for (name,) in cluster.on_shard(shard, Statement(sql))}


def _record(cluster: Cluster, shard: ClickHouseShard, path: str, checksum: str) -> None:
    values = f"({quote_text(path)}, {quote_text(checksum)})"
    cluster.on_shard(shard, Statement(f"INSERT INTO {{shard}}.{quote_name(RECORD)} (path, checksum) VALUES {values}"))


def local_ddl(step: Step, shard: ClickHouseShard) -> str:
    """The step's statement for the local table of one shard.

    The file may name the table with quotes, and with the database over all shards.

    :raises MigrationError: the file does not create or alter the table that its folder is named after, or has several
        statements.
    """
    if len(statements := split_statements(step.sql)) > 1:
        raise MigrationError(
            f"{step.file} has {len(statements)} statements. A step is one statement, so that it is applied or not.",
            hint="Write each statement into a file of its own, such as 001_what_changes.sql and 002_what_changes.sql.",
        )
    statement = step.statement
    seen = [token for token in tokens(statement) if token.kind != "space"]
    words = [token.word for token in seen]
    replaces = words[:3] == ["CREATE", "OR", "REPLACE"]
    verb, at = (words[0] if words else ""), 3 if replaces else 1
    name, database, end = "", "", 0
    if verb in ("CREATE", "ALTER") and words[at : at + 1] == ["TABLE"]:
        at += 1
        at += next((len(guard) for guard in _GUARDS if words[at : at + len(guard)] == guard), 0)
        name, database, end = _name(seen[at:])
    if name != step.table:
        raise MigrationError(
            f"{step.file} does not CREATE or ALTER TABLE {step.table}.",
            hint="A folder has the steps of one table, and is named after it.",
        )
    if database not in ("", _DATABASE):
        raise MigrationError(
            f"{step.file} names the database {database}. Its table is made in the database of each shard and in "
            f"{_DATABASE}.",
            hint=f"Write the table's name without a database: {step.table}.",
        )
    if replaces and not step.first:
        raise MigrationError(
            f"{step.file} would replace {step.table} and remove all its rows.",
            hint="Write an ALTER TABLE. To start again, drop the table on every shard and write table.sql.",
        )
    local = f"{quote_name(shard.database)}.{quote_name(DataSet(step.table).local_table)}"
    # A step may be applied twice if a process dies. OR REPLACE would then remove rows, so it is left out.
    guard = "IF NOT EXISTS " if verb == "CREATE" else ""
    return f"{verb} TABLE {guard}{local}{statement[end:]}"


def _name(seen: Sequence[Token]) -> tuple[str, str, int]:
    """The table's name, its database if it has one, and where they end."""
    parts, end = [_identifier(token) for token in seen[:1]], seen[0].end if seen else 0
    if len(seen) > 2 and seen[1].text == "." and parts[0]:
        parts, end = [_identifier(seen[2]), *parts], seen[2].end
    return (parts[0] if parts else ""), (parts[1] if len(parts) > 1 else ""), end


def _identifier(token: Token) -> str:
    """A name as it is without quotes; empty if the token is not a name."""
    if token.kind == "quoted" and token.text[0] in '`"':
        return token.text[1:-1]
    return token.text if token.kind == "word" and _UNQUOTED.fullmatch(token.text) else ""


def _is_partitioned(statement: str) -> bool:
    """Whether a CREATE TABLE has PARTITION BY. A comment, a text or a window function may contain these words too."""
    depth, before = 0, ""
    for token in tokens(statement):
        if token.kind == "space":
            continue
        if token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        elif depth == 0 and (before, token.word) == ("PARTITION", "BY"):
            return True
        before = token.word
    return False


def overall_ddl(step: Step, endpoint: ClickHouseEndpoint, host: ClickHouseShard) -> str:
    """The DDL of the table that people read: over all shards, or a dimension table's copy on this host."""
    return readers_table_ddl(
        endpoint,
        host,
        DataSet(step.table).table,
        DataSet(step.table).local_table,
        partitioned=_is_partitioned(step.statement),
    )
