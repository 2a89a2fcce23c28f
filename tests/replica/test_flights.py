"""Flights through the three hosts, and what they hold afterwards. In the order of this file."""

from __future__ import annotations

from typing import Any

import pytest
from whole_replica import FLIGHTS, WINDOW, Replica, Source, source_of

pytestmark = pytest.mark.timeout(5400)


@pytest.fixture(scope="module")
def source(flights: dict[str, Any]) -> Source:
    return source_of(flights["lake"])


def test_every_row_of_the_source_is_in_the_lake_on_one_shard_and_in_the_mart(
    flights: dict[str, Any], source: Source
) -> None:
    assert {*WINDOW.values()} <= source.months.keys()
    assert flights["lake"] == source.months
    assert flights["quarantined"] == 0
    shards = [{month: rows for month, rows, _ in held} for held in flights["shards"].values()]
    assert all(shards)
    assert {month: sum(shard.get(month, 0) for shard in shards) for month in source.months} == source.months
    assert flights["strays"] == {"1": 0, "2": 0}
    assert flights["mart"][1:] == [sum(source.months.values()), source.cancelled]


def test_each_clickhouse_host_tells_its_readers_all_rows(flights: dict[str, Any], source: Source) -> None:
    rows = [sum(source.months.values()), source.cancelled, source.carriers]
    assert flights["over_all"] == {"1": [rows], "2": [rows]}
    assert flights["dimensions"] == {"1": [[16, 1458, 3322]], "2": [[16, 1458, 3322]]}


def test_the_report_is_there_and_nothing_is_left_over(flights: dict[str, Any], replica: Replica) -> None:
    assert flights["reports"]["reports/flights/2013.html"] > 10_000
    assert (flights["staging"], flights["switching"]) == ([], 0)
    assert replica.left_in_kubernetes() == []


@pytest.mark.rotates(8)
def test_a_month_run_again_changes_nothing(flights: dict[str, Any], replica: Replica) -> None:
    replica.await_end(FLIGHTS, replica.start(FLIGHTS, {"start": "2013-02", "end": "2013-02"}))
    again = replica.held()
    assert {k: v for k, v in again.items() if k != "reports"} == {k: v for k, v in flights.items() if k != "reports"}


def test_no_secret_is_in_a_log_a_manifest_or_a_process_list(flights: dict[str, Any], replica: Replica) -> None:
    secrets = [v for k, v in replica.env.items() if k.endswith(("_SECRET", "_PASSWORD", "_KEY", "_TOKEN"))]
    assert len(secrets) > 10
    places = {
        "logs": replica.compose("logs", "--no-color"),
        "processes": "".join(replica.compose("top", service) for service in replica.services()),
        "pods": replica.kubectl("get", "pods,sparkapplications,configmaps", "--all-namespaces", "--output", "json"),
    }
    for place, text in places.items():
        assert len(text) > 1000, place
        assert not [k for k, v in replica.env.items() if v in secrets and v in text], place


@pytest.mark.rotates(8)
def test_everything_is_there_after_down_and_up(flights: dict[str, Any], replica: Replica) -> None:
    before = replica.held()
    replica.compose("down", seconds=300)
    replica.compose("up", "--detach", "--no-build", seconds=900)
    replica.await_healthy()
    assert replica.held() == before
