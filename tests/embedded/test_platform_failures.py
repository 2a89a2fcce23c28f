"""What is in the way of a platform is said in one line that tells what to do, and the exit code is 1."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from support.running_platform import run_trilake
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import LOOPBACK, Home


def refused(home: Path, *arguments: str, **environ: str) -> str:
    """What the command said when it failed: one line."""
    done = run_trilake(home, *arguments, **environ)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("trilake: ")]
    assert len(errors) == 1
    assert done.stderr.endswith(errors[0] + "\n"), done.stderr
    return errors[0]


def test_a_remembered_port_taken_by_a_stranger_is_named(fresh_home: Home) -> None:
    fresh_home.prepare()
    with socket.socket() as stranger:
        stranger.bind((LOOPBACK, 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        fresh_home.config("ports.json").write_text(json.dumps({"clickhouse": port}))
        told = refused(fresh_home.path, "up")
    assert f"Port {port} of clickhouse in " in told
    assert f"(process {os.getpid()})" in told
    assert "ports.json" in told
    assert processes.find(fresh_home) == {}


def test_a_home_that_cannot_be_written(fresh_home: Home) -> None:
    for home in (Path("/proc/trilake"), Path("/dev/null/home")):
        told = refused(home, "up")
        assert f"{home} cannot be written" in told
        assert "Set TRILAKE_HOME" in told


def test_no_java_and_none_to_be_had(fresh_home: Home, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    nothing = {
        "JAVA_HOME": "",
        "XDG_CACHE_HOME": str(tmp_path),
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(tmp_path / "uv"),
    }
    told = refused(fresh_home.path, "up", PATH=str(tools), **nothing)
    assert "Java 17 or 21 was not found" in told
    assert "openjdk-17-jre-headless" in told
    assert list((tmp_path / "trilake").rglob("java")) == [], "half an installation was kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another user only where ours is root")
def test_as_root_a_home_that_postgresql_cannot_get_to(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    told = refused(closed / "home", "up")
    assert "the OS user pgserver cannot reach the platform's home" in told
    assert "Run `chmod o+x " in told


def test_commands_that_need_a_platform_say_that_there_is_none(fresh_home: Home) -> None:
    for command in (["sql", "SELECT 1"], ["psql", "SELECT 1"]):
        assert "Start it with `trilake up`" in refused(fresh_home.path, *command)
    assert "Start it with `trilake up`" in refused(fresh_home.path, "logs", "postgres")
    assert run_trilake(fresh_home.path, "down").stdout == "Nothing was running.\n"
    services = json.loads(run_trilake(fresh_home.path, "status", "--json").stdout)["services"]
    assert {service["state"] for service in services} == {"stopped"}
    assert not fresh_home.path.exists(), "looking at it has made it"


def test_queries_to_a_platform_that_is_down_say_how_to_start_it(fresh_home: Home) -> None:
    from trilake.platform.embedded import connections
    from trilake.platform.embedded.java import Java

    fresh_home.prepare()
    connections.write(fresh_home, Java(Path("/usr"), 17), Path("/nowhere"))
    for command in (("sql", "SELECT 1"), ("psql", "SELECT 1"), ("publications",), ("migrate",), ("jobs", "push")):
        told = refused(fresh_home.path, *command)
        assert "`trilake status` shows" in told


def test_a_service_that_dies_at_start_is_named_with_the_end_of_its_log(fresh_home: Home) -> None:
    fresh_home.prepare()
    data = fresh_home.data("postgres")
    data.mkdir()
    (data / "PG_VERSION").write_text("9\n")
    if os.geteuid() == 0:
        shutil.chown(data, "pgserver", "pgserver")
        shutil.chown(data / "PG_VERSION", "pgserver", "pgserver")
    data.chmod(0o700)
    done = run_trilake(fresh_home.path, "up")
    assert done.returncode == 1
    assert "trilake: postgres ended with exit code" in done.stderr
    assert str(data) in done.stderr, "the log's last lines are missing"
    assert "See `trilake logs postgres`" in done.stderr
    assert lifecycle.down(fresh_home)


def test_an_unknown_project_folder(tmp_path: Path) -> None:
    told = refused(tmp_path, "up", TRILAKE_PROJECT=str(tmp_path))
    assert "which is not a Trilake project" in told
