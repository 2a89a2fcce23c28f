"""An .env that lacks something: Compose starts nothing and says what in one line, for the replica and for each host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from flows import PROJECT
from hosts_network import why_no_docker

from trilake.hosts import environment

# What somebody needs who comes in, and no host.
OF_NO_HOST = {v.name for v in environment.VARIABLES if not v.hosts}
HOSTS_FILES = {"vps_1": "docker/vps_1/compose.yml", "vps_3": "docker/vps_3/compose.yml"}


def written(place: str, folder: Path) -> tuple[str, str, set[str]]:
    """Compose file, text of its .env as `trilake env` writes it, and the variables that it cannot do without."""
    file = folder / "whole"
    if place == "replica":
        environment.write(file, environment.replica_settings())
        return "docker-compose.yml", file.read_text(), set(environment.read(file)) - OF_NO_HOST - {"DAG_BUNDLE"}
    environment.write(file, environment.host_settings(["10.110.0.2", "10.110.0.3", "10.110.0.4"]))
    needed = {v.name for v in environment.VARIABLES if place in v.hosts}
    return HOSTS_FILES[place], environment.part(environment.read(file), place), needed


@pytest.mark.parametrize("place", ["replica", *HOSTS_FILES])
def test_a_missing_variable_is_one_line_that_names_it(place: str, tmp_path: Path) -> None:
    if why := why_no_docker():
        pytest.skip(why)
    file, text, needed = written(place, tmp_path)
    env = tmp_path / ".env"

    def asked(lines: str) -> tuple[int, str]:
        env.write_text(lines)
        command = ["docker", "compose", "--env-file", str(env), "--file", file, "config", "--quiet"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr.strip()

    assert asked(text) == (0, "")
    assert needed
    for name in sorted(needed):
        code, told = asked("".join(line for line in text.splitlines(True) if not line.startswith(f"{name}=")))
        assert code != 0, name
        assert f"required variable {name} is missing a value: write .env with `trilake env`" in told
        assert told.count("\n") == 0, told
