"""The table that people read: over the local tables of all shards."""

from __future__ import annotations

from trilake.clickhouse.cluster import quote_name, quote_text
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard


def readers_table_ddl(
    endpoint: ClickHouseEndpoint, host: ClickHouseShard, table: str, local: str, *, partitioned: bool
) -> str:
    """The DDL of a readers' table on one host. Running it is one atomic step: a query reads the old or the new table.

    The engine is Distributed if there are several servers, and Merge if all shards are databases of one server.

    :param local: the local table, which every shard has.
    :param partitioned: False for a dimension table, of which people read the host's own copy.
    """
    if not partitioned:
        engine = f"Merge({quote_text(host.database)}, {quote_text(f'^{local}$')})"
    elif endpoint.one_server:
        databases = "|".join(shard.database for shard in endpoint.shards)
        engine = f"Merge(REGEXP({quote_text(f'^({databases})$')}), {quote_text(f'^{local}$')})"
    else:
        # an empty database name means each shard's own default database
        engine = f"Distributed({quote_text(endpoint.cluster)}, '', {quote_text(local)})"
    return (
        f"CREATE OR REPLACE TABLE {quote_name(endpoint.database)}.{quote_name(table)} "
        f"AS {quote_name(host.database)}.{quote_name(local)} ENGINE = {engine}"
    )
