"""Marts in PostgreSQL, replaced by what a query of ClickHouse gives."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from trilake.clickhouse.cluster import Cluster
from trilake.endpoints import Endpoints
from trilake.errors import CountMismatchError
from trilake.postgres import connect, replace_rows


@pytest.fixture
def mart(endpoints: Endpoints) -> Iterator[str]:
    name = f"marts.m_{secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (m int, n int)")
        cursor.execute(f"INSERT INTO {name} VALUES (1, 10), (2, 20)")
    yield name
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


def rows(endpoints: Endpoints, mart: str) -> list[tuple[int, int]]:
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT m, n FROM {mart} ORDER BY m, n")
        return cursor.fetchall()


def replace_by_query(endpoints: Endpoints, mart: str, sql: str) -> int:
    with Cluster(endpoints.clickhouse) as cluster:
        stream = cluster.client(cluster.shards[0]).query_row_block_stream(sql)
        with stream, connect(endpoints.oltp) as connection:
            found = (row for block in stream for row in block)
            columns = stream.source.column_names
            return replace_rows(connection, mart, columns, found, where="m = %s", parameters=(1,))


def test_what_matches_is_replaced_and_the_rest_stays(endpoints: Endpoints, mart: str) -> None:
    assert replace_by_query(endpoints, mart, "SELECT 1 AS m, number AS n FROM numbers(2)") == 2
    assert rows(endpoints, mart) == [(1, 0), (1, 1), (2, 20)]


def test_a_window_that_has_no_row_any_more_is_emptied(endpoints: Endpoints, mart: str) -> None:
    assert replace_by_query(endpoints, mart, "SELECT 1 AS m, 2 AS n WHERE 0") == 0
    assert rows(endpoints, mart) == [(2, 20)]


def test_rows_outside_of_what_is_replaced_are_refused_and_nothing_changes(endpoints: Endpoints, mart: str) -> None:
    with pytest.raises(CountMismatchError, match="outside of what is replaced"):
        replace_by_query(endpoints, mart, "SELECT 3 AS m, 2 AS n")
    assert rows(endpoints, mart) == [(1, 10), (2, 20)]
