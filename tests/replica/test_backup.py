"""vps_1's stores lose their volumes while something commits: what docker/host/backup brought away comes back.

Only the stores of vps_1 run here, as a Compose project of the tests' own, with a repository of restic in a folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hosts_network import await_true, docker, why_no_docker

from support.network_flows import PROJECT
from trilake.platform.hosts import environment

NAME = "trilake-backup-test"
SUBNET = "10.77.248.0/24"
STORES = ("metadata", "postgres", "s3", "wal-metadata", "wal-postgres")
SETUP = ("setup-volumes", "setup-databases", "setup-s3")
LOST = ("metadata", "postgres", "s3", "wal", "vpn_pki")
INSIDE = Path(__file__).parent / "inside"
HEALTHY_S = 600


@dataclass(frozen=True)
class Stores:
    """:param env_file: its ``.env``; `state`: the folder of the programs' results."""

    env_file: Path
    state: Path
    repository: Path

    def compose(self, *arguments: str, stdin: str | None = None, seconds: float = 300) -> str:
        known = [
            "compose",
            "--project-directory",
            str(PROJECT),
            "--project-name",
            NAME,
            "--env-file",
            str(self.env_file),
        ]
        return docker(*known, "--file", str(PROJECT / "docker-compose.yml"), *arguments, stdin=stdin, seconds=seconds)

    def up(self) -> None:
        self.compose("up", "--detach", *SETUP, *STORES, seconds=HEALTHY_S)
        for store in STORES:
            await_true(lambda store=store: self.health(store) == "healthy", HEALTHY_S, f"{store} to be healthy")  # type: ignore[misc]

    def volume(self, name: str, *, make: bool = False) -> Path:
        if make:
            docker("volume", "create", f"{NAME}_{name}")
        return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{NAME}_{name}"))

    def health(self, service: str) -> str:
        container = self.compose("ps", "--all", "--quiet", service)
        state = json.loads(docker("inspect", container))[0]["State"]
        return str((state.get("Health") or {}).get("Status"))

    def lose(self) -> None:
        """As if the disk was lost: services are killed, and their volumes removed."""
        self.compose("kill")
        self.compose("down", "--timeout", "0")
        for name in LOST:
            docker("volume", "rm", f"{NAME}_{name}")

    def program(self, verb: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(PROJECT / "docker" / "host" / verb), *arguments, **environ)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "COMPOSE_PROJECT_NAME": NAME,
            "TRILAKE_SETTINGS": str(self.env_file),
            "TRILAKE_BACKUP_STATE": str(self.state),
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "of the tests",
        }
        return subprocess.run(
            command, env=os.environ | settings | environ, capture_output=True, text=True, timeout=1200, check=False
        )

    def succeed(self, verb: str, *arguments: str) -> dict[str, Any]:
        """Run a program, and return its result as monitoring reads it."""
        done = self.program(verb, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads((self.state / f"{verb}.json").read_text())
        assert found["ok"]
        return found

    def inside(self, program: str, *options: str) -> list[str]:
        """The command that runs a program of tests/replica/inside with Airflow's connections."""
        return [
            "run",
            "--rm",
            "--no-deps",
            *options,
            "-T",
            "setup-tables",
            "python",
            "-c",
            (INSIDE / program).read_text(),
        ]

    def committed(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.compose(*self.inside("committed.py", "--rm")))
        return found


class Writer:
    """Commits until it is ended."""

    def __init__(self, stores: Stores) -> None:
        self._name = f"{NAME}-writer"
        docker("rm", "--force", self._name)
        stores.compose(*stores.inside("commits.py", "--detach", "--name", self._name))

    def lines(self) -> list[tuple[datetime, int]]:
        """When each commit was acknowledged, and its number."""
        told = [line.split() for line in docker("logs", self._name).splitlines() if line.startswith("20")]
        return [(datetime.fromisoformat(at), int(number)) for at, number in told]

    def await_commits(self, number: int) -> None:
        wanted = len(self.lines()) + number
        await_true(lambda: len(self.lines()) >= wanted, 120, f"{number} commits")

    def acknowledged(self, until: datetime) -> int:
        return max((number for at, number in self.lines() if at <= until), default=0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    if why := why_no_docker():
        pytest.skip(why)
    if not shutil.which("restic") or os.geteuid() != 0:
        pytest.skip("restic is not installed, or this is not root")
    folder = tmp_path_factory.mktemp("backup")
    env_file = folder / "env"
    environment.write(env_file, environment.replica_settings(SUBNET) | {"UI_PORT": "18099", "VPN_PORT": "11999"})
    made = Stores(env_file, folder / "state", folder / "repository")
    subprocess.run(
        ["restic", "init"],
        env=os.environ | {"RESTIC_REPOSITORY": str(made.repository), "RESTIC_PASSWORD": "of the tests"},
        check=True,
        capture_output=True,
    )
    try:
        made.up()
        yield made
    finally:
        docker("rm", "--force", f"{NAME}-writer")
        made.compose("down", "--volumes", "--timeout", "5")
        docker("volume", "rm", "--force", f"{NAME}_vpn_pki")  # Compose removes only volumes of services that it made


@pytest.mark.rotates(6)
def test_stores_that_lose_their_volumes_come_back_with_what_was_committed_before_the_last_backup(
    stores: Stores,
) -> None:
    pki = stores.volume("vpn_pki", make=True)
    (pki / "crl").write_text("nobody is revoked")
    writer = Writer(stores)
    writer.await_commits(3)
    first = stores.succeed("backup")
    writer.await_commits(5)
    middle = datetime.now(UTC)
    writer.await_commits(5)
    (pki / "crl").write_text("somebody is revoked")
    (stores.volume("s3") / "identities" / "of_the_test").touch()
    last = stores.succeed("backup")
    writer.await_commits(2)
    acknowledged = {at: writer.acknowledged(datetime.fromisoformat(str(at))) for at in (first["until"], last["until"])}
    in_the_middle = writer.acknowledged(middle)
    stores.compose("kill", *STORES)  # the moment of the loss
    lost_at = datetime.now(UTC)
    docker("rm", "--force", f"{NAME}-writer")

    # a drill needs nothing of the platform
    stores.lose()
    drilled = stores.succeed("drill")
    assert drilled["counts"]["tables"] == 1
    assert drilled["named_files"] > acknowledged[first["until"]]

    settings = stores.env_file.read_text()
    stores.env_file.unlink()
    restored = stores.succeed("restore")
    assert stores.env_file.read_text() == settings
    assert stat.S_IMODE(stores.env_file.stat().st_mode) == 0o600
    stores.up()
    held = stores.committed()
    assert held["lake"] >= acknowledged[last["until"]]
    assert 0 <= held["lake"] - held["oltp"] <= 1
    assert (lost_at - datetime.fromisoformat(last["until"])).total_seconds() < 300
    assert restored["named_files"] > held["lake"]

    # a moment between two backups; the data that is there is moved aside
    stores.compose("down", "--timeout", "5")
    refused = stores.program("restore", "--at", middle.isoformat())
    assert "have data. Give --replace" in refused.stderr
    stores.succeed("restore", "--at", middle.isoformat(), "--replace")
    stores.up()
    held = stores.committed()
    assert in_the_middle <= held["lake"] <= in_the_middle + 1
    # what was revoked after that moment stays revoked
    assert (stores.volume("vpn_pki") / "crl").read_text() == "somebody is revoked"
    assert (stores.volume("s3") / "identities" / "of_the_test").exists()

    # and it goes on: commits, another base backup on the new timeline, another restore
    writer = Writer(stores)
    writer.await_commits(3)
    again = stores.succeed("backup", "--base")
    acknowledged_again = writer.acknowledged(datetime.fromisoformat(again["until"]))
    stores.lose()
    stores.succeed("restore")
    stores.up()
    assert stores.committed()["lake"] >= acknowledged_again


@pytest.mark.rotates(6)
def test_if_the_server_dropped_wal_that_was_not_received_a_new_base_backup_begins_behind_it(stores: Stores) -> None:
    stores.up()
    stores.succeed("backup")
    bases = stores.volume("wal") / "postgres" / "base"
    before = sorted(path.name for path in bases.iterdir())
    stores.compose("stop", "wal-postgres")
    psql = 'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U postgres -Xtc "$1"'
    for statement in (
        "SELECT pg_drop_replication_slot('backup')",
        *["SELECT pg_current_xact_id(), pg_switch_wal()", "CHECKPOINT"] * 4,
    ):
        stores.compose("exec", "-T", "postgres", "sh", "-c", psql, "sh", statement)
    stores.compose("start", "wal-postgres")
    done = stores.program("backup")
    assert done.returncode == 0, done.stderr
    assert "a new base backup begins behind it" in done.stdout
    assert sorted(path.name for path in bases.iterdir())[-1] > before[-1]
    assert "base backup" not in stores.program("backup").stdout
    assert stores.succeed("drill")["counts"]


# ends the process before it renames a folder of a volume for the nth time
KILLED_AT = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
left, rename = int(sys.argv[2]), pathlib.Path.rename
def counted(path, target):
    global left
    left -= path.name.startswith("_data")
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
pathlib.Path.rename = counted
from trilake_backup.machine import Machine
from trilake_backup.restore import restore
restore(Machine.from_environment(), replace=True)
"""


@pytest.mark.rotates(6)
def test_a_restore_that_was_killed_between_volumes_is_repeated_and_no_backup_is_made_before(stores: Stores) -> None:
    stores.up()
    writer = Writer(stores)
    writer.await_commits(2)
    last = stores.succeed("backup")
    acknowledged = writer.acknowledged(datetime.fromisoformat(last["until"]))
    docker("rm", "--force", f"{NAME}-writer")
    stores.compose("down", "--timeout", "5")
    for step in ("1", "4"):
        killed = stores.run(sys.executable, "-c", KILLED_AT, str(PROJECT / "docker" / "host"), step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "A restore was interrupted" in stores.program("backup").stderr
    stores.succeed("restore", "--replace")
    stores.up()
    assert stores.committed()["lake"] >= acknowledged
    stores.succeed("backup", "--base")


@pytest.mark.rotates(6)
def test_the_user_of_backups_enters_no_database(stores: Stores) -> None:
    stores.up()
    text = (INSIDE / "postgres_rights.py").read_text()
    found = json.loads(stores.compose("run", "--rm", "--no-deps", "-T", "setup-databases", "python", "-c", text))
    assert [name for name, entered in found.items() if entered and name.startswith("backup")] == []
    assert [name for name, entered in found.items() if entered and name.startswith("lake")] == ["lake@5432/lake"]


@pytest.mark.rotates(6)
def test_what_stops_a_backup_is_named_in_its_result(stores: Stores) -> None:
    stores.up()
    stores.succeed("backup")
    stores.compose("stop", "wal-postgres")
    done = stores.program("backup", "--base")
    assert done.returncode == 1
    assert "wal-postgres does not run" in done.stderr
    result = json.loads((stores.state / "backup.json").read_text())
    assert not result["ok"]
    assert "wal-postgres" in result["error"]
    assert result["last_success"]
    stores.compose("start", "wal-postgres")
    assert "runs. Stop all services first" in stores.program("restore").stderr
    assert "RESTIC_REPOSITORY is not set" in stores.program("drill", RESTIC_REPOSITORY="").stderr
