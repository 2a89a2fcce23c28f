"""SparkApplicationOperator and its trigger against a real API server: submitted, awaited, adopted, ended."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.airflow_task import FLIGHTS, Lines, ObjectStore, Task, object_store
from support.kubernetes_api import KubernetesServer, await_true, kubernetes_server
from trilake.errors import ConfigurationError, TrilakeError, UnreachableError
from trilake.hooks import spark as hook_module
from trilake.hooks.spark import OWNER, SparkApplicationHook
from trilake.operators.spark import STATE_KEY, SparkApplicationError, SparkApplicationOperator
from trilake.spark import versions
from trilake.triggers.spark import SparkApplicationTrigger


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store("artifacts") as store:
        yield store


@pytest.fixture(scope="module")
def version(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("project")
    (folder / "spark_jobs").mkdir()
    (folder / "spark_jobs" / "curate.py").write_text("def main(arguments):\n    print('curated', *arguments)\n")
    return versions.push(store.client, folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), max_running=8) as server:
        yield server


@pytest.fixture(autouse=True)
def connections(shared: KubernetesServer, store: ObjectStore, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", store.connection)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", shared.connection)


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    return Task(f"manual__{request.node.name}")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    lines = Lines()
    monkeypatch.setattr(SparkApplicationTrigger, "log", lines, raising=False)
    return lines


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def nothing_left(server: KubernetesServer, name: str) -> bool:
    selector = {"labelSelector": f"sparkoperator.k8s.io/app-name={name}"}
    pods = server.request("GET", server.pods(), params=selector).json()["items"]
    return server.request("GET", server.applications(name)).status_code == 404 and not pods


# --- one try


def test_a_job_runs_and_its_result_and_log_come_back(
    task: Task, shared: KubernetesServer, store: ObjectStore, lines: Lines
) -> None:
    _, trigger = task.submit("print", "counting", "print", "counting more")
    name = task.name
    spec = shared.get(name)["spec"]
    labels = shared.get(name)["metadata"]["labels"]
    assert (labels["trilake/dag"], labels["trilake/task"]) == ("flights", "curate")
    own = spec["arguments"][spec["arguments"].index("--") + 1 :]
    assert own == [
        *("--run", f"flights/{task.run_id}", "--data-set", FLIGHTS.to_json(), "--start", "2013-01", "--end", "2013-03"),
        *("print", "counting", "print", "counting more"),
        *("--result", f"s3://artifacts/runs/{name}/result.json"),
    ]
    store.client.put_object(Bucket="artifacts", Key=f"runs/{name}/result.json", Body=b'{"snapshot": 7, "rows": 3}')
    outcome = task.complete(trigger)
    assert outcome.pop("seconds") >= 0
    assert outcome == {"application": name, "state": "COMPLETED", "snapshot": 7, "rows": 3, "spark": {}}
    assert (lines.count("counting"), lines.count("counting more")) == (1, 1)
    await_true(lambda: nothing_left(shared, name))
    assert task.store[STATE_KEY]["done"] is True


def test_a_job_without_a_result_has_none(task: Task) -> None:
    _, trigger = task.submit("print", "x", data_set=None)
    assert set(task.complete(trigger)) == {"application", "state", "seconds", "spark"}


def test_a_failure_is_one_message_with_the_drivers_last_words(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit(
        "print", "Traceback (most recent call last):", "print", "ValueError: no such column", "exit", "1"
    )
    with pytest.raises(SparkApplicationError) as error:
        task.complete(trigger)
    text = str(error.value)
    assert text.startswith(f"SparkApplication {task.name} (job curate, namespace spark) is FAILED after ")
    assert "Reason: driver container failed with ExitCode: 1, Reason: Error" in text
    assert text.endswith("  Traceback (most recent call last):\n  ValueError: no such column")
    await_true(lambda: nothing_left(shared, task.name))


def test_a_failed_submission_is_a_failure(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trilake.operators import spark as module

    made = SparkApplicationOperator._manifest

    def with_odd_memory(*args: Any) -> dict[str, Any]:
        manifest = made(*args)
        manifest["spec"]["driver"]["memory"] = "lots"
        return manifest

    monkeypatch.setattr(module.SparkApplicationOperator, "_manifest", with_odd_memory)
    _, trigger = task.submit()
    with pytest.raises(SparkApplicationError, match=r"FAILED.*\nReason: 'lots' is not an amount of memory"):
        task.complete(trigger)
    await_true(lambda: nothing_left(shared, task.name))


def test_without_a_trigger_the_worker_waits_itself(task: Task, shared: KubernetesServer, lines: Lines) -> None:
    outcome = task.operator("print", "here", deferrable=False).execute(task.context)
    assert outcome["state"] == "COMPLETED"
    assert lines.count("here") == 1
    assert nothing_left(shared, task.name)


def test_a_finished_application_is_kept_if_asked(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit(delete_on_termination=False)
    task.complete(trigger, delete_on_termination=False)
    assert shared.state(task.name) == "COMPLETED"
    first = task.name
    _, trigger = task.submit(delete_on_termination=False)
    assert task.name != first
    task.complete(trigger)
    assert shared.state(first) == "COMPLETED"


def test_what_does_not_start_in_time_is_ended_and_says_why(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SparkApplicationOperator._manifest

    def with_another_secret(*args: Any) -> dict[str, Any]:
        manifest = made(*args)
        manifest["spec"]["driver"]["envFrom"] = [{"secretRef": {"name": "absent"}}]
        return manifest

    monkeypatch.setattr(SparkApplicationOperator, "_manifest", with_another_secret)
    _, trigger = task.submit(startup_timeout_seconds=1)
    shared.await_state(task.name, "SUBMITTED")
    await_true(lambda: "CreateContainerConfigError" in shared.request("GET", shared.pods()).text)
    with pytest.raises(SparkApplicationError) as error:
        task.complete(trigger, startup_timeout_seconds=1)
    text = str(error.value)
    assert "did not start within 1 s: it is SUBMITTED" in text
    assert 'CreateContainerConfigError: secret "absent" not found' in text
    assert nothing_left(shared, task.name)


@pytest.mark.parametrize("options", [{"run_timeout_seconds": 1}, {"execution_timeout": timedelta(seconds=1)}])
def test_what_takes_too_long_is_ended(task: Task, shared: KubernetesServer, options: dict[str, Any]) -> None:
    _, trigger = task.submit("sleep", "600", **options)
    shared.await_state(task.name, "RUNNING")
    with pytest.raises(SparkApplicationError, match="reached its time limit: it was RUNNING"):
        task.complete(trigger)
    assert nothing_left(shared, task.name)


def test_an_application_deleted_by_somebody_is_a_failure(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit("sleep", "600")
    shared.await_state(task.name, "RUNNING")
    shared.request("DELETE", shared.applications(task.name))
    with pytest.raises(SparkApplicationError, match="is gone: another process or person deleted it"):
        task.complete(trigger)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs_version": "0" * 16}, "no job code of version '0000000000000000'"),
        ({"job": "absent"}, "has no job 'absent'. It has curate"),
        ({"profile": "huge"}, "no profile 'huge'"),
        ({"start": "2013-13"}, "'2013-13' is not a month"),
        ({"start": ""}, "names no partition"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_submitted(
    task: Task, shared: KubernetesServer, options: dict[str, Any], message: str
) -> None:
    before = shared.request("GET", shared.applications()).json()["items"]
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        task.operator(**{"end": None, **options}).execute(task.context)
    after = shared.request("GET", shared.applications()).json()["items"]
    assert {item["metadata"]["name"] for item in after} <= {item["metadata"]["name"] for item in before}


# --- several tries


def test_a_try_after_a_lost_worker_goes_on_with_the_same_application(
    task: Task, shared: KubernetesServer, tmp_path: Path
) -> None:
    gate = str(tmp_path / "gate")
    _, lost = task.submit("wait-for", gate, "print", "done")
    name = task.name
    shared.await_state(name, "RUNNING")
    uid = shared.get(name)["metadata"]["uid"]
    _, trigger = task.submit("wait-for", gate, "print", "done")
    assert task.name == name
    assert shared.get(name)["metadata"]["uid"] == uid
    # the lost try's process is ended at last, and takes nothing with it
    asyncio.run(lost.on_kill())
    assert shared.state(name) == "RUNNING"
    Path(gate).touch()
    assert task.complete(trigger)["application"] == name


def test_a_try_after_a_lost_worker_takes_up_what_is_done_by_now(task: Task, shared: KubernetesServer) -> None:
    task.submit("print", "done")
    name = task.name
    shared.await_state(name, "COMPLETED")
    _, trigger = task.submit("print", "done")
    assert task.name == name
    assert task.complete(trigger)["application"] == name


def test_a_try_whose_application_was_never_made_makes_another(task: Task, shared: KubernetesServer) -> None:
    task.submit("print", "done")
    first = task.name
    shared.request("DELETE", shared.applications(first))
    _, trigger = task.submit("print", "done")
    assert task.store[STATE_KEY]["number"] == 2
    assert task.complete(trigger)["application"] != first


def test_a_try_that_is_asked_for_something_else_ends_its_predecessor_first(
    task: Task, shared: KubernetesServer
) -> None:
    task.submit("stubborn", "print", "up", "sleep", "600")
    first = task.name
    shared.await_state(first, "RUNNING")
    _, trigger = task.submit("print", "other")
    assert task.name != first
    assert nothing_left(shared, first), "before the new one was made"
    task.complete(trigger)


def test_a_try_without_a_record_ends_what_its_labels_find(task: Task, shared: KubernetesServer) -> None:
    task.submit("sleep", "600")
    first = task.name
    task.store.clear()
    _, trigger = task.submit("print", "again")
    assert shared.get(first).get("metadata", {}).get("deletionTimestamp") is None
    assert task.complete(trigger)["state"] == "COMPLETED"
    await_true(lambda: nothing_left(shared, first))


def test_a_try_after_a_failure_is_another_application(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit("exit", "1")
    first = task.name
    with pytest.raises(SparkApplicationError):
        task.complete(trigger)
    _, trigger = task.submit("exit", "0")
    assert task.name != first
    assert task.complete(trigger)["application"] == task.name


def test_a_cleared_task_runs_anew(task: Task) -> None:
    _, trigger = task.submit("print", "x")
    first = task.complete(trigger)["application"]
    _, trigger = task.submit("print", "x")
    assert task.complete(trigger)["application"] != first


def test_another_application_of_its_name_is_left_alone(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit("print", "x")
    task.complete(trigger)
    name = task.name.removesuffix("1") + "2"
    shared.create(name, "sleep", "600")
    _, trigger = task.submit("print", "x")
    assert task.name.endswith("-3")
    task.complete(trigger)
    assert shared.state(name) == "RUNNING"
    shared.request("DELETE", shared.applications(name))


def test_a_submission_whose_answer_is_lost_is_found_and_not_repeated(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, lost = SparkApplicationHook._ask, []

    async def losing(self: SparkApplicationHook, request: Any) -> Any:
        async def answered(connection: Any) -> Any:
            answer = await request(connection)
            if isinstance(answer, dict) and answer.get("kind") == "SparkApplication" and not lost:
                lost.append(answer["metadata"]["name"])
                raise ConnectionResetError("the answer is lost")
            return answer

        return await ask(self, answered)

    monkeypatch.setattr(SparkApplicationHook, "_ask", losing)
    _, trigger = task.submit("print", "once")
    assert lost == [task.name]
    assert task.store[STATE_KEY]["number"] == 1
    task.complete(trigger)


def test_a_worker_that_was_cut_off_ends_what_it_submits_too_late(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = SparkApplicationHook.create

    async def meanwhile(self: SparkApplicationHook, manifest: Any) -> Any:
        task.store.set(STATE_KEY, {"name": "another", "number": 9, "owner": "another", "done": False})
        return await create(self, manifest)

    monkeypatch.setattr(SparkApplicationHook, "create", meanwhile)
    with pytest.raises(SparkApplicationError, match="another try of this task has taken over while this try submitted"):
        task.operator("sleep", "600").execute(task.context)
    left = shared.request("GET", shared.applications()).json()["items"]
    assert not [
        item for item in left if item["metadata"]["annotations"].get(OWNER) and "sleep" in item["spec"]["arguments"]
    ]


# --- killed


def test_a_task_killed_while_deferred_ends_its_application(task: Task, shared: KubernetesServer) -> None:
    _, trigger = task.submit("stubborn", "sleep", "600")
    shared.await_state(task.name, "RUNNING")
    asyncio.run(trigger.on_kill())
    assert nothing_left(shared, task.name)


def test_a_task_killed_in_a_worker_ends_its_application(task: Task, shared: KubernetesServer) -> None:
    operator, _ = task.submit("stubborn", "sleep", "600")
    shared.await_state(task.name, "RUNNING")

    async def signalled() -> None:
        operator.on_kill()  # the signal comes while the worker runs an event loop

    asyncio.run(signalled())
    assert nothing_left(shared, task.name)


def test_a_task_killed_before_it_submitted_ends_nothing(task: Task) -> None:
    task.operator().on_kill()


def test_a_task_killed_while_it_submits_ends_what_it_submits(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, create = task.operator("sleep", "600"), SparkApplicationHook.create

    async def killed(self: SparkApplicationHook, manifest: Any) -> Any:
        operator.on_kill()
        return await create(self, manifest)

    monkeypatch.setattr(SparkApplicationHook, "create", killed)
    with pytest.raises(SparkApplicationError, match="this task was killed while this try submitted"):
        operator.execute(task.context)
    assert nothing_left(shared, task.name)


def test_a_task_killed_before_it_takes_over_ends_what_it_takes_over(task: Task, shared: KubernetesServer) -> None:
    task.submit("sleep", "600")
    shared.await_state(task.name, "RUNNING")
    operator = task.operator("sleep", "600")
    operator.on_kill()
    with pytest.raises(SparkApplicationError, match="this task was killed while this try submitted or adopted it"):
        operator.execute(task.context)
    assert nothing_left(shared, task.name)


def test_a_kill_that_meets_an_adoption_ends_nothing(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adoption comes between the killed try's look and its deletion."""
    _, killed = task.submit("sleep", "600")
    name = task.name
    shared.await_state(name, "RUNNING")
    of_applications = SparkApplicationHook._of_applications

    async def adopting(self: SparkApplicationHook, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "delete":
            monkeypatch.setattr(SparkApplicationHook, "_of_applications", of_applications)
            application = await self.get(name)
            assert application
            assert await self.adopt(application, "the next try")
        return await of_applications(self, method, *args, **kwargs)

    monkeypatch.setattr(SparkApplicationHook, "_of_applications", adopting)
    asyncio.run(killed.on_kill())
    assert shared.state(name) == "RUNNING"
    assert shared.get(name)["metadata"]["annotations"][OWNER] == "the next try"
    shared.request("DELETE", shared.applications(name))


# --- the trigger


def test_another_triggerer_goes_on_with_the_log_where_the_first_stopped(
    task: Task, shared: KubernetesServer, tmp_path: Path, lines: Lines
) -> None:
    gate = str(tmp_path / "gate")
    _, first = task.submit("print", "one", "print", "two", "wait-for", gate, "print", "three")

    async def stopped() -> None:
        waiting = asyncio.create_task(first.wait())
        await until(lambda: lines.count("two"))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await first.cleanup()

    asyncio.run(asyncio.wait_for(stopped(), 20))
    Path(gate).touch()
    shared.await_state(task.name, "COMPLETED")
    task.complete(SparkApplicationTrigger(**first.serialize()[1]))
    assert [line for line in lines if line in ("one", "two", "three")] == ["one", "two", "three"]


def test_a_long_log_comes_whole_and_each_line_once(task: Task, lines: Lines) -> None:
    _, trigger = task.submit("flood", "3000")
    task.complete(trigger)
    assert [int(line.split()[1]) for line in lines if line.startswith("line ")] == list(range(3000))


def test_an_api_server_that_is_restarted_is_waited_for(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    gate = tmp_path / "gate"
    with kubernetes_server(tmp_path) as server:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", server.connection)
        _, trigger = task.submit("print", "before", "wait-for", str(gate), "print", "after")
        server.await_state(task.name, "RUNNING")

        async def interrupted() -> dict[str, Any]:
            waiting = asyncio.create_task(trigger.wait())
            await until(lambda: lines.count("before"))
            server.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.start)
            gate.touch()
            return await waiting

        event = asyncio.run(asyncio.wait_for(interrupted(), 120))
        assert event["outcome"] == "completed"
        assert (lines.count("before"), lines.count("after")) == (1, 1)
        task.operator().execute_complete(task.context, event)


def test_many_triggers_wait_side_by_side(request: pytest.FixtureRequest, tmp_path: Path, lines: Lines) -> None:
    gate = tmp_path / "gate"
    tasks = [Task(f"manual__{request.node.name}{number}") for number in range(4)]
    triggers = [task.submit("print", "up", "wait-for", str(gate))[1] for task in tasks]

    async def together() -> list[dict[str, Any]]:
        waiting = [asyncio.create_task(trigger.wait()) for trigger in triggers]
        await until(lambda: lines.count("up") == len(triggers))  # each has brought its driver's line, and waits
        gate.touch()
        return await asyncio.gather(*waiting)

    events = asyncio.run(asyncio.wait_for(together(), 120))
    assert {event["outcome"] for event in events} == {"completed"}
    for task, event in zip(tasks, events, strict=True):
        task.operator().execute_complete(task.context, event)


def test_an_api_server_that_is_away_is_said_so(
    task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "_ATTEMPTS", 1)
    gone = json.loads(shared.connection)
    gone["extra"]["kube_config"] = gone["extra"]["kube_config"].replace(str(shared.port), "1")
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(gone))
    with pytest.raises(UnreachableError, match="connection kubernetes_default does not answer"):
        task.operator().execute(task.context)


def test_a_wrong_token_is_said_so(task: Task, shared: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trigger = task.submit("sleep", "600")
    wrong = shared.connection.replace("test-token", "another")
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", wrong)
    trigger = SparkApplicationTrigger(**trigger.serialize()[1])
    event = asyncio.run(trigger.wait())
    assert (event["outcome"], event["error"]) == ("error", "Kubernetes refuses: Unauthorized")


def test_what_does_not_go_is_named(task: Task, shared: KubernetesServer) -> None:
    task.submit("stubborn", "print", "up", "sleep", "600")
    await_true(lambda: "up" in shared.driver_log(task.name))
    hook = SparkApplicationHook(connection_extras=json.loads(shared.connection)["extra"])
    with pytest.raises(TrilakeError, match=f"These objects were deleted, but they still exist: {task.name}-driver"):
        asyncio.run(hook.end(task.name, seconds=0.1))
