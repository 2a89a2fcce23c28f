"""`trilake vpn` on a machine without the VPN, and how it names the compose project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilake.platform.hosts.containers import project_name
from trilake.platform.hosts.vpn import VpnError, _write

PROJECT = Path(__file__).parents[2]


def test_without_docker_one_line_says_where_to_call_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins"), "PATH": str(tmp_path)}
    program = "from trilake.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", program, "vpn", "list"], capture_output=True, text=True, env=environment, check=False
    )

    assert done.returncode == 1
    assert done.stderr == "trilake: There is no docker on this machine. Run this on vps_1.\n"


def test_the_project_is_named_by_the_environment_or_env_file_or_is_trilake(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert project_name({}, file) == "trilake"
    file.write_text("COMPOSE_PROJECT_NAME=mine\n")
    assert project_name({}, file) == "mine"
    assert project_name({"COMPOSE_PROJECT_NAME": "another"}, file) == "another"


def test_a_profile_appears_whole_and_only_where_nothing_is(tmp_path: Path) -> None:
    file = tmp_path / "alice.ovpn"

    _write(file, "profile")
    _write(file, "profile")
    with pytest.raises(VpnError, match="is another profile"):
        _write(file, "another")

    assert file.read_text() == "profile"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
