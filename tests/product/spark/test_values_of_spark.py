"""Values of every type from ClickHouse to a job, and from a job to PostgreSQL: equal. On the real engines."""

from __future__ import annotations

import os
import secrets

import pytest

from support import spark_session
from support.running_platform import Platform
from trilake.endpoints import Endpoints
from trilake.postgres.connection import connect

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(spark_session.TIMEOUT_S)]
SEEDS = int(os.environ.get("TRILAKE_SEEDS", "3"))
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, SEEDS + 1))]
)


@seeds
def test_values_of_clickhouse_arrive_in_a_job_as_they_are(platform: Platform, seed: int) -> None:
    outcome, _ = spark_session.run(platform, "support.spark_values_work:read_clickhouse", str(seed))
    assert outcome["wrong"] == []
    assert outcome["columns"] > 50


@seeds
def test_values_of_a_job_arrive_in_postgresql_as_they_are(platform: Platform, endpoints: Endpoints, seed: int) -> None:
    schema = f"s_{secrets.token_hex(4)}"
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {schema}")
    try:
        work = "support.spark_values_work:write_postgres_values"
        outcome, _ = spark_session.run(platform, work, str(seed), f"{schema}.t")
    finally:
        with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP SCHEMA {schema} CASCADE")
    assert outcome["wrong"] == []
