"""The compose files keep every rule of the house, and the rules can be broken."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from support.compose_rules import FILES, PROJECT, problems, read, variables
from trilake.platform.hosts.containers import PROJECT as PROJECT_NAME
from trilake.platform.hosts.environment import VARIABLES, host_settings, replica_settings
from trilake.spark.application import IMAGE

GOOD = """
services:
  store:
    image: example/store:1.2
    network_mode: ${VPS_1_NETWORK:-host}
    restart: unless-stopped
    read_only: true
    user: "7:7"
    cap_drop: [ALL]
    security_opt: [no-new-privileges:true]
    mem_limit: 64m
    logging: {driver: json-file, options: {max-size: 10m, max-file: "3"}}
    healthcheck: {test: [CMD, "true"]}
    environment:
      STORE_PASSWORD: ${STORE_PASSWORD:?is not set}
"""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_every_service_keeps_every_rule(file: Path) -> None:
    assert problems(file.read_text()) == []


@pytest.mark.parametrize(
    ("line", "instead", "rule"),
    [
        ("image: example/store:1.2", "image: example/store:latest", "tag"),
        ("image: example/store:1.2", "image: example/store", "tag"),
        ("restart: unless-stopped", "restart: always", "restart"),
        ("read_only: true", "read_only: false", "read_only"),
        ('user: "7:7"', "user: root", "user"),
        ("cap_drop: [ALL]", "privileged: true", "capabilities"),
        ("security_opt: [no-new-privileges:true]", "security_opt: []", "privileges"),
        ("mem_limit: 64m", "cpus: 1", "memory"),
        ("max-size: 10m, ", "", "logging"),
        ('healthcheck: {test: [CMD, "true"]}', "init: true", "healthcheck"),
        ('user: "7:7"', 'user: "7:7"\n    ports: ["8080:8080"]', "ports"),
        ("${STORE_PASSWORD:?is not set}", "${STORE_PASSWORD:-secret}", "secret"),
        ("${STORE_PASSWORD:?is not set}", "${STORE_PASSWORD}", "secret"),
        ("${STORE_PASSWORD:?is not set}", "secret", "secret"),
    ],
)
def test_a_service_that_breaks_a_rule_is_found(line: str, instead: str, rule: str) -> None:
    assert problems(GOOD) == []
    found = problems(GOOD.replace(line, instead))
    assert len(found) == 1
    assert f": {rule}: " in found[0]


def test_a_service_uses_its_hosts_network_or_none() -> None:
    for file in FILES[1:]:
        host = file.parent.name.upper()
        modes = {name: s.get("network_mode") for name, s in (read(file.read_text())["services"] or {}).items()}
        # this one runs in the replica only: it fetches what vps_2 cannot
        assert {modes.pop("setup-offline-bundle", "bridge")} == {"bridge"}
        assert set(modes.values()) <= {f"${{{host}_NETWORK:-host}}", "none"}, (file, modes)


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker/vps_1/compose.yml", "docker/vps_3/compose.yml"])
def test_a_host_and_the_replica_have_the_project_that_the_command_line_looks_for(file: str) -> None:
    """Without a name Compose takes the folder's, and a host's containers would be those of `vps_1`."""
    assert read((PROJECT / file).read_text())["name"] == f"${{COMPOSE_PROJECT_NAME:-{PROJECT_NAME}}}"


def test_the_document_puts_the_kubeconfig_into_the_volume_that_airflow_mounts() -> None:
    mounted = read((PROJECT / "docker" / "vps_1" / "compose.yml").read_text())["x-airflow"]["volumes"]
    volume = next(v.partition(":")[0] for v in mounted if ":/opt/trilake/kubernetes" in v)
    named = re.findall(r" -v (\w+):/kubernetes ", (PROJECT / "docs" / "operations" / "vps_2.md").read_text())
    assert named == [f"{PROJECT_NAME}_{volume}"]


def test_nothing_listens_on_every_address() -> None:
    for file in FILES:
        assert "0.0.0.0" not in file.read_text(), file


@pytest.mark.parametrize("name", ["metadata", "postgres"])
def test_postgresql_is_healthy_where_it_is_asked_and_not_on_its_socket(name: str) -> None:
    """For a new volume the image starts a server on the socket alone, and ends it again: who waits came too early."""
    service = read((PROJECT / "docker" / "vps_1" / "compose.yml").read_text())["services"][name]
    listens = [c.partition("=")[2] for c in service["command"] if c.startswith("-clisten_addresses=")]
    asked = service["healthcheck"]["test"]
    assert asked[asked.index("--host") + 1] in listens[0].split(",")


@pytest.mark.parametrize("host", ["vps_1", "vps_3"])
def test_a_hosts_part_of_the_environment_is_what_its_file_requires(host: str) -> None:
    text = (PROJECT / "docker" / host / "compose.yml").read_text()
    required = {name for name, rest in variables(text) if rest.startswith(":?")}
    given = {v.name for v in VARIABLES if host in v.hosts}
    assert required <= given
    assert {v.name for v in VARIABLES if host in v.hosts and v.kind != "address"} <= required


def test_agents_credentials_are_in_two_services_and_the_access_administrators_in_none() -> None:
    services = read((PROJECT / "docker" / "vps_1" / "compose.yml").read_text())["services"]

    def having(name: str) -> set[str]:
        return {service for service, document in services.items() if name in (document.get("environment") or {})}

    assert having("CLICKHOUSE_AGENTS_PASSWORD") == {"airflow-api-server", "airflow-scheduler"}
    assert having("S3_AGENTS_SECRET") == {"airflow-api-server", "airflow-scheduler", "setup-s3"}
    assert having("S3_AGENTS_SPARK_SECRET") == {"setup-s3"}
    assert having("LAKE_RO_PASSWORD") == {"setup-databases"}
    assert having("CLICKHOUSE_ACCESS_PASSWORD") == set()


def test_every_variable_that_a_file_uses_is_written_or_has_a_default() -> None:
    written = {v.name for v in VARIABLES} | set(replica_settings())
    for file in FILES:
        for name, rest in variables(file.read_text()):
            assert name in written or rest.startswith(":-"), f"{file.name} uses {name}, which nobody sets"


def test_the_replica_is_never_started_in_this_machines_own_network() -> None:
    """A privileged Kubernetes would be, of an .env that lacks one line."""
    required = {name for name, rest in variables((PROJECT / "docker-compose.yml").read_text()) if rest.startswith(":?")}
    assert {name for name in replica_settings() if name.endswith("_NETWORK")} <= required


def test_hosts_use_their_own_network_and_the_deployed_dags() -> None:
    settings = host_settings(["10.110.0.2", "10.110.0.3", "10.110.0.4"])
    assert not [name for name in settings if name.endswith("_NETWORK") or name == "DAG_BUNDLE"]


def test_a_tag_of_our_own_images_is_the_version_of_what_is_in_them() -> None:
    """YAML files cannot import a version, so each names it again."""
    versions = {
        "spark": IMAGE.rpartition(":")[2],
        "airflow": version("apache-airflow"),
        "host": version("trilake"),
        "openvpn": version("trilake"),
    }
    files = [
        *(PROJECT / "docker").rglob("*"),
        PROJECT / "docker-compose.yml",
        *(PROJECT / "tests/replica").glob("*.py"),
    ]
    tags = {
        (file.relative_to(PROJECT).as_posix(), image, tag)
        for file in files
        if (file.is_file() and file.suffix in (".yml", ".sh", ".py", ".md")) or file.name == "Dockerfile"
        for image, tag in re.findall(r"trilake/([a-z]+):([0-9][0-9.]*)", file.read_text(encoding="utf-8"))
    }
    assert len(tags) > 5
    assert {found for found in tags if found[2] != versions[found[1]]} == set()
