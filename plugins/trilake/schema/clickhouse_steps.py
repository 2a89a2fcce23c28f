"""Steps applied to every shard of ClickHouse, and the tables over all shards, which are derived from them."""

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
            f"{step.file} has to CREATE or ALTER TABLE {step.table}.", hint="One table a folder, named as it."
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
