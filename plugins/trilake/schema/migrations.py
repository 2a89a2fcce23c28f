"""Apply the files of sql/, in order, to every database that they are meant for. Trilake's own tables come first.

``sql/postgres/<table>/`` and ``sql/clickhouse/<table>/`` each hold a ``table.sql`` (the first step) and later steps
``001_what_changes.sql``, ``002_...``. A step is applied once, and recorded with its checksum in the database that it
changed. A file that was changed after that is refused. A ClickHouse table is written once, as ``CREATE TABLE <table>``:
the local table of each shard and the table over all shards are derived from it. Without PARTITION BY it is a dimension
table, of which every shard has a full copy.
"""

from __future__ import annotations

from pathlib import Path

from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication.comparison import compare
from trilake.clickhouse.publication.ledger import Ledger
from trilake.endpoints import Endpoints
from trilake.lake.catalog import grant_catalog
from trilake.postgres.connection import connect
from trilake.postgres.locks import migration_lock
from trilake.schema.clickhouse_steps import migrate_clickhouse
from trilake.schema.postgres_steps import migrate_postgres
from trilake.schema.steps import MigrationError, Planned, own_steps, read_steps


def migrate(endpoints: Endpoints, sql_folder: Path, *, dry_run: bool = False) -> list[Planned]:
    """Apply all pending steps to all databases. Can be repeated. If two processes call it, the second one waits.

    A table that somebody dropped is created again. If published rows of it are lost, the table over all shards is only
    there again after a rebuild, so that nobody reads too few rows.

    :param dry_run: only return what would be applied.
    :raises MigrationError: a file was changed after it was applied, or a step was refused.
    """
    steps = [*own_steps(), *read_steps(sql_folder)]
    planned: list[Planned] = []
    with migration_lock(endpoints.lake):
        for database, endpoint in (("lake", endpoints.lake), ("oltp", endpoints.oltp)):
            with connect(endpoint) as connection:
                planned += migrate_postgres(
                    connection, [step for step in steps if step.database == database], database, dry_run=dry_run
                )
        if not dry_run:
            grant_catalog(endpoints.lake, endpoints.s3)
        with Cluster(endpoints.clickhouse, comment={"migration": True}) as cluster:
            cluster.check_topology()
            ledger = Ledger(endpoints.lake)
            if not dry_run:
                _check_shards(ledger, cluster)
            planned += migrate_clickhouse(
                cluster,
                [step for step in steps if step.database == "clickhouse"],
                dry_run=dry_run,
                resharding={} if dry_run else ledger.shard_sets.resharding(),
                shards_that_lost=lambda table: {
                    difference.shard for difference in compare(cluster, ledger, table).differences
                },
            )
    return planned


def _check_shards(ledger: Ledger, cluster: Cluster) -> None:
    """:raises MigrationError: rows are on a shard that the connection does not name, so nobody would read them."""
    named = len(cluster.shards)
    for table, shard_set in ledger.shard_sets.all().items():
        needed = max(shard_set.shards or 0, (shard_set.next_shards or 0) if shard_set.switching else 0)
        if needed > named:
            raise MigrationError(
                f"The rows of {table} are on {needed} shards, but the connection names {named}.",
                hint="Name all shards again. To remove one, spread the rows over fewer shards first: "
                f"`trilake reshard --shards {named}`.",
            )
