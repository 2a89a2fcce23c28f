"""What the API server answers: objects, selections, patches, logs, and refusals as Kubernetes words them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.kubernetes_api import PROJECT, TOKEN, KubernetesServer, await_true, kubernetes_server, manifest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path_factory.mktemp("kubernetes"), max_running=4, log_bytes=40_000) as server:
        yield server


def refused(answer: httpx.Response) -> tuple[int, str]:
    document = answer.json()
    assert (document["kind"], document["status"]) == ("Status", "Failure")
    assert document["code"] == answer.status_code
    return answer.status_code, document["reason"]


def create(server: KubernetesServer, document: dict[str, Any], **parameters: str) -> httpx.Response:
    return server.request("POST", server.applications(), json=document, params=parameters)


# --- who may ask for what


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic dGVzdC10b2tlbg==", "Bearer"])
def test_without_the_token_nothing_is_told(server: KubernetesServer, header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    for path in (server.applications(), server.pods("x"), "/api/v1/namespaces/spark/secrets", "/apis/none"):
        assert refused(httpx.get(server.url + path, headers=headers)) == (401, "Unauthorized")


def test_readiness_and_version_are_told_to_everyone(server: KubernetesServer) -> None:
    assert httpx.get(f"{server.url}/readyz").text == "ok"
    assert httpx.get(f"{server.url}/version").json()["major"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/namespaces/kube-system/secrets", (403, "Forbidden")),
        ("GET", "/apis/sparkoperator.k8s.io/v1beta2/namespaces/default/sparkapplications", (403, "Forbidden")),
        ("GET", "/apis/sparkoperator.k8s.io/v1beta2/sparkapplications", (403, "Forbidden")),
        ("GET", "/api/v1/pods", (403, "Forbidden")),
        ("GET", "/api/v1/namespaces/spark/configmaps", (404, "NotFound")),
        ("GET", "/apis/apps/v1/namespaces/spark/deployments", (404, "NotFound")),
        ("POST", "/api/v1/namespaces/spark/pods", (405, "MethodNotAllowed")),
        ("DELETE", "/api/v1/namespaces/spark/secrets/trilake-jobs", (405, "MethodNotAllowed")),
        ("GET", "/api/v1/namespaces/spark/pods/absent", (404, "NotFound")),
        ("GET", "/api/v1/namespaces/spark/secrets/absent", (404, "NotFound")),
        ("GET", "/apis/sparkoperator.k8s.io/v1beta2/namespaces/spark/sparkapplications/absent", (404, "NotFound")),
    ],
)
def test_what_is_not_there_or_not_allowed_is_said_as_kubernetes_says_it(
    server: KubernetesServer, method: str, path: str, expected: tuple[int, str]
) -> None:
    assert refused(server.request(method, path)) == expected


# --- what is a SparkApplication


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"driver": {"cores": "two"}}, "spec.driver.cores", "FieldValueTypeInvalid"),
        ({"driver": {"cores": 0}}, "spec.driver.cores", "FieldValueInvalid"),
        ({"type": "Nonsense"}, "spec.type", "FieldValueNotSupported"),
        ({"mode": "in-cluster"}, "spec.mode", "FieldValueNotSupported"),
        ({"restartPolicy": {"type": "Sometimes"}}, "spec.restartPolicy.type", "FieldValueNotSupported"),
        ({"mainApplicationFile": None}, "spec.mainApplicationFile", "FieldValueRequired"),
        ({"sparkConf": {"spark.x": 1}}, "spec.sparkConf.spark.x", "FieldValueTypeInvalid"),
        ({"arguments": "one two"}, "spec.arguments", "FieldValueTypeInvalid"),
        ({"suspend": True}, "spec.suspend", "FieldValueForbidden"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "spec.volumes[0]", "FieldValueForbidden"),
        ({"deps": {"packages": ["a:b:1"]}}, "spec.deps.packages", "FieldValueForbidden"),
    ],
)
def test_an_invalid_manifest_is_refused_by_the_name_of_its_field(
    server: KubernetesServer, change: dict[str, Any], field: str, reason: str
) -> None:
    answer = create(server, manifest("invalid", **change))
    assert refused(answer) == (422, "Invalid")
    document = answer.json()
    assert [(cause["field"], cause["reason"]) for cause in document["details"]["causes"]] == [(field, reason)]
    assert f'"invalid" is invalid: {field}' in document["message"]


def test_a_wrong_value_is_not_repeated_in_the_answer(server: KubernetesServer) -> None:
    """It may be a secret in the wrong place."""
    answer = create(server, manifest("invalid", sparkConf={"spark.x": ["open sesame"]}))
    assert "sesame" not in answer.text


@pytest.mark.parametrize("name", ["Upper", "-a", "a_b", "x" * 254, ""])
def test_names_that_kubernetes_refuses_are_refused(server: KubernetesServer, name: str) -> None:
    assert refused(create(server, manifest(name))) == (422, "Invalid")


@pytest.mark.parametrize(
    "document", [[], "text", {"kind": "Pod"}, {"apiVersion": "v1", "kind": "SparkApplication", "metadata": {}}]
)
def test_another_object_is_refused(server: KubernetesServer, document: Any) -> None:
    assert refused(create(server, document)) == (400, "BadRequest")


def test_bad_json_is_refused(server: KubernetesServer) -> None:
    assert refused(server.request("POST", server.applications(), content=b"{")) == (400, "BadRequest")


def test_unknown_fields_are_left_out_and_named_or_refused(server: KubernetesServer) -> None:
    document = manifest("pruned", executer={"instances": 3})
    document["spec"]["driver"]["memroy"] = "1g"
    document["spec"]["spark_version"] = "3"  # the models' own name for sparkVersion
    answer = create(server, document, fieldValidation="Strict")
    assert refused(answer) == (400, "BadRequest")
    assert 'unknown field "spec.driver.memroy"' in answer.json()["message"]
    answer = create(server, document, dryRun="All")
    assert answer.status_code == 201
    for path in ("spec.driver.memroy", "spec.executer", "spec.spark_version"):
        assert path in answer.headers["warning"]
    spec = answer.json()["spec"]
    assert "memroy" not in spec["driver"]
    assert "executer" not in spec
    assert spec["sparkVersion"] == "4.1.4"


def test_a_dry_run_makes_nothing(server: KubernetesServer) -> None:
    assert create(server, manifest("dry"), dryRun="All").status_code == 201
    assert server.request("GET", server.applications("dry")).status_code == 404


def test_a_second_of_the_same_name_is_refused(server: KubernetesServer) -> None:
    server.create("taken")
    answer = create(server, manifest("taken"))
    assert refused(answer) == (409, "AlreadyExists")
    assert answer.json()["details"]["name"] == "taken"


def test_a_name_is_made_where_only_its_start_is_given(server: KubernetesServer) -> None:
    document = manifest("x")
    del document["metadata"]["name"]
    document["metadata"]["generateName"] = "made-"
    assert create(server, document).json()["metadata"]["name"].startswith("made-")


# --- patches, versions, deletions


@pytest.fixture
def patched(server: KubernetesServer, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"p{abs(hash(request.node.name)) % 10**8}"
    server.create(name, "sleep", "60")
    server.await_state(name, "RUNNING")
    yield name
    server.request("DELETE", server.applications(name))


def patch(server: KubernetesServer, name: str, body: Any, kind: str = "merge-patch+json") -> httpx.Response:
    headers = {"content-type": f"application/{kind}"}
    return server.request("PATCH", server.applications(name), content=json.dumps(body), headers=headers)


def test_a_merge_patch_changes_labels_and_annotations(server: KubernetesServer, patched: str) -> None:
    answer = patch(server, patched, {"metadata": {"annotations": {"a/b": "1"}, "labels": {"test": None, "new": "x"}}})
    assert answer.status_code == 200, answer.text
    metadata = server.get(patched)["metadata"]
    assert (metadata["annotations"], metadata["labels"]) == ({"a/b": "1"}, {"new": "x"})
    assert server.get(patched)["status"]["applicationState"]["state"] == "RUNNING"


def test_a_json_patch_applies_as_a_whole_or_not_at_all(server: KubernetesServer, patched: str) -> None:
    good = {"op": "add", "path": "/metadata/labels/new", "value": "x"}
    answer = patch(
        server, patched, [good, {"op": "test", "path": "/metadata/labels/test", "value": "no"}], "json-patch+json"
    )
    assert answer.status_code == 422
    assert server.get(patched)["metadata"]["labels"] == {"test": "yes"}
    answer = patch(server, patched, [good, {"op": "remove", "path": "/metadata/labels/test"}], "json-patch+json")
    assert answer.json()["metadata"]["labels"] == {"new": "x"}


def test_a_patch_of_another_form_is_refused(server: KubernetesServer, patched: str) -> None:
    assert refused(patch(server, patched, {}, "json")) == (415, "UnsupportedMediaType")
    assert refused(patch(server, patched, {}, "json-patch+json")) == (400, "BadRequest")
    assert refused(patch(server, patched, {"metadata": {"labels": {"a": 1}}})) == (422, "Invalid")


def test_what_runs_is_not_changed(server: KubernetesServer, patched: str) -> None:
    assert refused(patch(server, patched, {"spec": {"arguments": ["other"]}})) == (422, "Invalid")
    assert patch(server, patched, {"status": {"applicationState": {"state": "COMPLETED"}}}).status_code == 200
    assert server.state(patched) == "RUNNING", "the status is the server's own"


def test_whoever_changes_an_old_version_is_refused(server: KubernetesServer, patched: str) -> None:
    old = server.get(patched)["metadata"]
    assert patch(server, patched, {"metadata": {"annotations": {"a": "1"}}}).status_code == 200
    change = {"metadata": {"annotations": {"a": "2"}, "resourceVersion": old["resourceVersion"]}}
    assert refused(patch(server, patched, change)) == (409, "Conflict")
    for precondition in ({"resourceVersion": old["resourceVersion"]}, {"uid": "another"}):
        answer = server.request("DELETE", server.applications(patched), json={"preconditions": precondition})
        assert refused(answer) == (409, "Conflict")
    assert server.state(patched) == "RUNNING"
    answer = server.request("DELETE", server.applications(patched), json={"preconditions": {"uid": old["uid"]}})
    assert answer.json()["status"] == "Success"


def test_a_pods_labels_can_be_patched(server: KubernetesServer, patched: str) -> None:
    headers = {"content-type": "application/strategic-merge-patch+json"}
    body = json.dumps({"metadata": {"labels": {"already_checked": "True"}}})
    answer = server.request("PATCH", server.pods(f"{patched}-driver"), content=body, headers=headers)
    assert answer.json()["metadata"]["labels"]["already_checked"] == "True"
    assert answer.json()["metadata"]["labels"]["spark-role"] == "driver"


# --- lists and watches


def test_lists_are_selected_by_labels_and_fields(server: KubernetesServer) -> None:
    for name, team in (("sel-a", "red"), ("sel-b", "blue")):
        document = manifest(name)
        document["metadata"]["labels"] = {"team": team, "set": "sel"}
        document["spec"]["driver"]["labels"] = {"team": team, "set": "sel"}
        assert create(server, document).status_code == 201
        server.await_state(name, "COMPLETED")

    def names(path: str, **parameters: str) -> list[str]:
        answer = server.request("GET", path, params=parameters)
        assert answer.status_code == 200, answer.text
        return sorted(item["metadata"]["name"] for item in answer.json()["items"])

    assert names(server.applications(), labelSelector="team=red") == ["sel-a"]
    assert names(server.applications(), labelSelector="team in (red, blue),!absent") == ["sel-a", "sel-b"]
    assert names(server.applications(), labelSelector="set,team!=red") == ["sel-b"]
    assert names(server.applications(), labelSelector="set==sel,team notin (red)") == ["sel-b"]
    assert names(server.applications(), fieldSelector="metadata.name=sel-a") == ["sel-a"]
    assert names(server.pods(), labelSelector="set=sel,spark-role=driver") == ["sel-a-driver", "sel-b-driver"]
    assert names(server.pods(), labelSelector="set=sel", fieldSelector="status.phase!=Succeeded") == []
    assert names(server.pods(), labelSelector="set=") == []


@pytest.mark.parametrize("parameters", [{"labelSelector": "a in b"}, {"fieldSelector": "spec.arguments=1"}])
def test_a_selector_that_is_none_is_refused(server: KubernetesServer, parameters: dict[str, str]) -> None:
    assert refused(server.request("GET", server.applications(), params=parameters)) == (400, "BadRequest")


def test_a_watch_that_starts_too_far_back_is_told_to_list_anew(server: KubernetesServer) -> None:
    answer = server.request("GET", server.pods(), params={"watch": "true", "resourceVersion": "1"})
    assert answer.json()["type"] == "ERROR"
    assert answer.json()["object"]["code"] == 410


def test_a_watch_ends_when_its_time_is_over(server: KubernetesServer) -> None:
    started = time.monotonic()
    answer = server.request("GET", server.pods(), params={"watch": "true", "timeoutSeconds": "1"})
    assert answer.status_code == 200
    assert time.monotonic() - started > 0.9


# --- logs


@pytest.fixture(scope="module")
def logged(server: KubernetesServer) -> str:
    server.create("logged", "print", "one", "print", "two", "sleep", "2.2", "print", "three")
    server.await_state("logged", "COMPLETED")
    return "logged"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "one\ntwo\nthree\n"),
        ({"tailLines": "2"}, "two\nthree\n"),
        ({"tailLines": "0"}, ""),
        ({"tailLines": "9"}, "one\ntwo\nthree\n"),
        ({"limitBytes": "5"}, "one\nt"),
        ({"follow": "true"}, "one\ntwo\nthree\n"),
        ({"follow": "true", "limitBytes": "5"}, "one\nt"),
        ({"container": "spark-kubernetes-driver"}, "one\ntwo\nthree\n"),
        ({"sinceTime": "2099-01-01T00:00:00Z"}, ""),
        ({"sinceTime": "2013-01-01T00:00:00+05:00"}, "one\ntwo\nthree\n"),
    ],
)
def test_a_log_is_given_as_asked(server: KubernetesServer, logged: str, parameters: dict[str, str], text: str) -> None:
    assert server.driver_log(logged, **parameters) == text


def test_lines_carry_their_time_if_asked(server: KubernetesServer, logged: str) -> None:
    lines = [line.split(" ", 1) for line in server.driver_log(logged, timestamps="true").splitlines()]
    assert [text for _, text in lines] == ["one", "two", "three"]
    times = [moment for moment, _ in lines]
    assert times == sorted(set(times))
    since = server.driver_log(logged, sinceTime=times[2])
    assert since == "three\n"


def test_a_log_since_seconds_leaves_the_older_lines_out(server: KubernetesServer) -> None:
    server.create("since", "print", "old", "sleep", "4", "print", "new", "sleep", "600")
    await_true(lambda: "new" in server.driver_log("since"))
    old, _, new, _ = server.driver_log("since", timestamps="true").split()
    assert datetime.fromisoformat(new) - datetime.fromisoformat(old) > timedelta(seconds=3.9)

    def new_alone() -> bool:
        # whole seconds, fewer than have passed since the old line; when the answer is late, both are older
        age = (datetime.now(UTC) - datetime.fromisoformat(old)).total_seconds()
        found = server.driver_log("since", sinceSeconds=str(int(age - 0.5)))
        assert found in ("new\n", "")
        return found == "new\n"

    await_true(new_alone)
    server.request("DELETE", server.applications("since"))


def test_a_log_is_followed_while_it_grows(server: KubernetesServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server.create("followed", "print", "first", "wait-for", str(gate), "print", "last")
    server.await_state("followed", "RUNNING")
    headers, parameters = {"authorization": f"Bearer {TOKEN}"}, {"follow": "true"}
    url = server.url + server.pods("followed-driver") + "/log"
    with httpx.stream("GET", url, headers=headers, params=parameters, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "first"
        threading.Timer(0.3, gate.touch).start()
        assert list(lines) == ["last"]


def test_a_log_keeps_its_newest_lines_and_stays_small(server: KubernetesServer) -> None:
    """The server of these tests has two files of 40 kB."""
    server.create("flood", "flood", "5000", "print", "the end")
    uid = server.await_state("flood", "COMPLETED")["metadata"]["uid"]
    lines = server.driver_log("flood").splitlines()
    numbers = [int(line.split()[1]) for line in lines[:-1]]
    assert lines[-1] == "the end"
    assert numbers == list(range(numbers[0], 5000)), "without a gap, to the end"
    assert numbers[0] > 0
    files = list((server.folder / "data" / "applications" / uid / "attempt-1").glob("driver.log*"))
    assert sum(path.stat().st_size for path in files) < 250_000
    assert server.driver_log("flood", tailLines="2") == "\n".join(lines[-2:]) + "\n"


@pytest.mark.parametrize(
    "parameters", [{"container": "sidecar"}, {"previous": "true"}, {"tailLines": "-1"}, {"sinceTime": "yesterday"}]
)
def test_a_log_that_cannot_be_had_is_refused(server: KubernetesServer, logged: str, parameters: dict[str, str]) -> None:
    answer = server.request("GET", server.pods("logged-driver") + "/log", params=parameters)
    assert refused(answer) == (400, "BadRequest")


# --- the server as a command


def run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trilake.platform.embedded.kubernetes", "--config", str(config)]
    environment = {"PYTHONPATH": str(PROJECT / "plugins"), "PATH": "/usr/bin"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_what_the_server_cannot_start_with_is_one_line(server: KubernetesServer, tmp_path: Path) -> None:
    good = json.loads(server.config.read_text())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        blocked = {**good, "port": other.getsockname()[1], "data": str(tmp_path / "data")}
        (tmp_path / "file").touch()
        cases = {
            f"Cannot listen on 127.0.0.1:{blocked['port']}: Address already in use": blocked,
            "lacks token": {key: value for key, value in good.items() if key != "token"},
            "unknown settings: prot": {**good, "prot": 1},
            "Not a directory": {**good, "port": 0, "data": str(tmp_path / "file")},
        }
        for message, document in cases.items():
            config = tmp_path / "kubernetes.json"
            config.write_text(json.dumps(document))
            result = run(config)
            assert result.returncode == 1
            lines = [line for line in result.stderr.splitlines() if "listening" not in line]
            assert len(lines) == 1, result.stderr
            assert message in lines[0]
            assert good["token"] not in result.stderr
    assert "cannot be read" in run(tmp_path / "absent.json").stderr
