"""What an engineer can do with the users of its file, by trying. The test defines `given`, the file's document."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect

from trilake import s3
from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.postgres.connection import connect

given: dict[str, Any] = globals()["given"]
found: list[str] = []


def attempt(what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except Exception:
        return
    found.append(what)


def ask(sql: str) -> None:
    """On every shard."""
    of = given["clickhouse"]
    for url in map(urlsplit, of["urls"]):
        client = clickhouse_connect.get_client(
            host=url.hostname, port=url.port, username=of["user"], password=of["password"]
        )
        client.query(sql)


def read_marts() -> None:
    of = given["postgresql"]
    with connect(PostgresEndpoint(of["host"], of["port"], "oltp", of["user"], of["password"])) as connection:
        connection.cursor().execute("SELECT 1")


key = given["s3"]
store = s3.client(S3Endpoint(key["url"], key["access_key_id"], key["secret_access_key"]))
attempt("asks ClickHouse", lambda: ask("SELECT count() FROM system.one"))
attempt("reads the query log", lambda: ask("SELECT count() FROM system.query_log"))
attempt("hides a query", lambda: ask("SELECT 1 SETTINGS log_queries = 0"))
attempt("gets a part", lambda: ask("SELECT 1 SETTINGS read_overflow_mode = 'break'"))
attempt("reads S3", lambda: store.list_objects_v2(Bucket="lake"))
attempt("writes S3", lambda: store.put_object(Bucket="lake", Key="access/x", Body=b"1"))
attempt("reads PostgreSQL", read_marts)
print(json.dumps(found))
