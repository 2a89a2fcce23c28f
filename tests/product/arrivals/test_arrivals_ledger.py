"""What is due of `s3://raw/`, and which run has claimed it, on the platform's store and its ledger."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException

from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake import s3
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.arrivals import Arrivals, again, overdue
from trilake.lake.data_set import RAW_BUCKET
from trilake.lake.objects import ObjectError, plan_objects, read_objects
from trilake.operators.arrivals import TakeArrivalsOperator
from trilake.postgres.connection import connect
from trilake.s3 import S3Error
from trilake.spark.inputs import pin
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
    busy = Arrivals(endpoints.lake, arrivals.client, arrivals.data_set, settle_seconds=600, max_wait_seconds=4)

    def is_due_when_it_has_waited(run: str) -> None:
        since, number = time.monotonic(), 0
        while busy.due() == {}:
            assert time.monotonic() - since < 250, "it is never due"
            drop("2013-01", f"{run} {(number := number + 1)}.csv")
            time.sleep(0.5)
        assert time.monotonic() - since > 2, "it has hardly waited"
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


class JobRun:
    """A job as the ledger sees it: it looks and pins at its beginning, and may commit."""

    def __init__(self, arrivals: Arrivals, run: str) -> None:
        self.arrivals, self.run, self.seen = arrivals, run, arrivals.look()
        self.pinned = {p: list(found.objects) for p, found in arrivals._list()[0].items()}

    def commit(self) -> None:
        self.arrivals.committed(self.pinned, self.seen, self.run)


def awaited(arrivals: Arrivals) -> list[tuple[str, str]]:
    found = overdue(arrivals.lake, timedelta())
    return [(one.partition, one.run) for one in found if one.data_set == arrivals.data_set.name]


def test_what_a_job_committed_is_nobodys_any_more_and_what_came_after_its_look_is_due(
    arrivals: Arrivals, drop: Any
) -> None:
    """Also what came between the run's beginning and the job's look: it needs no run of its own."""
    drop("2013-01")
    taken(arrivals, "run")
    drop("2013-01", "b.csv")
    job = JobRun(arrivals, "run")
    assert list(arrivals.due()) == ["2013-01"], "a job that has only read has taken nothing"
    assert awaited(arrivals) == [("2013-01", "run")]
    job.commit()
    assert (arrivals.due(), awaited(arrivals)) == ({}, [])
    assert taken(arrivals, "run") == ["2013-01"], "a run that is cleared finds its own"
    drop("2013-01", "c.csv")
    assert list(arrivals.due()) == ["2013-01"]


def test_what_came_while_a_job_worked_is_due_when_it_has_committed(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    job = JobRun(arrivals, "by hand")
    drop("2013-01", "b.csv")
    job.commit()
    assert taken(arrivals, "another") == ["2013-01"]


def test_a_job_that_died_before_it_told_of_its_commit_is_awaited_until_it_did_so_again(
    arrivals: Arrivals, drop: Any
) -> None:
    drop("2013-01")
    taken(arrivals, "run")
    JobRun(arrivals, "run")
    assert awaited(arrivals) == [("2013-01", "run")]
    JobRun(arrivals, "run").commit()
    assert awaited(arrivals) == []


@pytest.mark.parametrize("more", [False, True])
def test_what_another_run_took_while_a_job_worked_stays_that_ones(arrivals: Arrivals, drop: Any, more: bool) -> None:
    drop("2013-01")
    job = JobRun(arrivals, "by hand")
    if more:
        drop("2013-01", "b.csv")
    assert taken(arrivals, "another") == ["2013-01"]
    job.commit()
    assert awaited(arrivals) == [("2013-01", "another")]
    assert taken(arrivals, "another") == ["2013-01"]
    JobRun(arrivals, "another").commit()
    assert (arrivals.due(), awaited(arrivals)) == ({}, [])


def test_of_two_jobs_that_meet_the_later_word_is_never_for_files_that_nobody_committed(
    arrivals: Arrivals, drop: Any
) -> None:
    """The first has committed and is slow to say so; the second one, which saw less then, has committed on top."""
    drop("2013-01")
    drop("2013-01", "b.csv")
    first = JobRun(arrivals, "first")
    key = arrivals.data_set.raw_key("2013-01", "b.csv")
    arrivals.client.delete_object(Bucket=RAW_BUCKET, Key=key)
    JobRun(arrivals, "second").commit()
    drop("2013-01", "b.csv")
    first.commit()
    assert taken(arrivals, "third") == ["2013-01"], "what is shown has no b.csv"


def test_an_ingest_into_what_a_run_has_in_hand_takes_it_from_nobody(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    taken(arrivals, "run")
    with arrivals.putting("2013-01", arrivals.data_set.raw_key("2013-01", "own.csv"), "ingest"):
        drop("2013-01", "own.csv")
    assert arrivals.due() == {}
    assert awaited(arrivals) == [("2013-01", "run")]
    assert taken(arrivals, "run") == ["2013-01"]


def test_a_dag_that_commits_nothing_says_that_nobody_waits(arrivals: Arrivals, drop: Any) -> None:
    drop("2013-01")
    drop("2013-03")
    assert [taken(arrivals, "one"), taken(arrivals, "two")] == [["2013-01"], ["2013-03"]]
    arrivals.done("one")
    assert (arrivals.due(), awaited(arrivals)) == ({}, [("2013-03", "two")])


def test_what_a_run_left_that_was_deleted_is_told_and_made_due_again(
    platform: Any, arrivals: Arrivals, drop: Any
) -> None:
    drop("2013-01")
    taken(arrivals, "orders/deleted")
    name = arrivals.data_set.name

    def told(*options: str) -> list[dict[str, Any]]:
        found = json.loads(platform.trilake("arrivals", "--json", *options).stdout)
        return [one for one in found if one["data_set"] == name]

    assert told() == [], "a run may take a day"
    with connect(arrivals.lake) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE arrivals SET taken_at = now() - interval '25 hours' WHERE data_set = %s", (name,))
    (one,) = told()
    assert (one["partition"], one["run"]) == ("2013-01", "orders/deleted")
    assert arrivals.due() == {}
    platform.trilake("arrivals", "--again", f"{name}/2013-01")
    assert told("--hours", "0") == []
    assert taken(arrivals, "next") == ["2013-01"]
    with pytest.raises(ConfigurationError, match="No run has claimed"):
        again(arrivals.lake, name, "2013-02")


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
    with pytest.raises(AirflowSkipException, match=r"are due\. Other runs may have them"):
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
            return await asyncio.wait_for(events.get(), 250)

        drop("2013-01")
        drop("2013-03")
        watching = asyncio.create_task(watch())
        assert await told() == ["2013-01", "2013-03"]
        await asyncio.sleep(1)
        assert events.empty(), "it was told already"
        assert taken(arrivals, "one") == ["2013-01"]
        assert await told() == ["2013-03"]
        with monkeypatch.context() as away:
            nowhere = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
            away.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "login": "a", "extra": nowhere}))
            await asyncio.sleep(1)
            drop("2013-05")
            await asyncio.sleep(1)
            assert events.empty()
        assert await told() == ["2013-03", "2013-05"]
        watching.cancel()

    asyncio.run(see())


def test_an_object_whose_attributes_found_no_room_is_due_and_its_run_refuses_it_by_name(
    platform: Platform, arrivals: Arrivals, drop: Any
) -> None:
    drop("2013-01")
    key = arrivals.data_set.raw_key("2013-01", "a.csv")
    file = platform.home.data("s3") / RAW_BUCKET / key
    for name in os.listxattr(file):
        os.removexattr(file, name)
    assert list(arrivals.due()) == ["2013-01"]
    with pytest.raises(S3Error, match=f"s3://raw/{key} has no ETag") as refused:
        pin(arrivals.client, arrivals.data_set, ["2013-01"])
    assert "write it again" in refused.value.hint
    named = read_objects(arrivals.data_set, {"2013-01": {key: 1}})
    with pytest.raises(ObjectError, match=f"s3://raw/{key} has no ETag"):
        plan_objects(arrivals.client, arrivals.data_set, RAW_BUCKET, named, version=1)
    assert taken(arrivals, "one") == ["2013-01"]
    drop("2013-01")
    assert [item.key for item in pin(arrivals.client, arrivals.data_set, ["2013-01"])] == [key]
    assert list(arrivals.due()) == ["2013-01"], "it is another one now"
