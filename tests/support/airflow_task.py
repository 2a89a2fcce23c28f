"""An Airflow task instance over its tries, without a scheduler; and an object store with job code for it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from trilake.lake import DataSet
from trilake.operators.spark import STATE_KEY, SparkApplicationOperator
from trilake.triggers.spark import SparkApplicationTrigger

FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="tailnum")


@dataclass(frozen=True)
class ObjectStore:
    url: str
    client: Any

    @property
    def connection(self) -> str:
        """As AIRFLOW_CONN_AWS_DEFAULT has it."""
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": "airflow", "password": "shut sesame", "extra": extra})


@contextmanager
def object_store(*buckets: str) -> Iterator[ObjectStore]:
    command = [sys.executable, "-m", "moto.server", "-p", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        url = next(found[0] for line in process.stdout if (found := re.findall(r"http://127[.\d]+:\d+", line)))
        keys = {"aws_access_key_id": "airflow", "aws_secret_access_key": "shut sesame", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **keys)
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        yield ObjectStore(url, client)
    finally:
        process.kill()
        process.wait()


class Store(dict[str, Any]):
    """Stands in for Airflow's task_state_store, which outlives tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


@dataclass
class Task:
    """Each `operator` is what another worker would make of the DAG."""

    run_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    store: Store = field(default_factory=Store)

    def operator(self, *arguments: str, **options: Any) -> SparkApplicationOperator:
        usual = {"task_id": "curate", "job": "curate", "data_set": FLIGHTS, "start": "2013-01", "end": "2013-03"}
        with DAG("flights", schedule=None):
            return SparkApplicationOperator(
                **{**usual, "arguments": arguments, "poll_interval": 0.1, **self.options, **options}
            )

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(dag_id="flights", task_id="curate", map_index=-1, start_date=datetime.now(UTC))
        return {"ti": ti, "run_id": self.run_id, "task_state_store": self.store, "params": {}}

    def submit(self, *arguments: str, **options: Any) -> tuple[SparkApplicationOperator, SparkApplicationTrigger]:
        """A try up to its deferral."""
        operator = self.operator(*arguments, **options)
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(self.context)
        path, kwargs = deferred.value.trigger.serialize()
        assert path == "trilake.triggers.spark.SparkApplicationTrigger"
        assert deferred.value.method_name == "execute_complete"
        return operator, SparkApplicationTrigger(**json.loads(json.dumps(kwargs)))

    def complete(self, trigger: SparkApplicationTrigger, **options: Any) -> Any:
        """The rest of a try, in another worker."""
        event = json.loads(json.dumps(asyncio.run(trigger.wait())))
        return self.operator(**options).execute_complete(self.context, event)

    @property
    def name(self) -> str:
        """The application that was submitted last."""
        return str(self.store[STATE_KEY]["name"])


class Lines(list[str]):
    """What the trigger writes into the task's log, the driver's lines among it."""

    def info(self, message: str, *arguments: object) -> None:
        self.append(message % arguments)

    warning = info
