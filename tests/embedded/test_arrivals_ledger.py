"""What is due of `s3://raw/`, and who has it in hand, on the platform's store and its ledger."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException
from transfer_task import connect_airflow, context, make

from trilake import s3
from trilake.arrivals import Arrivals
from trilake.endpoints import Endpoints
from trilake.lake import DataSet
from trilake.lake.data_set import RAW_BUCKET
from trilake.operators.arrivals import TakeArrivalsOperator
from trilake.transfers.source_to_s3 import SourceToS3Operator
from trilake.triggers.arrivals import ArrivalsTrigger


@pytest.fixture
def orders() -> DataSet:
    """A data set that nothing was ever put into."""
    return DataSet(f"orders_{uuid.uuid4().hex[:12]}", grain="month", date="d", shard_by="k")


@pytest.fixture
def arrivals(endpoints: Endpoints, orders: DataSet) -> Arrivals:
    return Arrivals(endpoints.lake, s3.client(endpoints.s3), orders, settle_seconds=0)


@pytest.fixture
def drop(arrivals: Arrivals) -> Callable[..., None]:
    """As a producer does."""

    def put(partition: str, name: str = "a.csv", body: bytes = b"x") -> None:
        key = arrivals.data_set.raw_key(partition, name)
        arrivals.client.put_object(Bucket=RAW_BUCKET, Key=key, Body=body)

    return put


def taken(arrivals: Arrivals, run_id: str) -> list[str]:
    window = arrivals.take(run_id)
    return window.partitions if window else []


def test_months_that_arrive_together_are_one_runs_and_then_no_other_ones(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-12")
    drop("2014-01")
    drop("2013-12", "b.csv")
    assert list(arrivals.due()) == ["2013-12", "2014-01"]
    assert taken(arrivals, "one") == ["2013-12", "2014-01"]
    assert arrivals.due() == {}
    assert taken(arrivals, "another") == []


def test_months_with_a_gap_between_them_are_a_run_each_and_the_gap_is_none(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    drop("2013-03")
    assert taken(arrivals, "one") == ["2013-01"]
    assert taken(arrivals, "two") == ["2013-03"]
    assert taken(arrivals, "three") == []


def test_many_months_that_arrive_together_are_shared_among_runs(arrivals: Arrivals, drop: Any) -> None:
    months = arrivals.data_set.window("2013-01", "2014-02").partitions
    for partition in months:
        drop(partition)
    assert taken(arrivals, "one") == months[:12]
    assert taken(arrivals, "one") == months[:12]
    assert taken(arrivals, "two") == months[12:]


def test_a_folder_with_a_wrong_year_keeps_no_other_month_waiting(arrivals: Arrivals, drop: Any) -> None:
    for partition in ("0013-01", "2013-01", "2013-02"):
        drop(partition)
    assert taken(arrivals, "one") == ["0013-01"]
    assert taken(arrivals, "two") == ["2013-01", "2013-02"]


@pytest.mark.parametrize("change", ["late", "changed", "removed"])
def test_a_month_that_is_not_what_was_taken_is_due_again_and_no_other(
    arrivals: Arrivals, drop: Any, change: str
) -> None:
    drop("2013-01")
    drop("2013-01", "b.csv")
    drop("2013-02")
    assert taken(arrivals, "first") == ["2013-01", "2013-02"]
    if change == "late":
        drop("2013-01", "late.csv")
    elif change == "changed":
        drop("2013-01", "b.csv", b"y")
    else:
        key = arrivals.data_set.raw_key("2013-01", "b.csv")
        arrivals.client.delete_object(Bucket=RAW_BUCKET, Key=key)
    assert taken(arrivals, "second") == ["2013-01"]
    assert arrivals.due() == {}


def test_the_same_file_once_more_is_no_arrival(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    assert taken(arrivals, "first") == ["2013-01"]
    drop("2013-01")
    assert arrivals.due() == {}


def test_a_run_that_died_after_it_took_them_gets_the_same_again(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    drop("2013-02")
    assert taken(arrivals, "dies") == ["2013-01", "2013-02"]
    drop("2013-04")
    assert taken(arrivals, "dies") == ["2013-01", "2013-02"]


def test_of_runs_that_come_at_once_one_gets_each_month(arrivals: Arrivals, drop: Any) -> None:
    for partition in ("2013-01", "2013-03", "2013-05"):
        drop(partition)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: taken(arrivals, f"run {number}"), range(8)))
    assert sorted(filter(None, found)) == [["2013-01"], ["2013-03"], ["2013-05"]]


def test_a_month_is_not_due_before_it_has_been_quiet(endpoints: Endpoints, arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    settling = Arrivals(endpoints.lake, arrivals.client, arrivals.data_set, settle_seconds=600)
    assert settling.due() == {}
    assert settling.take("early") is None
    assert list(arrivals.due()) == ["2013-01"]


def test_a_month_that_is_never_quiet_is_due_when_something_has_waited_for_long_enough(
    endpoints: Endpoints, arrivals: Arrivals, drop: Any
) -> None:
    """The store tells whole seconds: what came within one is not told apart."""
    busy = Arrivals(endpoints.lake, arrivals.client, arrivals.data_set, settle_seconds=600, max_wait_seconds=6)

    def is_due_when_it_has_waited(run: str) -> None:
        since, number = time.monotonic(), 0
        while busy.due() == {}:
            assert time.monotonic() - since < 60, "it is never due"
            drop("2013-01", f"{run} {(number := number + 1)}.csv")
            time.sleep(0.5)
        assert time.monotonic() - since > 4, "it has hardly waited"
        assert taken(busy, run) == ["2013-01"]

    is_due_when_it_has_waited("one")
    time.sleep(1.1)
    assert busy.due() == {}
    is_due_when_it_has_waited("two")


def test_what_lies_below_no_month_is_due_of_none(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-1")
    drop("2013-01-01")
    arrivals.client.put_object(Bucket=RAW_BUCKET, Key=f"{arrivals.data_set.name}/readme", Body=b"x")
    arrivals.client.put_object(Bucket=RAW_BUCKET, Key=f"{arrivals.data_set.name}_2/2013-01/a.csv", Body=b"x")
    assert arrivals.due() == {}


def test_what_a_job_pinned_is_taken_and_what_came_after_it_is_due(arrivals: Arrivals, drop: Any) -> None:
    """Also what came between the run's beginning and the job's look: it needs no run of its own."""
    drop("2013-01")
    taken(arrivals, "run")
    drop("2013-01", "b.csv")
    with arrivals.taking("run") as pinned:
        listed, _ = arrivals._list("2013-01")
        pinned["2013-01"] = list(listed["2013-01"].objects)
    assert arrivals.due() == {}
    drop("2013-01", "c.csv")
    assert list(arrivals.due()) == ["2013-01"]


def test_a_job_that_cannot_pin_its_input_takes_nothing(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")

    def job() -> None:
        with arrivals.taking("run") as pinned:
            pinned["2013-01"] = []
            raise RuntimeError

    with pytest.raises(RuntimeError):
        job()
    assert list(arrivals.due()) == ["2013-01"]


def test_what_airflow_ingests_itself_is_no_arrival(
    platform: Any, monkeypatch: pytest.MonkeyPatch, orders: DataSet, arrivals: Arrivals, drop: Any
) -> None:
    connect_airflow(monkeypatch, platform.env)

    def ingest(body: bytes) -> None:
        options = {"source": lambda _window: iter([("2013-01", body)]), "file_name": "own.csv", "start": "2013-01"}
        make(SourceToS3Operator, data_set=orders, **options).execute(context("ingest"))

    ingest(b"first")
    assert arrivals.due() == {}
    ingest(b"second")
    assert arrivals.due() == {}
    drop("2013-01", "late.csv")
    ingest(b"third")
    assert list(arrivals.due()) == ["2013-01"], "somebody else's file is due all the same"


@pytest.mark.parametrize("before", [False, True])
def test_what_comes_while_airflow_ingests_is_due(arrivals: Arrivals, drop: Any, before: bool) -> None:
    if before:
        drop("2013-01", "a.csv")
        taken(arrivals, "one")
    with arrivals.putting("2013-01", arrivals.data_set.raw_key("2013-01", "own.csv"), "ingest"):
        drop("2013-01", "meanwhile.csv")
        drop("2013-01", "own.csv")
    assert taken(arrivals, "two") == ["2013-01"]
    assert arrivals.due() == {}


def test_what_another_run_took_while_airflow_ingested_is_due_once_more(arrivals: Arrivals, drop: Any) -> None:
    """Nothing says whether that run saw the new file."""
    drop("2013-01", "a.csv")
    taken(arrivals, "one")
    with arrivals.putting("2013-01", arrivals.data_set.raw_key("2013-01", "own.csv"), "ingest"):
        drop("2013-01", "b.csv")
        taken(arrivals, "two")
        drop("2013-01", "own.csv")
    assert taken(arrivals, "three") == ["2013-01"]


def test_an_ingest_that_dies_leaves_its_file_due(arrivals: Arrivals, drop: Any) -> None:
    def ingest() -> None:
        with arrivals.putting("2013-01", arrivals.data_set.raw_key("2013-01", "own.csv"), "ingest"):
            drop("2013-01", "own.csv")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        ingest()
    assert list(arrivals.due()) == ["2013-01"]


def test_the_task_says_its_window_or_skips_the_run(
    platform: Any, monkeypatch: pytest.MonkeyPatch, orders: DataSet, arrivals: Arrivals, drop: Any
) -> None:
    connect_airflow(monkeypatch, platform.env)

    def run(run_id: str, **params: str) -> Any:
        task = make(TakeArrivalsOperator, data_set=orders, settle_seconds=0)
        known = context(run_id, params=params)
        task.render_template_fields(known)
        return task.execute(known)

    drop("2013-01")
    drop("2013-02")
    assert run("one") == {"start": "2013-01", "end": "2013-02"}
    with pytest.raises(AirflowSkipException, match="that no other run has taken"):
        run("two")
    assert run("two", start="2013-02") == {"start": "2013-02", "end": "2013-02"}
    drop("2013-01", "b.csv")
    assert run("by hand", start="2013-01", end="2013-01") == {"start": "2013-01", "end": "2013-01"}
    assert arrivals.due() == {}, "what was asked for by hand is taken too"


def test_runs_of_one_id_of_two_dags_are_two(
    platform: Any, monkeypatch: pytest.MonkeyPatch, orders: DataSet, arrivals: Arrivals, drop: Any
) -> None:
    connect_airflow(monkeypatch, platform.env)

    def run(dag_id: str) -> Any:
        with DAG(dag_id, schedule=None):
            task = TakeArrivalsOperator(task_id="take", data_set=orders, settle_seconds=0)
        known = context("same")
        known["ti"].dag_id = dag_id
        task.render_template_fields(known)
        return task.execute(known)

    drop("2013-01")
    assert run("one") == {"start": "2013-01", "end": "2013-01"}
    drop("2013-03")
    assert run("two") == {"start": "2013-03", "end": "2013-03"}
    assert run("one") == {"start": "2013-01", "end": "2013-01"}


def test_the_watcher_tells_once_what_is_due_and_again_when_that_changes_whoever_is_away(
    platform: Any, monkeypatch: pytest.MonkeyPatch, orders: DataSet, arrivals: Arrivals, drop: Any
) -> None:
    connect_airflow(monkeypatch, platform.env)
    options = {"data_set": orders.to_json(), "settle_seconds": 0, "poll_interval": 0.1}
    path, known = ArrivalsTrigger(**options).serialize()
    assert path == "trilake.triggers.arrivals.ArrivalsTrigger"

    async def see() -> None:
        events: asyncio.Queue[list[str]] = asyncio.Queue()

        async def watch() -> None:
            async for event in ArrivalsTrigger(**json.loads(json.dumps(known))).run():
                events.put_nowait(event.payload["partitions"])

        async def told() -> list[str]:
            return await asyncio.wait_for(events.get(), 60)

        drop("2013-01")
        drop("2013-03")
        watching = asyncio.create_task(watch())
        assert await told() == ["2013-01", "2013-03"]
        await asyncio.sleep(2)
        assert events.empty(), "it was told already"
        assert taken(arrivals, "one") == ["2013-01"]
        assert await told() == ["2013-03"]
        with monkeypatch.context() as away:
            nowhere = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
            away.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "login": "a", "extra": nowhere}))
            await asyncio.sleep(2)
            drop("2013-05")
            await asyncio.sleep(2)
            assert events.empty()
        assert await told() == ["2013-03", "2013-05"]
        watching.cancel()

    asyncio.run(see())
