"""In a container of Airflow: each over-all table of a server that has no native protocol becomes a view over HTTP.

A Distributed table asks the other shards by the native protocol. What reads it here reads the same rows of the same
local tables, this server's as they are and the others' by their HTTP address.
"""

from __future__ import annotations

from trilake.clickhouse.cluster import ClickHouseError, Cluster, Statement, quote_name, quote_text
from trilake.endpoints import ClickHouseShard, Endpoints

endpoint = Endpoints.from_environment().clickhouse


def part(table: str, shard: ClickHouseShard, here: ClickHouseShard) -> str:
    local = f"{quote_name(shard.database)}.{quote_name(f'{table}_local')}"
    if shard == here:
        return f"SELECT * FROM {local}"
    address = f"http://{shard.host}:{shard.port}/?query=SELECT+*+FROM+{local.replace('`', '')}+FORMAT+Native"
    headers = f"'X-ClickHouse-User'={quote_text(endpoint.user)}, 'X-ClickHouse-Key'={quote_text(endpoint.password)}"
    return f"SELECT * FROM url({quote_text(address)}, 'Native', {quote_text(structure[table])}, headers({headers}))"


with Cluster(endpoint) as cluster:
    database = quote_text(endpoint.database)
    described = cluster.any_host(
        Statement(
            "WITH arraySort(groupArray((position, name || ' ' || type))) AS columns "
            "SELECT table, arrayStringConcat(arrayMap(c -> c.2, columns), ', ') "
            f"FROM system.columns WHERE database = {database} AND table IN "
            f"(SELECT name FROM system.tables WHERE database = {database} AND engine = 'Distributed') GROUP BY table"
        )
    )
    structure = {str(name): str(columns) for name, columns in described}
    for table in structure:
        try:
            cluster.any_host(Statement(f"SELECT count() FROM {quote_name(endpoint.database)}.{quote_name(table)}"))
        except ClickHouseError:
            pass
        else:
            continue  # a server that has the protocol keeps its table
        over_all = f"{quote_name(endpoint.database)}.{quote_name(table)}"
        cluster.every_host(
            lambda client, here, table=table, over_all=over_all: [
                client.command(f"DROP TABLE {over_all}"),
                client.command(
                    f"CREATE VIEW {over_all} AS " + " UNION ALL ".join(part(table, s, here) for s in endpoint.shards)
                ),
            ]
        )
        print(f"{over_all}: a view")
