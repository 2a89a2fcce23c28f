"""The official provider's own code against the embedded API server: hooks, operator, sensor, unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook, KubernetesHook
from airflow.providers.cncf.kubernetes.operators.custom_object_launcher import CustomObjectLauncher
from airflow.providers.cncf.kubernetes.operators.spark_kubernetes import SparkKubernetesOperator
from airflow.providers.cncf.kubernetes.sensors.spark_kubernetes import SparkKubernetesSensor
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from support.kubernetes_api import NAMESPACE, KubernetesServer, await_true, kubernetes_server, manifest

GROUP: dict[str, Any] = {"group": "sparkoperator.k8s.io", "version": "v1beta2", "plural": "sparkapplications"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), max_running=4) as server:
        yield server


@pytest.fixture(autouse=True)
def connection(server: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", server.connection)


def test_the_hook_makes_reads_and_deletes_applications(server: KubernetesServer) -> None:
    hook = KubernetesHook()
    assert hook.test_connection()[0] is True
    assert hook.get_namespace() == NAMESPACE
    created = hook.create_custom_object(**GROUP, body=manifest("hooked", "print", "hello"))
    assert created["metadata"]["uid"]
    with pytest.raises(ApiException) as refused:
        hook.create_custom_object(**GROUP, body=manifest("hooked"))
    assert (refused.value.status, json.loads(refused.value.body)["reason"]) == (409, "AlreadyExists")
    await_true(lambda: hook.get_custom_object(**GROUP, name="hooked").get("status", {}).get("terminationTime"))
    pod = hook.get_pod("hooked-driver", NAMESPACE)
    await_true(lambda: hook.get_pod("hooked-driver", NAMESPACE).status.phase == "Succeeded")
    assert pod.metadata.labels["spark-role"] == "driver"
    assert b"".join(hook.get_pod_logs("hooked-driver", namespace=NAMESPACE)) == b"hello\n"
    hook.delete_custom_object(**GROUP, name="hooked")
    with pytest.raises(ApiException, match="404"):
        hook.get_custom_object(**GROUP, name="hooked")


def test_the_client_patches_with_each_kind_of_patch(server: KubernetesServer) -> None:
    server.create("clients", "sleep", "60")
    api = CustomObjectsApi(KubernetesHook().api_client)
    where = {**GROUP, "namespace": NAMESPACE, "name": "clients"}
    change = {"metadata": {"annotations": {"a": "1"}}}
    changed = api.patch_namespaced_custom_object(**where, body=change, _content_type="application/merge-patch+json")
    assert changed["metadata"]["annotations"] == {"a": "1"}
    operations = [{"op": "replace", "path": "/metadata/annotations/a", "value": "2"}]
    changed = api.patch_namespaced_custom_object(**where, body=operations, _content_type="application/json-patch+json")
    assert changed["metadata"]["annotations"] == {"a": "2"}
    assert api.get_namespaced_custom_object_status(**where)["status"]["driverInfo"]["podName"] == "clients-driver"
    api.delete_namespaced_custom_object(**where)


def test_the_asynchronous_hook_reads_pods_logs_and_events(server: KubernetesServer) -> None:
    server.create("async", "print", "one", "print", "two")
    server.await_state("async", "COMPLETED")

    async def read() -> None:
        hook = AsyncKubernetesHook(conn_id="kubernetes_default")
        pod = await hook.get_pod("async-driver", NAMESPACE)
        assert pod.status.container_statuses[0].state.terminated.exit_code == 0
        lines = await hook.read_logs("async-driver", NAMESPACE, container_name="spark-kubernetes-driver")
        assert [line.split(" ", 1)[1] for line in lines] == ["one", "two"]
        assert await hook.read_logs("async-driver", NAMESPACE, since_seconds=3600) == lines
        events = await hook.get_pod_events("async-driver", NAMESPACE)
        assert "Started" in [event.reason for event in events.items]
        await hook.delete_pod("async-driver", NAMESPACE)

    asyncio.run(read())
    await_true(lambda: server.request("GET", server.pods("async-driver")).status_code == 404)


def test_the_asynchronous_hook_watches_a_pods_events(server: KubernetesServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server.create("watched", "wait-for", str(gate))
    server.await_state("watched", "RUNNING")

    async def watch() -> list[str]:
        hook, reasons = AsyncKubernetesHook(conn_id="kubernetes_default"), []
        async for event in hook.watch_pod_events("watched-driver", NAMESPACE, timeout_seconds=1):
            reasons.append(event.reason)
            gate.touch()
        return reasons

    assert {"Scheduled", "Started"} <= set(asyncio.run(asyncio.wait_for(watch(), 20)))


class TaskInstance(SimpleNamespace):
    dag_id, task_id, map_index, try_number = "official", "spark", -1, 1
    start_date = datetime(2013, 1, 1, tzinfo=UTC)

    def xcom_push(self, key: str, value: Any) -> None: ...


def official(name: str, *arguments: str, **options: Any) -> tuple[SparkKubernetesOperator, Any]:
    with DAG("official", schedule=None) as dag:
        document = manifest(name, *arguments)
        operator = SparkKubernetesOperator(
            task_id="spark", name=name, namespace=NAMESPACE, template_spec=document, random_name_suffix=False, **options
        )
    ti = TaskInstance()
    return operator, {"ti": ti, "task_instance": ti, "run_id": f"manual__{name}", "dag": dag}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher looks every 10 s whether the driver has started."""
    from airflow.providers.cncf.kubernetes.operators import custom_object_launcher

    sleep = custom_object_launcher.time.sleep
    monkeypatch.setattr(custom_object_launcher.time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))


@pytest.mark.usefixtures("impatient")
def test_the_official_operator_runs_an_application_to_its_end(
    server: KubernetesServer, capfd: pytest.CaptureFixture[str]
) -> None:
    operator, context = official("by-operator", "print", "printed by the driver", "sleep", "1")
    operator.execute(context)
    assert "printed by the driver" in capfd.readouterr().out
    await_true(lambda: server.request("GET", server.applications("by-operator")).status_code == 404)


@pytest.mark.usefixtures("impatient")
def test_the_official_operator_sees_a_failure(server: KubernetesServer) -> None:
    operator, context = official("failing", "sleep", "1", "exit", "3")
    with pytest.raises(AirflowException):
        operator.execute(context)


@pytest.mark.usefixtures("impatient")
def test_the_official_operator_finds_its_application_again(server: KubernetesServer) -> None:
    operator, context = official("found", "sleep", "3")
    operator.name = operator.create_job_name()
    operator._setup_spark_configuration(context)
    again, context = official("found", "sleep", "3")
    again.execute(context)
    assert operator.pod.metadata.name == again.pod.metadata.name == "found-driver"


@pytest.mark.usefixtures("impatient")
def test_the_official_operator_deletes_its_application_when_killed(server: KubernetesServer) -> None:
    operator, context = official("killed", "sleep", "600")
    operator.name = operator.create_job_name()
    operator._setup_spark_configuration(context)
    assert isinstance(operator.launcher, CustomObjectLauncher)
    operator.on_kill()
    await_true(lambda: server.request("GET", server.pods("killed-driver")).status_code == 404)


def test_the_official_sensor_knows_the_end(server: KubernetesServer) -> None:
    server.create("sensed", "print", "hello")
    server.create("sensed-bad", "exit", "1")
    server.await_state("sensed", "COMPLETED")
    server.await_state("sensed-bad", "FAILED")

    def sensor(name: str) -> SparkKubernetesSensor:
        return SparkKubernetesSensor(task_id="s", application_name=name, namespace=NAMESPACE, attach_log=True)

    assert sensor("sensed").poke({}) is True  # type: ignore[typeddict-item]
    with pytest.raises(AirflowException, match="FAILED"):
        sensor("sensed-bad").poke({})  # type: ignore[typeddict-item]
