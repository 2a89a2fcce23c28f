"""The table that people read: over the local tables of all shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trilake.clickhouse.cluster import Statement, quote_name, quote_text
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

MISSING = "is missing"


def readers_table_ddl(
    endpoint: ClickHouseEndpoint, host: ClickHouseShard, table: str, local: str, *, partitioned: bool
) -> str:
    """The DDL of a readers' table on one host. Running it is one atomic step: a query reads the old or the new table.

    The engine is Distributed if there are several servers, and Merge if all shards are databases of one server.

    :param local: the local table, which every shard has.
    :param partitioned: False for a dimension table, of which people read the host's own copy.
    """
    return (
        f"CREATE OR REPLACE TABLE {quote_name(endpoint.database)}.{quote_name(table)} "
        f"AS {quote_name(host.database)}.{quote_name(local)} ENGINE = "
        f"{_engine(endpoint, host, local, partitioned=partitioned)}"
    )


def _engine(endpoint: ClickHouseEndpoint, host: ClickHouseShard, local: str, *, partitioned: bool) -> str:
    if not partitioned:
        return f"Merge({quote_text(host.database)}, {quote_text(f'^{local}$')})"
    if endpoint.one_server:
        databases = "|".join(shard.database for shard in endpoint.shards)
        return f"Merge(REGEXP({quote_text(f'^({databases})$')}), {quote_text(f'^{local}$')})"
    # an empty database name means each shard's own default database
    return f"Distributed({quote_text(endpoint.cluster)}, '', {quote_text(local)})"


def readers_table_problem(
    endpoint: ClickHouseEndpoint, table: str, local: str, client: Client, host: ClickHouseShard
) -> str:
    """Why a host's table over all shards is not what it should be; empty if it is.

    A view in its place is somebody's decision. It must have the same columns, and its query is not judged.

    :param local: if the host does not have this table, nothing can be said.
    """

    def tables(database: str, name: str) -> list[Any]:
        where = f"database = {quote_text(database)} AND name = {quote_text(name)}"
        sql = f"SELECT engine, engine_full, partition_key FROM system.tables WHERE {where}"
        return [tuple(row) for row in Statement(sql)(client, host)]

    def columns(database: str, name: str) -> list[tuple[str, str]]:
        where = f"database = {quote_text(database)} AND table = {quote_text(name)}"
        sql = f"SELECT name, type FROM system.columns WHERE {where} ORDER BY position"
        return [(column, kind) for column, kind in Statement(sql)(client, host)]

    of_local, of_table = tables(host.database, local), tables(endpoint.database, table)
    if not of_local:
        return ""
    if not of_table:
        return MISSING
    expected, actual = columns(host.database, local), columns(endpoint.database, table)
    engine, definition = of_table[0][:2]
    if engine == "View":
        expected, actual = ([(name, "") for name, _ in found] for found in (expected, actual))
    if expected != actual:
        return f"has other columns than {local}"
    wanted = _engine(endpoint, host, local, partitioned=bool(of_local[0][2]))
    if engine != "View" and definition != wanted:
        return f"is {definition or engine} instead of {wanted}"
    return ""
