"""k8s/ as Kubernetes would take it, and what its rules say. Rendering and refusal by a server: tests/kubernetes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from trilake.spark.application import AGENTS_NAMESPACE, JOBS_SECRET, NAMESPACE, PROFILES, SERVICE_ACCOUNT, Profile

K8S = Path(__file__).parents[2] / "k8s"
VERSIONS = ("1.35", "1.36")  # 1.36 is what k3s on the hosts is

Document = dict[str, Any]


def objects(folder: str) -> dict[str, Document]:
    found = [d for file in sorted((K8S / folder).glob("*.yaml")) for d in yaml.safe_load_all(file.read_text()) if d]
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in found if d["kind"] != "Kustomization"}


OBJECTS = objects("base")
OF_AGENTS = objects("agents")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [*OBJECTS.values(), *OF_AGENTS.values()], ids=lambda d: d["metadata"]["name"])
def test_each_object_has_the_fields_of_its_kind_and_no_others(document: Document, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def _change(name: str, change: Callable[[Document], Any]) -> Document:
    document = copy.deepcopy(OBJECTS[name])
    change(document)
    return document


@pytest.mark.parametrize(
    "broken",
    [
        _change("NetworkPolicy/dns", lambda d: d["spec"].update(egres=d["spec"].pop("egress"))),
        _change("Role/airflow", lambda d: d["rules"][0].update(verbs="get")),
        _change("ResourceQuota/spark", lambda d: d["spec"].update(hard=["pods"])),
        _change("Service/vps-1", lambda d: d["spec"]["ports"][0].pop("port")),
        _change("EndpointSlice/vps-3", lambda d: d.pop("addressType")),
    ],
    ids=lambda broken: broken["kind"],
)
def test_a_broken_object_is_refused(broken: Document) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("folder", ["base", "agents"])
def test_every_file_is_part_of_its_folders_kustomization(folder: str) -> None:
    listed = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(f.name for f in (K8S / folder).glob("*.yaml") if f.name != "kustomization.yaml")


def test_the_application_names_what_is_there() -> None:
    assert f"Namespace/{NAMESPACE}" in OBJECTS
    assert f"ServiceAccount/{SERVICE_ACCOUNT}" in OBJECTS
    for overlay in (K8S / "overlays").iterdir():
        document = yaml.safe_load((overlay / "kustomization.yaml").read_text())
        assert document["resources"] == ["../../base", "../../agents"]
        assert "namespace" not in document  # it would move all into one
        generated = {(x["namespace"], x["name"]): x["envs"] for x in document["secretGenerator"]}
        assert generated == {(NAMESPACE, JOBS_SECRET): ["jobs.env"], (AGENTS_NAMESPACE, JOBS_SECRET): ["agents.env"]}


def test_agents_applications_have_the_same_walls_fewer_resources_and_no_way_to_vps_3() -> None:
    assert set(OBJECTS["Namespace/spark"]["metadata"]["labels"].items()) == set(
        OF_AGENTS[f"Namespace/{AGENTS_NAMESPACE}"]["metadata"]["labels"].items()
    )
    policies = {name for name in OBJECTS if name.startswith("NetworkPolicy")} - {"NetworkPolicy/vps-3"}
    assert {name for name in OF_AGENTS if name.startswith("NetworkPolicy")} == policies
    for name in (*policies, "Role/airflow", "Role/spark-driver", f"ServiceAccount/{SERVICE_ACCOUNT}"):
        assert OF_AGENTS[name] == OBJECTS[name]
    assert not [name for name in OF_AGENTS if "vps-3" in name or name.startswith("Secret")]
    assert OF_AGENTS["RoleBinding/airflow"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "airflow", "namespace": NAMESPACE}
    ]
    hard = OF_AGENTS["ResourceQuota/agents"]["spec"]["hard"]
    assert (hard["requests.cpu"], hard["requests.memory"]) == ("4", "8Gi")
    watched = yaml.safe_load((K8S / "spark_operator/values.yaml").read_text())["spark"]["jobNamespaces"]
    assert watched == [NAMESPACE, AGENTS_NAMESPACE]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_can_start_in_an_empty_namespace(profile: Profile) -> None:
    hard = OBJECTS["ResourceQuota/spark"]["spec"]["hard"]
    assert profile.driver_cores + profile.executors * profile.executor_cores <= int(hard["requests.cpu"])
    # Spark adds 40 % for Python
    memory = [int(text.removesuffix("g")) * 1.4 for text in (profile.driver_memory, profile.executor_memory)]
    assert memory[0] + profile.executors * memory[1] <= int(hard["requests.memory"].removesuffix("Gi"))
    (limit,) = OBJECTS["LimitRange/spark"]["spec"]["limits"]
    assert max(memory) <= int(limit["max"]["memory"].removesuffix("Gi"))


def test_airflow_may_manage_applications_and_look_at_pods_and_nothing_else() -> None:
    rights = {
        (group, resource, verb)
        for rule in OBJECTS["Role/airflow"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    changing = {(resource, verb) for _, resource, verb in rights if verb not in ("get", "list", "watch")}
    assert changing == {("sparkapplications", verb) for verb in ("create", "patch", "delete")}
    assert {resource for _, resource, _ in rights} == {"sparkapplications", "pods", "pods/log", "events"}


def test_a_driver_has_no_right_on_secrets_and_none_outside_of_its_namespace() -> None:
    assert not any("secrets" in rule["resources"] for rule in OBJECTS["Role/spark-driver"]["rules"])
    assert not [name for name in OBJECTS if name.startswith("Cluster")]


def test_nothing_gets_in_or_out_but_for_the_table_of_flows() -> None:
    policies = {name.split("/")[1]: d["spec"] for name, d in OBJECTS.items() if name.startswith("NetworkPolicy")}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    entrances = {name: spec["ingress"] for name, spec in policies.items() if "ingress" in spec}
    assert list(entrances) == ["spark"]
    assert all("podSelector" in source for rule in entrances["spark"] for source in rule["from"])
    exits = {
        name: sorted((port["protocol"], port["port"]) for rule in spec["egress"] for port in rule.get("ports", ()))
        for name, spec in policies.items()
    }
    assert exits == {
        "dns": [("TCP", 53), ("UDP", 53)],
        "spark": [],
        "kubernetes-api": [("TCP", 6443)],
        "vps-1": [("TCP", 5432), ("TCP", 7070)],
        "vps-3": [("TCP", 8123), ("TCP", 8124)],
    }
    for name in ("kubernetes-api", "vps-1", "vps-3"):
        for rule in policies[name]["egress"]:
            assert all(to["ipBlock"]["cidr"].endswith("/32") for to in rule["to"])
    # a rule without `to` or a pod selector that is empty would open the namespace
    assert all(rule["to"] for spec in policies.values() for rule in spec["egress"])
