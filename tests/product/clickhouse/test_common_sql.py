"""common.sql's operators, sensor and checks through our connection type and hook, on a real server."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from airflow.providers.common.sql.operators.sql import (
    SQLCheckOperator,
    SQLColumnCheckOperator,
    SQLExecuteQueryOperator,
    SQLIntervalCheckOperator,
    SQLTableCheckOperator,
    SQLThresholdCheckOperator,
    SQLValueCheckOperator,
)
from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout
from airflow.sdk.execution_time import macros

from support.clickhouse_gateway import PASSWORD, RunningGateway
from support.transfer_task import context, make
from trilake.hooks.clickhouse import ClickHouseHook

pytest_plugins = ["support.clickhouse_fixtures"]
CONNECTION = "clickhouse_cluster_default"


@pytest.fixture(autouse=True)
def connections(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CLICKHOUSE_CLUSTER_DEFAULT", gateway.connection(schema="shard_1"))


@pytest.fixture
def filled(gateway: RunningGateway, table: str) -> str:
    """Ten rows: n of 0 to 9; s of 'even', 'odd'; `null_s` for every third."""
    gateway.sql(f"ALTER TABLE {table} ADD COLUMN null_s Nullable(String), ADD COLUMN day Date")
    gateway.sql(
        f"INSERT INTO {table} SELECT number, if(number % 2, 'odd', 'even'), if(number % 3 = 0, NULL, '%s 100%'), "
        "toDate('2013-01-01') + number FROM numbers(10)"
    )
    return table


def run(operator: type[Any], **options: Any) -> Any:
    made = make(operator, conn_id=CONNECTION, **options)
    return made.execute(context(ds="2013-01-10", dag_run=None))


def test_the_connections_type_gives_our_hook() -> None:
    operator = make(SQLExecuteQueryOperator, conn_id=CONNECTION, sql="SELECT 1")
    assert type(operator.get_db_hook()) is ClickHouseHook
    assert type(make(SqlSensor, conn_id=CONNECTION, sql="SELECT 1")._get_hook()) is ClickHouseHook


def test_a_query_gives_rows_and_statements_run_in_order(filled: str, gateway: RunningGateway) -> None:
    assert run(SQLExecuteQueryOperator, sql=f"SELECT s, count() FROM {filled} GROUP BY s ORDER BY s") == [
        ("even", 5),
        ("odd", 5),
    ]
    statements = [
        f"INSERT INTO {filled} (n, s) VALUES (10, 'a;b')",
        f"SELECT s FROM {filled} WHERE n = 10",
    ]
    assert run(SQLExecuteQueryOperator, sql=statements, return_last=True)[-1] == [("a;b",)]
    split = run(SQLExecuteQueryOperator, sql="; ".join(statements), split_statements=True, return_last=False)
    assert split[-1] == [("a;b",), ("a;b",)]


def test_parameters_are_bound_and_percent_signs_stay(filled: str) -> None:
    sql = f"SELECT count() FROM {filled} WHERE null_s = %(text)s"
    assert run(SQLExecuteQueryOperator, sql=sql, parameters={"text": "%s 100%"}) == [(6,)]
    assert run(SQLExecuteQueryOperator, sql=f"SELECT count() FROM {filled} WHERE null_s LIKE '%100%'") == [(6,)]
    bound = f"SELECT count() FROM {filled} WHERE n < {{top:UInt8}}"
    assert run(SQLExecuteQueryOperator, sql=bound, parameters={"top": 3}) == [(3,)]


def test_the_database_is_what_the_operator_says(gateway: RunningGateway) -> None:
    assert run(SQLExecuteQueryOperator, sql="SELECT currentDatabase()", database="shard_2") == [("shard_2",)]


def test_a_sensor_succeeds_once_its_query_does(filled: str, gateway: RunningGateway) -> None:
    sensor = {"poke_interval": 0.1, "timeout": 20}
    run(SqlSensor, sql=f"SELECT count() FROM {filled}", **sensor)
    timer = threading.Timer(0.5, gateway.sql, [f"INSERT INTO {filled} (n, s) VALUES (99, 'late')"])
    timer.start()
    run(SqlSensor, sql=f"SELECT count() FROM {filled} WHERE s = %(s)s", parameters={"s": "late"}, **sensor)
    timer.join()
    run(SqlSensor, sql=f"SELECT n FROM {filled} WHERE n = 9", success=lambda n: n == 9, **sensor)
    with pytest.raises(AirflowSensorTimeout):
        run(SqlSensor, sql=f"SELECT n FROM {filled} WHERE n = 1000", poke_interval=0.1, timeout=0.2)


COLUMNS: dict[str, Any] = {
    "n": {
        "min": {"equal_to": 0},
        "max": {"less_than": 10},
        "distinct_check": {"geq_to": 10},
        "unique_check": {"equal_to": 0},
        "null_check": {"equal_to": 0},
    },
    "null_s": {"null_check": {"equal_to": 4}},
}


def test_columns_are_checked(filled: str) -> None:
    run(SQLColumnCheckOperator, table=filled, column_mapping=COLUMNS)
    run(SQLColumnCheckOperator, table=filled, column_mapping={"n": {"min": {"equal_to": 5}}}, partition_clause="n >= 5")
    with pytest.raises(AirflowException, match="null_check"):
        run(SQLColumnCheckOperator, table=filled, column_mapping={"null_s": {"null_check": {"equal_to": 0}}})


def test_a_table_is_checked(filled: str) -> None:
    checks: dict[str, Any] = {
        "rows": {"check_statement": "count() = 10"},
        "halves": {"check_statement": "countIf(s = 'odd') * 2 = count()"},
        "first_days": {"check_statement": "max(day) <= '2013-01-05'", "partition_clause": "n < 5"},
    }
    run(SQLTableCheckOperator, table=filled, checks=checks)
    with pytest.raises(AirflowException, match="more"):
        run(SQLTableCheckOperator, table=filled, checks={**checks, "more": {"check_statement": "count() > 10"}})


def test_values_thresholds_intervals_and_plain_checks(filled: str) -> None:
    run(SQLCheckOperator, sql=f"SELECT count() = 10, max(n) > 5 FROM {filled}")
    with pytest.raises(AirflowException):
        run(SQLCheckOperator, sql=f"SELECT count() = 10, max(n) > 50 FROM {filled}")
    run(SQLValueCheckOperator, sql=f"SELECT sum(n) FROM {filled}", pass_value=44, tolerance=0.1)
    with pytest.raises(AirflowException):
        run(SQLValueCheckOperator, sql=f"SELECT sum(n) FROM {filled}", pass_value=40, tolerance=0.1)
    threshold = {"min_threshold": 10, "max_threshold": f"SELECT count() + 1 FROM {filled}"}
    run(SQLThresholdCheckOperator, sql=f"SELECT count() FROM {filled}", **threshold)
    with pytest.raises(AirflowException):
        run(SQLThresholdCheckOperator, sql=f"SELECT count() + 2 FROM {filled}", **threshold)


def test_a_day_is_compared_with_an_earlier_one(filled: str) -> None:
    """Of ten days the n-th has n: ratios to two days before fall."""
    options = {"table": filled, "date_filter_column": "day", "days_back": -2, "ratio_formula": "relative_diff"}

    def compare(day: str) -> None:
        operator = make(SQLIntervalCheckOperator, conn_id=CONNECTION, metrics_thresholds={"sum(n)": 0.6}, **options)
        operator.render_template_fields({"ds": day, "macros": macros})
        operator.execute(context())

    compare("2013-01-10")
    with pytest.raises(AirflowException, match=r"sum\(n\)"):
        compare("2013-01-04")


def test_a_failing_query_is_an_error_without_the_password(filled: str) -> None:
    with pytest.raises(Exception, match="nowhere") as failure:
        run(SQLExecuteQueryOperator, sql="SELECT * FROM nowhere")
    assert PASSWORD not in str(failure.value)
