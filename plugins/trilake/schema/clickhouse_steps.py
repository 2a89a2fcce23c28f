"""Apply steps to every shard of ClickHouse, and derive from them the tables over all shards."""

from __future__ import annotations

import hashlib
import re

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard
from trilake.lake import DataSet
from trilake.schema.steps import RECORD, MigrationError, Planned, Step, plan

_TABLE = re.compile(r"(?P<verb>CREATE|ALTER)\s+TABLE\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?P<name>[a-z][a-z0-9_]*)", re.I)
_PARTITION_BY = re.compile(r"\bPARTITION\s+BY\b", re.I)


def migrate_clickhouse(cluster: Cluster, steps: list[Step], *, dry_run: bool) -> list[Planned]:
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
        ours = plan(steps, str(shard), _recorded(cluster, shard))
        planned += ours
        for item in ours:
            if dry_run or item.state == "applied":
                continue
            # This is not a transaction: if the process dies here, a step is applied but not recorded. It is then
            # applied again, so CREATE has IF NOT EXISTS (added below), and ALTER must have it too.
            cluster.on_shard(shard, Statement(local_ddl(item.step, shard)))
            _record(cluster, shard, item.step.path, item.step.checksum)
    if not dry_run:
        for host in cluster.hosts:
            _derive_overall(cluster, steps, host)
    return planned


def _derive_overall(cluster: Cluster, steps: list[Step], host: ClickHouseShard) -> None:
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
            if recorded.get(path) != checksum:
                cluster.on_shard(host, Statement(ddl))
                _record(cluster, host, path, checksum)


def _recorded(cluster: Cluster, shard: ClickHouseShard) -> dict[str, str]:
    record = f"{{shard}}.{quote_name(RECORD)}"
    if not cluster.on_shard(shard, Statement(f"EXISTS TABLE {record}"))[0][0]:
        return {}
    # the last record of a path is the valid one
    return dict(cluster.on_shard(shard, Statement(f"SELECT path, checksum FROM {record} ORDER BY applied_at")))


def _record(cluster: Cluster, shard: ClickHouseShard, path: str, checksum: str) -> None:
    values = f"({quote_text(path)}, {quote_text(checksum)})"
    cluster.on_shard(shard, Statement(f"INSERT INTO {{shard}}.{quote_name(RECORD)} (path, checksum) VALUES {values}"))


def local_ddl(step: Step, shard: ClickHouseShard) -> str:
    """The step's statement for the local table of one shard.

    :raises MigrationError: the file does not create or alter the table that its folder is named after.
    """
    statement = step.statement
    match = _TABLE.match(statement)
    if match is None or match["name"] != step.table:
        raise MigrationError(
            f"{step.file} does not CREATE or ALTER TABLE {step.table}.",
            hint="A folder has the steps of one table, and is named after it.",
        )
    name = f"{quote_name(shard.database)}.{quote_name(DataSet(step.table).local_table)}"
    guard = "IF NOT EXISTS " if match["verb"].upper() == "CREATE" else ""
    return f"{match['verb']} TABLE {guard}{name}{statement[match.end() :]}"


def overall_ddl(step: Step, endpoint: ClickHouseEndpoint, host: ClickHouseShard) -> str:
    """The DDL of the table that people read: over all shards, or a dimension table's copy on this host.

    The engine is Distributed if there are several servers, and Merge if all shards are databases of one server.
    """
    data_set = DataSet(step.table)
    local = data_set.local_table
    if not _PARTITION_BY.search(step.statement):
        engine = f"Merge({quote_text(host.database)}, {quote_text(f'^{local}$')})"
    elif endpoint.one_server:
        databases = "|".join(shard.database for shard in endpoint.shards)
        engine = f"Merge(REGEXP({quote_text(f'^({databases})$')}), {quote_text(f'^{local}$')})"
    else:
        # an empty database name means each shard's own default database
        engine = f"Distributed({quote_text(endpoint.cluster)}, '', {quote_text(local)})"
    return (
        f"CREATE OR REPLACE TABLE {quote_name(endpoint.database)}.{quote_name(data_set.table)} "
        f"AS {quote_name(host.database)}.{quote_name(local)} ENGINE = {engine}"
    )
