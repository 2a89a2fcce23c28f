"""tests/faults finds a log that does not say what was at fault."""

from __future__ import annotations

import pytest

from support.fault_blame import says
from support.fault_schedule import KINDS, Act, Schedule

HEAD = """Publishing with IcebergToClickHouseOperator from s3://lake/warehouse, driver d, trigger t, PostgreSQL
SparkApplication flights-curate is RUNNING on Kubernetes
"""


def struck(act: Act, victim: str) -> Schedule:
    return Schedule(1, "flights", "publish", 0.5, act, victim, 5.0)


@pytest.mark.parametrize(("act", "victim"), KINDS)
def test_what_the_log_says_before_its_error_is_no_reason(act: Act, victim: str) -> None:
    assert not says(struck(act, victim), f"{HEAD}Task failed with exception\nKeyError: 'trilake'\n")


@pytest.mark.parametrize(
    ("act", "victim", "error"),
    [
        ("cut", "clickhouse", "UnreachableError: shard 1 (127.0.0.1:8123, database shard_1) does not answer (x)."),
        ("fill", "clickhouse", "ClickHouseError: shard 2 (h:1, database shard_2): code: 243: disk default is full"),
        ("stall", "s3", "UnreachableError: S3 (http://127.0.0.1:7070) does not answer (ReadTimeoutError)."),
        ("cut", "lake", "UnreachableError: PostgreSQL database lake (127.0.0.1:5432): server closed the connection."),
        ("kill", "driver", "SparkApplicationError: flights-curate-1 failed.\nReason: driver container failed"),
    ],
)
def test_the_error_itself_is(act: Act, victim: str, error: str) -> None:
    assert says(struck(act, victim), f"{HEAD}Task failed with exception\n{error}\n")


def test_of_a_try_that_was_ended_from_outside_airflow_says_just_that() -> None:
    assert says(struck("kill", "task"), f"{HEAD}Process exited abnormally\n")
    assert not says(struck("kill", "task"), HEAD)


def test_where_the_scheduler_died_with_the_database_it_is_its_log_that_says_so() -> None:
    silent = "Worker startup parse complete\n"
    one, its = struck("kill", "postgres"), "sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) refused"
    assert says(one, silent, its)
    assert not says(one, silent, "Exiting")
    assert not says(one, silent)
    assert not says(one, f"{HEAD}Task failed with exception\nKeyError: 'trilake'\n", its), "the task had its say"
    assert not says(struck("kill", "clickhouse"), silent, its)
