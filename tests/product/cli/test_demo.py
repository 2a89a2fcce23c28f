"""The demo, as a user calls it, and what the platform holds afterwards. In the order of this file."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.publication_table import tables_of
from support.running_platform import Platform
from support.secrets_left import secrets_left, task_logs
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.lake import DataSet, Window
from trilake.lake.catalog import COUNTS_PROPERTY, load_table, open_catalog, plan, snapshot_summary
from trilake.platform.embedded.status import status
from trilake.postgres.connection import connect

YEAR = Window.parse("month", "2013-01", "2013-12")
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
DEMO_TIMEOUT_S = 600
# The first of these tests waits for all of the demo.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEMO_TIMEOUT_S + 60)]


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


def held(platform: Platform) -> dict[str, Any]:
    """Every count that anyone could look at: lake, both shards, PostgreSQL."""
    endpoints = platform.endpoints
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    try:
        lake = {p.partition: p.rows for p in plan(load_table(catalog, "curated.flights"), FLIGHTS, YEAR).partitions}
        quarantined = load_table(catalog, "quarantine.flights").scan().count()
    finally:
        catalog.close()
    with Cluster(endpoints.clickhouse) as cluster:
        shards = cluster.every_shard(
            Statement(
                "SELECT toYYYYMM(flight_date) AS m, count(), sum(cityHash64(tuple(*))) FROM {shard}.flights_local "
                "GROUP BY m ORDER BY m"
            )
        )
        dimensions = cluster.every_shard(
            Statement(
                "SELECT (SELECT count() FROM {shard}.airlines_local), (SELECT count() FROM {shard}.airports_local), "
                "(SELECT count() FROM {shard}.planes_local)"
            )
        )
        tables = cluster.every_shard(tables_of)
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM marts.carrier_month ORDER BY month, carrier")
        mart = cursor.fetchall()
    return {
        "lake": lake,
        "quarantined": quarantined,
        "shards": shards,
        "dimensions": dimensions,
        "tables": tables,
        "mart": mart,
    }


@contextmanager
def memory_watched(platform: Platform) -> Iterator[list[int]]:
    """The platform's memory, task processes and Spark drivers included, every two seconds: bytes, sum of PSS."""
    samples: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(2):
            samples.append(sum(service.memory for service in status(platform.home)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def test_the_demo_tells_rows_stages_routes_mart_and_report(platform: Platform, demo: str) -> None:
    assert re.search(r"2013\s+336,776\s+336,776\s+0\s+0\s", demo)
    for said in ("rows/s", "most delayed routes", "marts.carrier_month", "s3://artifacts/reports/flights/2013.html"):
        assert said in demo
    assert re.search(r"Airflow: http://127\.0\.0\.1:\d+ +user admin, password \S+", demo)
    page = (platform.home.path / "reports" / "flights-2013.html").read_text()
    assert page.count("<svg") == 5
    assert "Mc Ghee Tyson" in page


def test_counts_are_the_sources(platform: Platform, demo: str, source: list[dict[str, str]]) -> None:
    with Cluster(platform.endpoints.clickhouse) as cluster:
        (row,) = cluster.any_host(
            Statement("SELECT count(), countIf(cancelled), uniqExact(carrier) FROM analytics.flights")
        )
    assert row == (336_776, 8_255, 16)
    assert row == (
        len(source),
        sum(flight["dep_time"] == "NA" for flight in source),
        len({flight["carrier"] for flight in source}),
    )


def test_each_carriers_mean_arrival_delay_is_the_sources(
    platform: Platform, demo: str, source: list[dict[str, str]]
) -> None:
    delays: dict[str, list[int]] = defaultdict(list)
    for flight in source:
        if flight["arr_delay"] != "NA":
            delays[flight["carrier"]].append(int(flight["arr_delay"]))
    with Cluster(platform.endpoints.clickhouse) as cluster:
        rows = cluster.any_host(Statement("SELECT carrier, avg(arr_delay) FROM analytics.flights GROUP BY carrier"))
    assert len(rows) == 16
    for carrier, mean in rows:
        assert math.isclose(mean, sum(delays[carrier]) / len(delays[carrier]), rel_tol=0, abs_tol=1e-9), carrier


def test_the_mart_adds_up_to_the_sources_year(platform: Platform, demo: str, source: list[dict[str, str]]) -> None:
    truth: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    for flight in source:
        row = truth[flight["carrier"]]
        row[0] += 1
        row[1] += flight["dep_time"] == "NA"
        if flight["arr_delay"] != "NA":
            row[2] += 1
            row[3] += int(flight["arr_delay"])
    with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT carrier, sum(flights), sum(cancelled), sum(arrivals), sum(mean_arr_delay * arrivals) "
            "FROM marts.carrier_month GROUP BY carrier"
        )
        mart = {carrier: [float(value) for value in values] for carrier, *values in cursor.fetchall()}
    assert mart.keys() == truth.keys()
    for carrier, values in mart.items():
        assert values == pytest.approx(truth[carrier], abs=1e-6), carrier


def test_every_row_lies_on_the_shard_of_its_bucket(platform: Platform, demo: str) -> None:
    with Cluster(platform.endpoints.clickhouse) as cluster:
        strays = cluster.every_shard(
            lambda client, shard: Statement(
                f"SELECT count() FROM {{shard}}.flights_local WHERE icebergBucket(2, flight) != {shard.number - 1}"
            )(client, shard)
        )
    assert strays == {1: [(0,)], 2: [(0,)]}


def test_the_snapshot_says_which_run_made_it_and_what_became_of_every_row(platform: Platform, demo: str) -> None:
    catalog = open_catalog(platform.endpoints.lake, platform.endpoints.s3)
    try:
        table = load_table(catalog, "curated.flights")
        summary = snapshot_summary(table, table.metadata.current_snapshot_id or 0)
    finally:
        catalog.close()
    counts = json.loads(summary[COUNTS_PROPERTY])
    assert list(counts) == YEAR.partitions
    assert sum(count["rows_in"] for count in counts.values()) == 336_776
    assert summary["trilake.run"].startswith("flights/manual__")


@pytest.mark.nightly
def test_a_second_demo_changes_no_count_anywhere_and_stays_below_4_gib(platform: Platform, demo: str) -> None:
    before = held(platform)
    with memory_watched(platform) as samples:
        again = platform.trilake("demo", timeout=DEMO_TIMEOUT_S)
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert held(platform) == before
    assert not [name for found in before["tables"].values() for _, name in found if "staging" in name]
    assert len(samples) > 5
    assert max(samples) < 4 * 1024**3, f"{max(samples) / 1024**2:.0f} MiB"


def test_what_ran_left_no_secret_in_a_log_or_in_airflows_database(platform: Platform, demo: str) -> None:
    store, logs = str(platform.home.data("s3")), [str(file) for file in task_logs(platform.home)]
    for dag, task in (("flights", "curate"), ("flights", "publish"), ("reference_snapshot", "")):
        assert [
            file for file in logs if file.startswith(store) and f"dag_id={dag}/" in file and f"task_id={task}" in file
        ]
    assert not secrets_left(platform.home)


@pytest.mark.nightly
def test_everything_is_there_after_down_and_up(platform: Platform, demo: str) -> None:
    before = held(platform)
    assert platform.trilake("down").returncode == 0
    assert platform.trilake("up", timeout=300).returncode == 0
    assert held(platform) == before


@pytest.mark.parametrize(
    "service",
    ["clickhouse", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("postgres", "s3", "kubernetes"))],
)
def test_everything_is_there_after_a_kill_of_what_holds_it(platform: Platform, demo: str, service: str) -> None:
    before = held(platform)
    states = json.loads(platform.trilake("status", "--json").stdout)
    services = states["services"] if isinstance(states, dict) else states
    os.kill(next(s["pid"] for s in services if s["service"] == service), signal.SIGKILL)
    up = platform.trilake("up", timeout=300)
    assert up.returncode == 0, up.stderr
    assert held(platform) == before


def test_a_wrong_window_is_refused_in_one_line(platform: Platform, demo: str) -> None:
    from trilake.platform.airflow_api import AirflowApi
    from trilake.platform.embedded.airflow import administrator

    url, user, password = administrator(platform.home)
    with AirflowApi(url, user, password) as api:
        run_id = api.trigger("flights", {"start": "2013-13"})
        while api.run("flights", run_id)["state"] not in ("success", "failed"):
            pass
        task = next(task for task in api.tasks("flights", run_id) if task.state == "failed")
        lines = api.last_lines("flights", run_id, task, 100)
    assert any("'2013-13' is not a month. Write it like 2013-02." in line for line in lines), lines
