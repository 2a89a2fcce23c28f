"""Waiting for partitions that others publish: on a real ledger, in a worker and in a trigger."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred

from support.running_platform import Platform
from support.transfer_task import connect_airflow, context, make
from trilake import retry
from trilake.clickhouse.publication.ledger import Claim, Ledger
from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.catalog import open_catalog
from trilake.postgres.connection import connect
from trilake.sensors.clickhouse import ClickHousePartitionSensor, NotPublishedError
from trilake.triggers.publication import PartitionsPublishedTrigger

JANUARY, FEBRUARY = "2013-01", "2013-02"


class Published:
    """The ledger of one test's data set."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.ledger = Ledger(endpoints.lake)
        self.endpoints = endpoints
        self.data_set = DataSet(f"s_{secrets.token_hex(4)}", grain="month", date="d", shard_by="k")

    def publish(self, *partitions: str, sequence: int = 1, done: bool = True) -> None:
        attempt = secrets.token_hex(6)
        with self.ledger.attempt(attempt, self.data_set.table, "r") as held:
            won, _ = self.ledger.claim(held, [Claim(name, 1000 + sequence, sequence, {1: 1}) for name in partitions])
            for publication in won:
                if done:
                    self.ledger.done(publication)
        self.ledger.forget(attempt)

    def sensor(self, **options: Any) -> ClickHousePartitionSensor:
        usual = {"data_set": self.data_set, "start": JANUARY, "end": FEBRUARY, "poke_interval": 0.1, "timeout": 120}
        made: ClickHousePartitionSensor = make(ClickHousePartitionSensor, **{**usual, **options})
        return made

    def defer(self, **options: Any) -> PartitionsPublishedTrigger:
        with pytest.raises(TaskDeferred) as deferred:
            self.sensor(**options).execute(context())
        path, kwargs = deferred.value.trigger.serialize()
        assert path == "trilake.triggers.publication.PartitionsPublishedTrigger"
        assert deferred.value.method_name == "execute_complete"
        return PartitionsPublishedTrigger(**json.loads(json.dumps(kwargs)))

    def resume(self, trigger: PartitionsPublishedTrigger, **options: Any) -> None:
        """The rest of the task, in another worker."""
        event = json.loads(json.dumps(asyncio.run(trigger.wait())))
        self.sensor(**options).resume_execution("execute_complete", {"event": event}, context())


@pytest.fixture
def published(platform: Platform, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    connect_airflow(monkeypatch, platform.env)
    made = Published(endpoints)
    yield made
    with connect(endpoints.lake) as connection, connection.cursor() as cursor:
        for table in ("publications", "publication_attempts"):
            cursor.execute(f"DELETE FROM {table} WHERE table_name = %s", (made.data_set.table,))


def test_a_window_that_is_there_is_not_waited_for(published: Published) -> None:
    published.publish(JANUARY, FEBRUARY)
    published.sensor().execute(context())
    published.sensor(deferrable=False).execute(context())


def test_it_waits_outside_the_worker_until_the_last_partition_is_there(published: Published) -> None:
    published.publish(JANUARY)
    trigger = published.defer()
    timer = threading.Timer(0.5, published.publish, [FEBRUARY])
    timer.start()
    published.resume(trigger)
    timer.join()


def test_what_is_on_its_way_to_the_shards_does_not_count_though_an_earlier_one_was_there(published: Published) -> None:
    published.publish(JANUARY, FEBRUARY)
    published.publish(FEBRUARY, sequence=2, done=False)
    with pytest.raises(NotPublishedError, match=r"Not published within 0 s: s_\w+: 2013-02 is switching since"):
        published.resume(published.defer(timeout=0), timeout=0)


def test_the_error_names_what_is_missing_and_is_a_sensors_timeout(published: Published) -> None:
    published.publish(JANUARY)
    with pytest.raises(AirflowSensorTimeout, match="2013-02 was never published"):
        published.resume(published.defer(timeout=0.3), timeout=0.3)
    with pytest.raises(NotPublishedError, match="2013-02 was never published"):
        published.sensor(deferrable=False, timeout=0.2).execute(context())
    with pytest.raises(NotPublishedError, match=r"2013-03 was .*; 2013-06 was never published and 6 more"):
        published.sensor(deferrable=False, timeout=0, end="2013-12").execute(context())


def test_with_soft_fail_the_task_is_skipped(published: Published) -> None:
    with pytest.raises(AirflowSkipException):
        published.resume(published.defer(timeout=0.2), soft_fail=True)
    with pytest.raises(AirflowSkipException):
        published.sensor(timeout=0.2, soft_fail=True, deferrable=False).execute(context())


def test_it_is_to_be_as_recent_as_asked(published: Published) -> None:
    published.publish(JANUARY, FEBRUARY)
    now = datetime.now(UTC)
    for recent in (now - timedelta(hours=1), timedelta(hours=1), str(now - timedelta(hours=1)), None):
        published.sensor(not_before=recent).execute(context())
    for later in (now + timedelta(hours=1), (now + timedelta(hours=1)).replace(tzinfo=None), timedelta(0)):
        trigger = published.defer(not_before=later, timeout=0)
        with pytest.raises(NotPublishedError, match=r"2013-01 was published at .*, before"):
            published.resume(trigger, timeout=0)
    with pytest.raises(ConfigurationError, match="'soon' is not a time"):
        published.sensor(not_before="soon").execute(context())


def test_what_is_published_while_the_task_waits_between_two_looks_is_recent_enough(published: Published) -> None:
    asked: dict[str, Any] = {"not_before": timedelta(0), "deferrable": False, "mode": "reschedule"}
    first = context()
    first["ti"].get_first_reschedule_date = lambda _context: None
    with pytest.raises(AirflowRescheduleException):
        published.sensor(**asked).execute(first)
    began = datetime.now(UTC)
    published.publish(JANUARY, FEBRUARY)
    again = context()
    again["ti"].get_first_reschedule_date = lambda _context: began
    published.sensor(**asked).execute(again)


def test_a_snapshot_or_a_later_one_is_waited_for(published: Published) -> None:
    catalog = open_catalog(published.endpoints.lake, published.endpoints.s3)
    try:
        catalog.create_namespace_if_not_exists("curated")
        rows = pa.table({"k": [1]})
        table = catalog.create_table(published.data_set.curated, schema=rows.schema, properties={"format-version": "2"})
        table.append(rows)
        table.append(rows)
        first, second = table.refresh().history()
        published.publish(JANUARY, FEBRUARY, sequence=1)
        published.sensor(snapshot_id=first.snapshot_id).execute(context())
        trigger = published.defer(snapshot_id=str(second.snapshot_id), timeout=0)
        with pytest.raises(NotPublishedError, match="2013-01 shows the earlier snapshot 1001"):
            published.resume(trigger, timeout=0)
        published.publish(JANUARY, FEBRUARY, sequence=3)
        published.sensor(snapshot_id=second.snapshot_id).execute(context())
    finally:
        catalog.purge_table(published.data_set.curated)
        catalog.close()


def test_a_table_without_partitions_is_one(published: Published) -> None:
    whole = DataSet(published.data_set.name)
    published.defer(data_set=whole)
    published.publish("all")
    published.sensor(data_set=whole).execute(context())


def test_a_ledger_that_is_away_for_a_while_is_waited_for_and_said_to_be_away(
    published: Published, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RESTART_S", 1.0)
    name = "AIRFLOW_CONN_POSTGRES_LAKE"
    there = platform.env[name]
    away = json.dumps({**json.loads(there), "port": 1})
    monkeypatch.setenv(name, away)
    with pytest.raises(NotPublishedError, match="could not be read: PostgreSQL database lake"):
        published.resume(published.defer(timeout=0), timeout=0)


def test_the_triggerers_loop_goes_on_while_the_ledger_is_asked(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that does not answer holds up nobody else: it answers here when the loop has gone on."""
    trigger = published.defer(timeout=0)
    missing, gone_on = Ledger.missing, threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        assert gone_on.wait(60), "the loop stands still"
        return missing(*arguments, **options)

    monkeypatch.setattr(Ledger, "missing", slow)

    async def beside() -> tuple[int, dict[str, Any]]:
        waiting = asyncio.create_task(trigger.wait())
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
            if turns > 20:
                gone_on.set()
        return turns, waiting.result()

    turns, event = asyncio.run(beside())
    assert turns > 20
    assert set(event["missing"]) == {JANUARY, FEBRUARY}
