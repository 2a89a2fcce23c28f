"""k8s/ and what is submitted to it, judged by the API server: its schemas, quotas and pod security."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import K8S, Cluster, KubectlError, await_true, write_overlay

from trilake.spark.application import IMAGE, NAMESPACE, PROFILES, SparkApplication

Document = dict[str, Any]
DRY_RUN = ("apply", "--dry-run=server", "--validate=strict")


def application(profile: str = "small") -> Document:
    return SparkApplication("dry-run", job="curate", version="0" * 16, profile=profile).manifest()


def set_in(document: Document, path: str, value: Any) -> Document:
    *parents, last = path.split(".")
    at: Any = document
    for part in parents:
        at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
    at[last] = value
    return document


@pytest.mark.parametrize("name", sorted(folder.name for folder in (K8S / "overlays").iterdir()))
def test_the_server_takes_every_object_of_an_overlay(
    cluster: Cluster, overlay: Path, tmp_path: Path, name: str
) -> None:
    hosts = dict(line.split("=") for line in (K8S / "overlays" / name / "hosts.env").read_text().split() if "=" in line)
    written = write_overlay(tmp_path / "k8s", name, hosts, ["AIRFLOW_CONN_AWS_DEFAULT={}"])
    rendered = [d for d in yaml.safe_load_all(cluster.kubectl("kustomize", str(written))) if d]
    told = cluster.kubectl(*DRY_RUN, "--kustomize", str(written), namespace=None).splitlines()
    assert len(told) == len(rendered)
    addresses = {
        d["metadata"]["name"]: d["endpoints"][0]["addresses"] for d in rendered if d["kind"] == "EndpointSlice"
    }
    assert addresses == {"vps-1": [hosts["vps_1"]], "vps-3": [hosts["vps_3"]]}
    cidrs = {
        d["metadata"]["name"]: to["ipBlock"]["cidr"]
        for d in rendered
        if d["kind"] == "NetworkPolicy"
        for rule in d["spec"].get("egress", ())
        for to in rule["to"]
        if "ipBlock" in to
    }
    assert cidrs == {
        policy: f"{hosts[host]}/32"
        for policy, host in (("vps-1", "vps_1"), ("kubernetes-api", "vps_2"), ("vps-3", "vps_3"))
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_the_server_and_the_operators_webhook_take_what_we_submit(
    cluster: Cluster, overlay: Path, profile: str
) -> None:
    cluster.kubectl(*DRY_RUN, "--filename", "-", text=json.dumps(application(profile)))


BROKEN: dict[str, tuple[Callable[[], Document], str]] = {
    "a field of no such name": (
        lambda: set_in(application(), "spec.driver.memmory", "1g"),
        'unknown field "spec.driver.memmory"',
    ),
    "a type that is none": (lambda: set_in(application(), "spec.type", "Perl"), "Unsupported value"),
    "a number that is none": (
        lambda: set_in(application(), "spec.executor.instances", "two"),
        "cannot unmarshal string into .* of type int32",
    ),
    "a label that is none": (
        lambda: set_in(application(), "metadata.labels", {"run": "scheduled__2013-01-01T00:00:00+00:00"}),
        "Invalid value",
    ),
    "a node selector twice over": (
        lambda: set_in(
            set_in(application(), "spec.nodeSelector", {"disk": "ssd"}), "spec.driver.nodeSelector", {"disk": "ssd"}
        ),
        "node selector cannot be defined at both",
    ),
    "a name that is too long for its service": (lambda: set_in(application(), "metadata.name", "a" * 64), "63"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_application_is_refused(cluster: Cluster, overlay: Path, what: str) -> None:
    broken, why = BROKEN[what]
    with pytest.raises(KubectlError, match=why):
        cluster.kubectl(*DRY_RUN, "--filename", "-", text=json.dumps(broken()))


def pod(**security: Any) -> Document:
    """A pod as restricted pod security wants it, but for `security`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "by-hand", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "securityContext": {**application()["spec"]["driver"]["securityContext"], **security},
                }
            ],
        },
    }


@pytest.mark.parametrize(
    "security",
    [
        {"runAsNonRoot": False, "runAsUser": 0},
        {"allowPrivilegeEscalation": True},
        {"privileged": True, "allowPrivilegeEscalation": True},
        {"capabilities": {}},
        {"seccompProfile": {"type": "Unconfined"}},
    ],
    ids=lambda security: next(iter(security)),
)
def test_pod_security_refuses_more_than_it_has_to_grant(
    cluster: Cluster, overlay: Path, security: dict[str, Any]
) -> None:
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        cluster.kubectl(*DRY_RUN, "--filename", "-", text=json.dumps(pod(**security)))


def test_a_pod_finds_the_hosts_by_their_names(cluster: Cluster, overlay: Path) -> None:
    asks = pod()
    asks["spec"]["containers"][0]["command"] = [
        "python",
        "-c",
        "import os, socket; print(os.getuid(), *(socket.gethostbyname(host) for host in ('vps-1', 'vps-3')))",
    ]
    cluster.kubectl("apply", "--filename", "-", text=json.dumps(asks))
    try:
        ended = ("Succeeded", "Failed")
        await_true(lambda: cluster.get("pods")[0]["status"].get("phase") in ended, 300, "the pod to end")
        own = cluster.own_address()
        assert cluster.kubectl("logs", "by-hand").split() == ["185", own, own]
    finally:
        cluster.kubectl("delete", "pod", "by-hand", "--now", "--ignore-not-found")
