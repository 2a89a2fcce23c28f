"""The gateway spoken to by the clients that the platform uses: clickhouse-connect and Airflow's hook."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from support.clickhouse_gateway import PASSWORD, USER, RunningGateway

pytest_plugins = ["support.clickhouse_fixtures"]

COLUMNS = {
    "id": "UInt64",
    "name": "String",
    "ratio": "Nullable(Float64)",
    "at": "DateTime64(6, 'UTC')",
    "day": "Date",
    "kind": "LowCardinality(String)",
    "price": "Decimal(12, 2)",
    "tags": "Array(String)",
}
ROWS = [
    (1, "one", 0.5, dt.datetime(2013, 1, 1, 12, 30, 15, 123456), dt.date(2013, 1, 1), "a", Decimal("1.50"), ["x", "y"]),
    (2, "it's\n\ttwo\\", None, dt.datetime(2013, 12, 31), dt.date(2013, 12, 31), "b", Decimal("-2.25"), []),
]


@pytest.fixture(params=[True, False], ids=["compressed", "plain"])
def client(gateway: RunningGateway, request: pytest.FixtureRequest) -> Iterator[Any]:
    with gateway.client(compress=request.param) as client:
        client.command(
            "CREATE OR REPLACE TABLE things ({}) ENGINE = MergeTree ORDER BY id".format(
                ", ".join(map(" ".join, COLUMNS.items()))
            )
        )
        yield client


def test_rows_come_back_as_they_were_inserted(client: Any) -> None:
    summary = client.insert("things", ROWS, column_names=list(COLUMNS))
    assert summary.written_rows == 2
    found = client.query("SELECT * FROM things ORDER BY id")
    assert found.result_rows == ROWS
    assert found.column_names == tuple(COLUMNS)
    assert found.summary["read_rows"] == "2"
    assert found.summary["query_id"]


def test_data_frames_come_back_as_they_were_inserted(client: Any) -> None:
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS))
    client.insert_df("things", frame)
    found = client.query_df("SELECT * FROM things ORDER BY id")
    assert found["name"].tolist() == frame["name"].tolist()
    assert found["at"].tolist() == frame["at"].tolist()
    assert found["ratio"].isna().tolist() == [False, True]


def test_arrow_tables_come_back_as_they_were_inserted(client: Any) -> None:
    table = pa.table({"id": pa.array(range(200_000), pa.uint64()), "name": [str(n) for n in range(200_000)]})
    assert client.insert_arrow("things", table).written_rows == 200_000
    found = client.query_arrow("SELECT id, name FROM things ORDER BY id")
    assert found.column("id").equals(table.column("id"))
    assert found.column("name").equals(table.column("name"))
    with client.query_arrow_stream("SELECT id FROM things") as stream:
        assert sum(part.num_rows for part in stream) == 200_000


def test_rows_are_streamed(client: Any) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(row[0] for block in stream for row in block) == sum(range(300_000))
    with client.query_df_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(frame) for frame in stream) == 300_000
    assert client.raw_stream("SELECT 1", fmt="CSV").read() == b"1\n"


def test_empty_results_have_columns(client: Any) -> None:
    assert client.query("SELECT id, name FROM things LIMIT 0").column_names == ("id", "name")
    assert client.query("SELECT id FROM things").result_rows == []
    assert client.query_df("SELECT id FROM things").empty
    assert client.query_arrow("SELECT id FROM things").num_rows == 0


def test_parameters_are_bound_by_the_server_or_the_client(client: Any) -> None:
    hostile = "'; DROP TABLE things; --\\"
    assert client.query(
        "SELECT {a:String}, {b:DateTime64(6)}", parameters={"a": hostile, "b": ROWS[0][3]}
    ).result_rows == [(hostile, ROWS[0][3])]
    assert client.query("SELECT %(a)s", parameters={"a": hostile}).result_rows == [(hostile,)]
    assert client.query("SELECT length({a:Array(UInt64)})", parameters={"a": list(range(50_000))}).result_rows == [
        (50_000,)
    ]
    client.command(
        "INSERT INTO things (id, name) VALUES ({id:UInt64}, {name:String})", parameters={"id": 9, "name": hostile}
    )
    assert client.query("SELECT name FROM things WHERE id = 9").result_rows == [(hostile,)]


def test_settings_of_a_client_and_of_a_query(gateway: RunningGateway) -> None:
    with gateway.client(settings={"max_block_size": 1000, "log_comment": "it's"}) as client:
        assert client.command("SELECT getSetting('max_block_size'), getSetting('log_comment')") == ["1000", "it\\'s"]
        assert client.query("SELECT getSetting('max_block_size')", settings={"max_block_size": 7}).result_rows == [(7,)]
        client.command("SET max_block_size = 8")
        with pytest.raises(DatabaseError) as error:
            client.query("SELECT 1", settings={"nonesuch": 1})
        assert error.value.code == 115


def test_commands_return_what_they_say(client: Any) -> None:
    assert client.command("SELECT 1") == 1
    assert client.command("EXISTS TABLE things") == 1
    assert client.command("INSERT INTO things (id) SELECT number FROM numbers(5)").written_rows == 5
    assert client.command("SELECT name FROM things WHERE id = 77") == ""
    assert client.query("SHOW TABLES LIKE 'things'").result_rows == [("things",)]


@pytest.mark.parametrize("fail", ["query", "query_df", "query_arrow", "command", "query_row_block_stream"])
@pytest.mark.parametrize(
    ("sql", "code"), [("SELECT nonesuch", 47), ("SELECT throwIf(number = 90000) FROM numbers(100000)", 395)]
)
def test_errors_carry_the_engines_code(client: Any, fail: str, sql: str, code: int) -> None:
    with pytest.raises(DatabaseError, match=f"Code: {code}") as error:
        getattr(client, fail)(sql)
    assert error.value.code == code


def test_an_error_far_into_a_stream_carries_the_engines_code(client: Any) -> None:
    sql = "SELECT number, toString(rand64()), throwIf(number = 3000000) FROM numbers(5000000) SETTINGS max_threads = 1"
    with client.query_row_block_stream(sql) as stream, pytest.raises(StreamFailureError) as error:
        sum(len(block) for block in stream)
    assert error.value.code == 395


def test_a_wrong_password_is_an_authentication_error(gateway: RunningGateway) -> None:
    with pytest.raises(DatabaseError) as error:
        gateway.client(password="wrong")
    assert error.value.code == 516


def test_external_tables_are_refused(client: Any) -> None:
    data = ExternalData(file_name="t.csv", data=b"1\n", fmt="CSV", structure="n UInt8")
    with pytest.raises(DatabaseError) as error:
        client.query("SELECT * FROM t", external_data=data)
    assert error.value.code == 48


def test_clients_work_side_by_side(gateway: RunningGateway) -> None:
    def work(n: int) -> int:
        with gateway.client() as client:
            client.command(f"CREATE OR REPLACE TABLE side_{n} (n UInt64) ENGINE = MergeTree ORDER BY n")
            for _ in range(5):
                client.insert(f"side_{n}", [[row] for row in range(1000)], column_names=["n"])
            return int(client.command(f"SELECT count() FROM side_{n}"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [5000] * 8


def test_airflows_hook(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook

    connection = {
        "conn_type": "clickhouse",
        "host": "127.0.0.1",
        "port": gateway.port,
        "login": USER,
        "password": PASSWORD,
        "schema": "analytics",
    }
    monkeypatch.setenv("AIRFLOW_CONN_GATEWAY", json.dumps(connection))
    hook = ClickHouseHook(clickhouse_conn_id="gateway", session_settings={"max_threads": 1})
    hook.run(
        [
            "CREATE OR REPLACE TABLE hooked (n UInt64, s String) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO hooked VALUES (1, 'a')",
        ]
    )
    hook.bulk_insert_rows("hooked", [(n, "x") for n in range(2, 1001)], ["n", "s"], batch_size=400)
    assert hook.get_first("SELECT count(), min(s), getSetting('max_threads') FROM hooked") == (1000, "a", 1)
    assert hook.get_records("SELECT s FROM hooked WHERE n = %(n)s", {"n": 1}) == [("a",)]
    assert hook.get_df("SELECT * FROM hooked WHERE n < 3")["n"].tolist() == [1, 2]
    assert hook.test_connection()[0]
