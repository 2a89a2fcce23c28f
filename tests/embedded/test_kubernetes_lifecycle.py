"""What becomes of an application: its states, its driver's processes, and both over a restart of the server."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.kubernetes_api import SECRET_TEXT, KubernetesServer, await_true, kubernetes_server
from trilake.platform.embedded.kubernetes.driver_process import session_members


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), max_running=4) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path) as server:
        yield server


def pod(server: KubernetesServer, name: str) -> dict[str, Any]:
    document: dict[str, Any] = server.request("GET", server.pods(f"{name}-driver")).json()
    return document


def driver_process(server: KubernetesServer, name: str) -> int:
    """The process id of an application's watcher."""
    uid = server.get(name)["metadata"]["uid"]
    (path,) = (server.folder / "data" / "applications" / uid).glob("attempt-*/process.json")
    return int(json.loads(path.read_text())["pid"])


def states_seen(server: KubernetesServer, name: str, version: str) -> list[str]:
    states: list[str] = []
    asked = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "10"}
    headers = {"authorization": "Bearer test-token"}
    with httpx.stream("GET", server.url + server.applications(), params=asked, headers=headers, timeout=120) as answer:
        for line in answer.iter_lines():
            changed = json.loads(line)
            if changed["object"]["metadata"]["name"] != name:
                continue
            state = changed["object"].get("status", {}).get("applicationState", {}).get("state", "")
            if not states or states[-1] != state:
                states.append(state)
            if state in ("COMPLETED", "FAILED"):
                break
    return states


def test_success_walks_the_operators_states(shared: KubernetesServer) -> None:
    version = shared.create("good", "print", "done")["metadata"]["resourceVersion"]
    assert states_seen(shared, "good", str(int(version) - 1)) == ["", "SUBMITTED", "RUNNING", "SUCCEEDING", "COMPLETED"]
    status = shared.get("good")["status"]
    assert status["driverInfo"]["podName"] == "good-driver"
    assert (status["executionAttempts"], status["submissionAttempts"]) == (1, 1)
    assert status["terminationTime"] >= status["lastSubmissionAttemptTime"]
    document = pod(shared, "good")
    assert document["status"]["phase"] == "Succeeded"
    labels = document["metadata"]["labels"]
    assert labels["test"] == "yes", "the application's own driver labels"
    assert (labels["spark-role"], labels["sparkoperator.k8s.io/app-name"]) == ("driver", "good")
    assert labels["spark-app-selector"] == status["sparkApplicationId"]


def test_failure_says_the_exit_code(shared: KubernetesServer) -> None:
    version = shared.create("bad", "print", "oh", "exit", "7")["metadata"]["resourceVersion"]
    assert states_seen(shared, "bad", version) == ["SUBMITTED", "RUNNING", "FAILING", "FAILED"]
    state = shared.get("bad")["status"]["applicationState"]
    assert state["errorMessage"] == "driver container failed with ExitCode: 7, Reason: Error"
    container = pod(shared, "bad")["status"]["containerStatuses"][0]
    assert container["name"] == "spark-kubernetes-driver"
    assert container["state"]["terminated"]["exitCode"] == 7
    assert shared.driver_log("bad") == "oh\n"


def test_a_driver_killed_from_outside_is_a_failure(shared: KubernetesServer) -> None:
    shared.create("crashing", "crash")
    state = shared.await_state("crashing", "FAILED")["status"]["applicationState"]
    assert "ExitCode: 137" in state["errorMessage"]


def test_memory_that_spark_would_refuse_fails_the_submission(shared: KubernetesServer) -> None:
    version = shared.create("odd", driver={"cores": 1, "memory": "lots"})["metadata"]["resourceVersion"]
    assert states_seen(shared, "odd", version) == ["SUBMISSION_FAILED", "FAILED"]
    assert "'lots' is not an amount of memory" in shared.get("odd")["status"]["applicationState"]["errorMessage"]
    assert shared.request("GET", shared.pods("odd-driver")).status_code == 404


def test_events_tell_the_story(shared: KubernetesServer) -> None:
    shared.create("told", "exit", "1")
    shared.await_state("told", "FAILED")
    path = "/api/v1/namespaces/spark/events"
    for name, expected in (("told", "SparkApplicationFailed"), ("told-driver", "Started")):
        events = shared.request("GET", path, params={"fieldSelector": f"involvedObject.name={name}"}).json()["items"]
        assert expected in [event["reason"] for event in events]
        assert {event["involvedObject"]["name"] for event in events} == {name}


def test_settings_reach_the_driver_and_kubernetes_own_do_not(shared: KubernetesServer) -> None:
    conf = {"spark.sql.ansi.enabled": "true", "spark.kubernetes.x": "1", "spark.odd key": "a=b\\c\nd é"}
    shared.create("set", "properties", sparkConf=conf, hadoopConf={"fs.s3a.threads.max": "7"})
    shared.await_state("set", "COMPLETED")
    lines = shared.driver_log("set").splitlines()
    assert "spark.sql.ansi.enabled=true" in lines
    assert "spark.hadoop.fs.s3a.threads.max=7" in lines
    assert r"spark.odd\ key=a\=b\\c\nd \u00e9" in lines
    assert any(line.startswith("spark.master=local[") for line in lines)
    assert not [line for line in lines if line.startswith("spark.kubernetes")]


def test_secrets_reach_the_driver_and_nothing_else(shared: KubernetesServer) -> None:
    driver = {
        "cores": 1,
        "memory": "512m",
        "envFrom": [{"secretRef": {"name": "trilake-jobs"}}],
        "env": [
            {"name": "ONE", "valueFrom": {"secretKeyRef": {"name": "trilake-jobs", "key": "AIRFLOW_CONN_AWS_DEFAULT"}}},
            {"name": "PLAIN", "value": "text"},
        ],
        "envSecretKeyRefs": {"TWO": {"name": "trilake-jobs", "key": "AIRFLOW_CONN_AWS_DEFAULT"}},
    }
    names = ("AIRFLOW_CONN_AWS_DEFAULT", "ONE", "TWO", "PLAIN")
    words = [word for name in names for word in ("env", name)]
    shared.create("secret", *words, "sleep", "3", driver=driver)
    shared.await_state("secret", "RUNNING")
    await_true(lambda: shared.driver_log("secret").count("\n") == 4)
    assert shared.driver_log("secret").splitlines() == [SECRET_TEXT] * 3 + ["text"]
    # the driver printed it on purpose; nobody else has it
    for process in shared.processes():
        assert SECRET_TEXT.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
    uid = shared.get("secret")["metadata"]["uid"]
    folder = shared.folder / "data" / "applications" / uid
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert path.name == "driver.log" or SECRET_TEXT not in path.read_text(), path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert SECRET_TEXT not in shared.log
    assert SECRET_TEXT not in json.dumps([shared.get("secret"), pod(shared, "secret")])


def test_a_missing_secret_leaves_the_pod_waiting_for_it(shared: KubernetesServer) -> None:
    driver = {"cores": 1, "memory": "512m", "envFrom": [{"secretRef": {"name": "absent"}}]}
    shared.create("waiting", driver=driver)
    waiting = await_true(lambda: (pod(shared, "waiting").get("status", {}).get("containerStatuses") or [None])[0])
    assert waiting["state"]["waiting"] == {
        "reason": "CreateContainerConfigError",
        "message": 'secret "absent" not found',
    }
    assert shared.state("waiting") == "SUBMITTED"
    answer = shared.request("GET", shared.pods("waiting-driver") + "/log")
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    shared.request("DELETE", shared.applications("waiting"))
    await_true(lambda: shared.request("GET", shared.pods("waiting-driver")).status_code == 404)


def test_deletion_ends_every_process_and_leaves_nothing(shared: KubernetesServer) -> None:
    shared.create("doomed", "spawn", "stubborn", "print", "up", "sleep", "600")
    shared.await_state("doomed", "RUNNING")
    await_true(lambda: shared.driver_log("doomed") == "up\n")
    uid, session = shared.get("doomed")["metadata"]["uid"], driver_process(shared, "doomed")

    assert len(session_members(session)) == 3, "watcher, driver and its child"
    assert shared.request("DELETE", shared.applications("doomed")).json()["status"] == "Success"
    assert shared.request("GET", shared.applications("doomed")).status_code == 404
    assert pod(shared, "doomed")["metadata"]["deletionTimestamp"], "its pod is there until the driver has ended"
    await_true(lambda: shared.request("GET", shared.pods("doomed-driver")).status_code == 404)
    assert session_members(session) == []
    await_true(lambda: not (shared.folder / "data" / "applications" / uid).exists())


def test_foreground_deletion_keeps_the_application_until_its_pod_is_gone(shared: KubernetesServer) -> None:
    shared.create("slow", "stubborn", "print", "up", "sleep", "600")
    shared.await_state("slow", "RUNNING")
    await_true(lambda: shared.driver_log("slow") == "up\n")
    options = {"propagationPolicy": "Foreground"}
    shared.request("DELETE", shared.applications("slow"), json=options)
    assert shared.get("slow")["metadata"]["deletionTimestamp"]
    await_true(lambda: shared.request("GET", shared.applications("slow")).status_code == 404)
    assert shared.request("GET", shared.pods("slow-driver")).status_code == 404


def test_a_name_can_be_used_again_at_once(shared: KubernetesServer) -> None:
    shared.create("twice", "stubborn", "print", "first", "sleep", "600")
    shared.await_state("twice", "RUNNING")
    shared.request("DELETE", shared.applications("twice"))
    shared.create("twice", "print", "second")
    shared.await_state("twice", "COMPLETED")
    assert shared.driver_log("twice") == "second\n"


def test_a_deleted_pod_fails_its_application(shared: KubernetesServer) -> None:
    shared.create("evicted", "sleep", "600")
    shared.await_state("evicted", "RUNNING")
    assert shared.request("DELETE", shared.pods("evicted-driver")).status_code == 200
    shared.await_state("evicted", "FAILED")
    await_true(lambda: shared.request("GET", shared.pods("evicted-driver")).status_code == 404)


def test_failed_attempts_are_repeated_as_the_restart_policy_says(shared: KubernetesServer, tmp_path: Path) -> None:
    policy = {"type": "OnFailure", "onFailureRetries": 3, "onFailureRetryInterval": 1}
    count = str(tmp_path / "attempts")
    shared.create("again", "fail-until", count, "2", "print", "at last", restartPolicy=policy)
    document = shared.await_state("again", "COMPLETED")
    assert document["status"]["executionAttempts"] == 2
    assert shared.driver_log("again") == "at last\n"


def test_repeats_end(shared: KubernetesServer, tmp_path: Path) -> None:
    policy = {"type": "OnFailure", "onFailureRetries": 1, "onFailureRetryInterval": 1}
    shared.create("hopeless", "fail-until", str(tmp_path / "attempts"), "99", restartPolicy=policy)
    document = shared.await_state("hopeless", "FAILED")
    assert document["status"]["executionAttempts"] == 2
    assert "ExitCode: 3" in document["status"]["applicationState"]["errorMessage"]


def test_a_finished_application_goes_when_its_time_is_over(shared: KubernetesServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    shared.create("brief", "wait-for", str(gate), timeToLiveSeconds=1)
    uid = shared.await_state("brief", "RUNNING")["metadata"]["uid"]
    gate.touch()  # from here on it may be gone before anyone sees that it is complete
    await_true(lambda: shared.request("GET", shared.applications("brief")).status_code == 404)
    assert shared.request("GET", shared.pods("brief-driver")).status_code == 404
    await_true(lambda: not (shared.folder / "data" / "applications" / uid).exists())


def test_only_so_many_drivers_run_at_once(server: KubernetesServer, tmp_path: Path) -> None:
    """The server of this test runs two."""
    gate = tmp_path / "gate"
    for name in ("q1", "q2", "q3", "q4"):
        server.create(name, "wait-for", str(gate))
    server.await_state("q1", "RUNNING")
    server.await_state("q2", "RUNNING")
    assert [server.state(name) for name in ("q3", "q4")] == ["SUBMITTED", "SUBMITTED"]
    assert pod(server, "q3")["status"]["phase"] == "Pending"
    server.request("DELETE", server.applications("q1"))
    server.await_state("q3", "RUNNING")
    assert server.state("q4") == "SUBMITTED", "first come, first served"
    gate.touch()
    for name in ("q2", "q3", "q4"):
        server.await_state(name, "COMPLETED")


def test_a_killed_server_finds_its_drivers_again(server: KubernetesServer, tmp_path: Path) -> None:
    gate, early = tmp_path / "gate", tmp_path / "early"
    server.create("finished", "print", "before", "exit", "4")
    server.await_state("finished", "FAILED")
    server.create("running", "print", "before", "wait-for", str(gate), "print", "after")
    server.create("ends-meanwhile", "wait-for", str(early), "exit", "5")
    server.create("queued", "wait-for", str(gate))
    server.await_state("running", "RUNNING")
    server.await_state("ends-meanwhile", "RUNNING")
    before, process = server.get("finished"), driver_process(server, "running")
    server.kill()
    early.touch()
    ended = (server.folder / "data").glob
    await_true(lambda: len(list(ended("applications/*/attempt-1/exit.json"))) == 2)  # while nobody looks
    server.start()
    assert server.get("finished") == before
    assert server.driver_log("finished") == "before\n"
    assert server.state("running") == "RUNNING"
    assert driver_process(server, "running") == process
    server.await_state("ends-meanwhile", "FAILED")
    gate.touch()
    server.await_state("running", "COMPLETED")
    assert server.driver_log("running") == "before\nafter\n"
    server.await_state("queued", "COMPLETED")
    assert server.get("running")["status"]["executionAttempts"] == 1


@pytest.mark.parametrize("milliseconds", [0, 10, 25, 60])
def test_a_server_killed_at_any_time_runs_each_application_once(server: KubernetesServer, milliseconds: int) -> None:
    ran = server.folder / "ran"
    server.create("once", "fail-until", str(ran), "0")
    time.sleep(milliseconds / 1000)
    server.kill()
    server.start()
    server.await_state("once", "COMPLETED")
    assert ran.read_text() == "x"


def test_a_killed_server_goes_on_deleting(server: KubernetesServer) -> None:
    server.create("doomed", "stubborn", "print", "up", "sleep", "600")
    await_true(lambda: server.driver_log("doomed") == "up\n")
    process = driver_process(server, "doomed")
    server.request("DELETE", server.applications("doomed"))
    server.kill()
    assert process in session_members(process)
    server.start()
    await_true(lambda: server.request("GET", server.pods("doomed-driver")).status_code == 404)
    assert session_members(process) == []
    assert list((server.folder / "data" / "applications").iterdir()) == []


def test_a_driver_that_lost_its_watcher_is_a_failure_and_leaves_no_process(server: KubernetesServer) -> None:
    server.create("orphan", "spawn", "print", "up", "sleep", "600")
    await_true(lambda: server.driver_log("orphan") == "up\n")
    process = driver_process(server, "orphan")
    os.kill(process, signal.SIGKILL)
    document = server.await_state("orphan", "FAILED")
    assert "ExitCode: 137" in document["status"]["applicationState"]["errorMessage"]
    assert session_members(process) == []


def test_what_could_not_be_written_down_is_when_there_is_room_again(tmp_path: Path) -> None:
    """A driver ends while neither its watcher nor the server can write of it, as on a full disk."""
    with kubernetes_server(tmp_path, max_running=1) as server:
        name = "unheard"
        gate = tmp_path / "gate"
        server.create(name, "wait-for", str(gate))
        server.await_state(name, "RUNNING")
        process = driver_process(server, name)
        folder = server.folder / "data" / "applications" / server.get(name)["metadata"]["uid"]
        folder.rename(tmp_path / "away")
        gate.touch()
        await_true(lambda: not session_members(process))
        await_true(lambda: f"{name}: tried again in state" in server.log)
        (tmp_path / "away").rename(folder)
        server.await_state(name, "FAILED")
        server.create("next", "sleep", "0")
        server.await_state("next", "COMPLETED")


def test_sigterm_ends_the_server_and_by_force_the_drivers_that_do_not_listen(server: KubernetesServer) -> None:
    server.create("running", "stubborn", "spawn", "print", "up", "sleep", "600")
    await_true(lambda: server.driver_log("running") == "up\n")
    process = driver_process(server, "running")
    assert server.stop() == 0
    assert session_members(process) == []
    server.start()
    server.await_state("running", "FAILED")
