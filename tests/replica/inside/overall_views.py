"""In a container of Airflow: each over-all table of a server that has no native protocol becomes a view over HTTP.

A Distributed table asks the other shards by the native protocol. What reads it here reads the same rows of the same
local tables, this server's as they are and the others' by their HTTP address.
"""

from __future__ import annotations

from trilake.clickhouse.cluster import Cluster, Statement, quote_name, quote_text
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
    described = cluster.any_host(
        Statement(
            "SELECT t.name, arrayStringConcat(groupArray(concat(c.name, ' ', c.type)), ', ') FROM system.tables AS t "
            f"JOIN (SELECT * FROM system.columns ORDER BY position) AS c ON c.database = t.database "
            f"AND c.table = t.name WHERE t.database = {quote_text(endpoint.database)} AND t.engine = 'Distributed' "
            "GROUP BY t.name"
        )
    )
    structure = {str(name): str(columns) for name, columns in described}
    for table in structure:
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
