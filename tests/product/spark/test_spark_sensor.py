"""SparkApplicationSensor and its trigger against a real API server; states that it never shows come by its status."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from support.kubernetes_api import KubernetesServer, await_true, kubernetes_server, manifest
from trilake.errors import ConfigurationError
from trilake.hooks.spark import SparkApplicationHook
from trilake.hooks.task_instance import INSTANCE_LABEL
from trilake.sensors.spark import (
    SparkApplicationFailedError,
    SparkApplicationNotCompletedError,
    SparkApplicationSensor,
)
from trilake.spark.application import ApplicationState
from trilake.triggers.spark import SparkApplicationsTrigger

WAITED_FOR = [
    s
    for s in ApplicationState
    if s not in (ApplicationState.COMPLETED, ApplicationState.FAILED, ApplicationState.SUBMISSION_FAILED)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), max_running=4) as server:
        yield server


@pytest.fixture(autouse=True)
def connection(server: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", server.connection)


@pytest.fixture
def name() -> str:
    return f"job-{secrets.token_hex(4)}"


def sensor(**options: Any) -> SparkApplicationSensor:
    with DAG("waits", schedule=None):
        return SparkApplicationSensor(task_id="wait", **{"poke_interval": 0.1, "timeout": 120, **options})


def wait(**options: Any) -> SparkApplicationSensor:
    """From deferral to the end, each part as in a process of its own."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(**options).execute({})
    path, kwargs = deferred.value.trigger.serialize()
    assert path == "trilake.triggers.spark.SparkApplicationsTrigger"
    trigger = SparkApplicationsTrigger(**json.loads(json.dumps(kwargs)))
    event = json.loads(json.dumps(asyncio.run(trigger.wait())))
    last = sensor(**options)
    last.execute_complete({}, event)
    return last


def labelled(server: KubernetesServer, name: str, labels: dict[str, str], *arguments: str) -> None:
    document = manifest(name, *arguments)
    document["metadata"]["labels"] = labels
    assert server.request("POST", server.applications(), json=document).status_code == 201


@pytest.mark.parametrize("deferrable", [True, False])
def test_it_waits_until_the_application_is_completed(server: KubernetesServer, name: str, deferrable: bool) -> None:
    server.create(name, "sleep", "1")
    if deferrable:
        wait(application=name)
    else:
        sensor(application=name, deferrable=False).execute({})
    assert server.state(name) == "COMPLETED"


def test_a_failed_application_fails_it_at_once_and_says_why(server: KubernetesServer, name: str) -> None:
    server.create(name, "print", "no such column", "exit", "3")
    for options in ({}, {"deferrable": False}):
        with pytest.raises(
            SparkApplicationFailedError, match=rf"{name} is FAILED(?s:.*)exit code 3(?s:.*)no such column"
        ) as error:
            wait(application=name) if not options else sensor(application=name, **options).execute({})
        assert isinstance(error.value, AirflowFailException), "a failed application does not change by another try"
    for options in ({}, {"deferrable": False}):
        with pytest.raises(AirflowSkipException, match="is FAILED"):
            wait(application=name, soft_fail=True) if not options else sensor(
                application=name, soft_fail=True, **options
            ).execute({})


def test_a_submission_that_failed_fails_it(server: KubernetesServer, name: str) -> None:
    server.create(name, driver={"cores": 1, "memory": "lots"})
    with pytest.raises(SparkApplicationFailedError, match=rf"{name} is (SUBMISSION_)?FAILED(?s:.*)'lots' is not an"):
        wait(application=name)


def test_when_the_time_is_over_it_says_in_which_state_it_left_it(server: KubernetesServer, name: str) -> None:
    with pytest.raises(SparkApplicationNotCompletedError, match="within 1 s: there was none"):
        wait(application=name, timeout=1)
    server.create(name, "sleep", "600")
    server.await_state(name, "RUNNING")
    for deferrable in (True, False):
        with pytest.raises(SparkApplicationNotCompletedError, match=rf"within 1 s: {name} is RUNNING"):
            wait(application=name, timeout=1) if deferrable else sensor(
                application=name, timeout=1, deferrable=False
            ).execute({})
    with pytest.raises(AirflowSkipException, match="not COMPLETED within"):
        wait(application=name, timeout=1, soft_fail=True)
    server.request("DELETE", server.applications(name))


def test_one_that_is_deleted_before_its_end_is_an_error(server: KubernetesServer, name: str) -> None:
    server.create(name, "sleep", "600")
    server.await_state(name, "RUNNING")
    waiting = sensor(application=name, deferrable=False)
    assert not waiting.poke({})
    server.request("DELETE", server.applications(name))
    await_true(lambda: server.request("GET", server.applications(name)).status_code == 404)
    with pytest.raises(SparkApplicationFailedError, match=rf"{name} is gone: it was RUNNING"):
        waiting.poke({})


def test_by_labels_it_waits_for_all_and_for_the_last_try_of_a_task(server: KubernetesServer, name: str) -> None:
    labels = {"trilake/run": name}
    labelled(server, f"{name}-1", {**labels, INSTANCE_LABEL: "a"}, "exit", "1")
    server.await_state(f"{name}-1", "FAILED")
    with pytest.raises(SparkApplicationFailedError, match=f"{name}-1 is FAILED"):
        wait(labels=labels)
    asyncio.run(asyncio.sleep(1.1))  # creation times are in seconds
    labelled(server, f"{name}-2", {**labels, INSTANCE_LABEL: "a"}, "sleep", "1")
    labelled(server, f"{name}-3", {**labels, INSTANCE_LABEL: "b"})
    done = wait(labels=labels)
    assert done._trigger.seen == {f"{name}-2": "COMPLETED", f"{name}-3": "COMPLETED"}
    with pytest.raises(SparkApplicationNotCompletedError, match="there was none"):
        wait(labels={"trilake/run": "another run"}, timeout=1)


@pytest.mark.parametrize("state", [*WAITED_FOR, "BROUGHT_BY_A_LATER_OPERATOR"])
def test_in_every_other_state_it_waits(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    assert len(ApplicationState) == 14

    async def get(self: Any, name: str) -> Any:
        return {"metadata": {"name": name}, "status": {"applicationState": {"state": state}}}

    monkeypatch.setattr(SparkApplicationHook, "get", get)
    assert not sensor(application="x").poke({})


def test_it_has_to_know_what_it_waits_for() -> None:
    for options in ({}, {"application": "a", "labels": {"b": "c"}}):
        with pytest.raises(ConfigurationError, match="needs either application or labels"):
            sensor(**options)
