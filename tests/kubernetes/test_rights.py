"""What Airflow's account and the drivers' may do on the cluster, and what the server refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, KubectlError

from trilake.spark.application import AGENTS_NAMESPACE, NAMESPACE, SERVICE_ACCOUNT

APPLICATION = """
apiVersion: sparkoperator.k8s.io/v1beta2
kind: SparkApplication
metadata: {name: by-hand}
spec:
  type: Python
  mode: cluster
  sparkVersion: 4.1.4
  mainApplicationFile: local:///opt/trilake/run_job.py
  driver: {cores: 1, memory: 512m}
  executor: {instances: 1, cores: 1, memory: 512m}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: by-hand}
spec:
  containers: [{name: main, image: none}]
"""


def may(cluster: Cluster, account: str, verb: str, resource: str, *options: str) -> bool:
    own = () if any(o.startswith("--as=") for o in options) else (f"--as=system:serviceaccount:{NAMESPACE}:{account}",)
    asked = ("auth", "can-i", verb, resource, *own, *options)
    try:
        return cluster.kubectl(*asked).strip() == "yes"
    except KubectlError as e:
        if str(e).splitlines()[-1] != "no":
            raise
        return False


@pytest.mark.parametrize("resource", ["sparkapplications.sparkoperator.k8s.io", "pods", "events"])
def test_airflow_may_look_at_what_it_needs(cluster: Cluster, overlay: Path, resource: str) -> None:
    assert may(cluster, "airflow", "list", resource)


@pytest.mark.parametrize(
    ("verb", "resource", "options"),
    [
        ("get", "secrets", ()),
        ("list", "secrets", ()),
        ("get", "configmaps", ()),
        ("create", "pods", ()),
        ("delete", "pods", ()),
        ("patch", "pods", ()),
        ("create", "pods", ("--subresource=exec",)),
        ("create", "pods", ("--subresource=portforward",)),
        ("create", "pods", ("--subresource=attach",)),
        ("create", "serviceaccounts", ("--subresource=token",)),
        ("impersonate", "serviceaccounts", ()),
        ("create", "rolebindings.rbac.authorization.k8s.io", ()),
        ("patch", "resourcequotas", ()),
        ("delete", "networkpolicies.networking.k8s.io", ()),
        ("list", "pods", ("--namespace=kube-system",)),
        ("list", "pods", ("--all-namespaces",)),
        ("create", "sparkapplications.sparkoperator.k8s.io", ("--namespace=default",)),
        ("list", "nodes", ()),
        ("get", "namespaces", ()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("account", ["airflow", "default"])
def test_more_is_denied(
    cluster: Cluster, overlay: Path, account: str, verb: str, resource: str, options: tuple[str, ...]
) -> None:
    assert not may(cluster, account, verb, resource, *options)


@pytest.mark.parametrize(
    ("verb", "resource"), [("get", "secrets"), ("create", "rolebindings.rbac.authorization.k8s.io")]
)
def test_a_driver_may_neither(cluster: Cluster, overlay: Path, verb: str, resource: str) -> None:
    assert not may(cluster, SERVICE_ACCOUNT, verb, resource)
    assert may(cluster, SERVICE_ACCOUNT, "create", "pods")


@pytest.mark.rotates(8)
def test_airflow_manages_agents_applications_and_a_driver_of_agents_has_no_right_in_the_jobs_namespace(
    cluster: Cluster, overlay: Path
) -> None:
    applications, there = "sparkapplications.sparkoperator.k8s.io", f"--namespace={AGENTS_NAMESPACE}"
    assert may(cluster, "airflow", "create", applications, there)
    assert not may(cluster, "airflow", "get", "secrets", there)
    assert not may(cluster, "airflow", "create", "pods", there)
    driver = f"--as=system:serviceaccount:{AGENTS_NAMESPACE}:{SERVICE_ACCOUNT}"
    assert may(cluster, SERVICE_ACCOUNT, "create", "pods", driver, there)
    for namespace in (AGENTS_NAMESPACE, NAMESPACE):
        assert not may(cluster, SERVICE_ACCOUNT, "get", "secrets", driver, f"--namespace={namespace}")
    assert not may(cluster, SERVICE_ACCOUNT, "create", "pods", driver, f"--namespace={NAMESPACE}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "secrets"),
        ("get", "secret", "trilake-jobs"),
        ("get", "pods", "--all-namespaces"),
        ("get", "sparkapplications", "--namespace", "default"),
        ("delete", "networkpolicy", "default-deny"),
        ("delete", "pod", "any"),
        ("create", "token", SERVICE_ACCOUNT),
    ],
    ids=" ".join,
)
def test_the_server_refuses_airflows_token(
    cluster: Cluster, airflow_kubeconfig: Path, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(KubectlError, match='is forbidden: User "system:serviceaccount:spark:airflow" cannot'):
        cluster.kubectl(*arguments, kubeconfig=airflow_kubeconfig)


def test_the_server_refuses_airflow_a_pod_and_takes_an_application(cluster: Cluster, airflow_kubeconfig: Path) -> None:
    create = ("create", "--filename", "-")
    with pytest.raises(KubectlError, match='cannot create resource "pods"'):
        cluster.kubectl(*create, text=POD, kubeconfig=airflow_kubeconfig)
    told = cluster.kubectl(*create, "--dry-run=server", text=APPLICATION, kubeconfig=airflow_kubeconfig)
    assert told == "sparkapplication.sparkoperator.k8s.io/by-hand created (server dry run)\n"
