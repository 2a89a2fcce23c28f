"""A home is lost in the middle of a DAG run: the restored platform continues with the run, and every count is right."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from support.running_platform import Platform, running_platform
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.endpoints import Endpoints
from trilake.errors import UnreachableError
from trilake.lake import DataSet
from trilake.lake.catalog import load_table, open_catalog
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi
from trilake.platform.embedded.airflow import administrator
from trilake.postgres.connection import connect

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2400)]
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
RUN_S = 900
ROWS = 24_951  # of 2013-02


@pytest.fixture
def own_platform() -> Iterator[Platform]:
    """A platform that the test may lose."""
    with running_platform(None) as platform:
        yield platform


def state_of(api: AirflowApi, dag_id: str, run: str) -> str:
    with suppress(UnreachableError):  # too busy to answer in time
        return str(api.run(dag_id, run)["state"])
    return ""


def await_success(api: AirflowApi, dag_id: str, run: str) -> None:
    deadline = time.monotonic() + RUN_S
    while (state := state_of(api, dag_id, run)) not in FINAL_STATES:
        assert time.monotonic() < deadline, f"{run} has not ended"
        time.sleep(0.5)
    failed = [task for task in api.tasks(dag_id, run) if task.state == "failed"]
    assert state == "success", [api.last_lines(dag_id, run, task, 30) for task in failed]


def test_a_run_that_was_going_on_when_the_backup_was_made_is_finished_after_the_home_was_lost(
    own_platform: Platform, tmp_path: Path
) -> None:
    home, folder = own_platform.home, tmp_path / "backups"
    with AirflowApi(*administrator(home)) as api:
        api.wait_for_dags("reference_snapshot", "flights")
        api.unpause("reference_snapshot")
        await_success(api, "reference_snapshot", api.trigger("reference_snapshot"))
        api.unpause("flights")
        run = api.trigger("flights", {"start": "2013-02"})
        while not any(task.state in ("running", "deferred") for task in api.tasks("flights", run)):
            time.sleep(0.2)
        time.sleep(random.uniform(0, 30))
        made = own_platform.trilake("backup", str(folder))
        assert made.returncode == 0, made.stderr
    own_platform.down()
    shutil.rmtree(home.path)
    done = own_platform.trilake("restore", str(folder))
    assert done.returncode == 0, done.stderr
    own_platform.up()
    endpoints = Endpoints.from_environment(home.environment())
    with AirflowApi(*administrator(home)) as api:
        await_success(api, "flights", run)
    with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
        assert load_table(catalog, FLIGHTS.curated).scan().to_arrow().num_rows == ROWS
    with Cluster(endpoints.clickhouse) as cluster:
        assert list(cluster.any_host(Statement("SELECT count() FROM analytics.flights"))) == [(ROWS,)]
        assert [count for (count,) in cluster.any_host(Statement("SELECT count() FROM analytics.airlines"))] == [16]
    with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT sum(flights) FROM marts.carrier_month")
        assert cursor.fetchall() == [(ROWS,)]
