"""What Compose itself makes of the files, for the replica and for each host: no container is started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hosts_network import why_no_docker

from support.compose_rules import problems_of_rendered
from support.network_flows import PROJECT
from trilake.platform.hosts import environment

# What somebody needs who comes in, and no host.
OF_NO_HOST = {v.name for v in environment.VARIABLES if not v.hosts}
HOSTS_FILES = {"vps_1": "docker/vps_1/compose.yml", "vps_3": "docker/vps_3/compose.yml"}


@pytest.fixture(autouse=True)
def compose() -> None:
    if why := why_no_docker():
        pytest.skip(why)


def written(place: str, folder: Path) -> tuple[str, str, set[str]]:
    """Compose file, text of its .env as `trilake env` writes it, and the variables that it cannot do without."""
    file = folder / "whole"
    if place == "replica":
        environment.write(file, environment.replica_settings())
        return "docker-compose.yml", file.read_text(), set(environment.read(file)) - OF_NO_HOST - {"DAG_BUNDLE"}
    environment.write(file, environment.host_settings(["10.110.0.2", "10.110.0.3", "10.110.0.4"]))
    needed = {v.name for v in environment.VARIABLES if place in v.hosts}
    return HOSTS_FILES[place], environment.part(environment.read(file), place), needed


def rendered(file: str, env: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    (folder / ".env").write_text(env)
    command = ["docker", "compose", "--env-file", str(folder / ".env"), "--file", file, "config", "--format", "json"]
    known = {name: value for name, value in os.environ.items() if name != "TRILAKE_PROJECT"}
    return subprocess.run(
        command, cwd=PROJECT, env=known | environ, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("place", ["replica", *HOSTS_FILES])
def test_every_service_keeps_every_rule_as_it_is_rendered(place: str, tmp_path: Path) -> None:
    file, text, _ = written(place, tmp_path)
    services: dict[str, Any] = json.loads(rendered(file, text, tmp_path).stdout)["services"]
    assert services
    assert [line for name, service in services.items() for line in problems_of_rendered(name, service)] == []
    network = {name: service.get("network_mode", "") for name, service in services.items()}
    own = {name for name, mode in network.items() if mode == "host"}
    # in the replica nothing is in this machine's own network; on a host everything is but what needs none
    assert own == (set() if place == "replica" else {name for name, mode in network.items() if mode != "none"})


@pytest.mark.parametrize("place", ["replica", *HOSTS_FILES])
def test_a_missing_variable_is_one_line_that_names_it(place: str, tmp_path: Path) -> None:
    file, text, needed = written(place, tmp_path)
    assert rendered(file, text, tmp_path).stderr == ""
    assert needed
    for name in sorted(needed):
        rest = "".join(line for line in text.splitlines(True) if not line.startswith(f"{name}="))
        done = rendered(file, rest, tmp_path)
        told = done.stderr.strip()
        assert done.returncode != 0, name
        assert f"required variable {name} is missing a value: write .env with `trilake env`" in told
        assert told.count("\n") == 0, told


@pytest.mark.parametrize("place", ["replica", "vps_1"])
@pytest.mark.parametrize("by", ["environment", ".env", "default"])
def test_the_project_that_is_mounted_is_the_one_that_is_named(place: str, by: str, tmp_path: Path) -> None:
    """Its DAGs, jobs and SQL, and nothing of it in any image."""
    file, text, _ = written(place, tmp_path)
    team = tmp_path / "shop"
    line = f"TRILAKE_PROJECT={team}\n" if by == ".env" else ""
    environ = {"TRILAKE_PROJECT": str(team)} if by == "environment" else {}
    services = json.loads(rendered(file, text + line, tmp_path, **environ).stdout)["services"]
    mounted = {
        name: {volume["target"]: volume["source"] for volume in service.get("volumes", ()) if volume["type"] == "bind"}
        for name, service in services.items()
    }
    root = PROJECT if by == "default" else team
    for service, parts in {
        "airflow-dag-processor": ["dags", "sql"],
        "setup-tables": ["pyproject.toml", "sql"],
        "setup-deploy": ["pyproject.toml", "dags", "spark_jobs", "sql"],
    }.items():
        assert mounted[service] == {f"/opt/trilake/project/{part}": str(root / part) for part in parts}
