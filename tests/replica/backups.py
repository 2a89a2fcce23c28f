"""The programs of docker/host on a whole replica: backups as the timer makes them, the loss of vps_1's disk, a restore.

While backups run, an observer notes what the servers and the store acknowledged, and when. So after a restore a test
knows what must be there again: all that was seen before the last backup.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from hosts_network import await_true, docker
from whole_replica import Replica

from support.network_flows import PROJECT
from trilake_backup.machine import Machine
from trilake_backup.recovery import TABLES, check_files

PROGRAMS = PROJECT / "docker" / "host"
# What `docker compose down` and the loss of its disk leave of vps_1 is nothing of these.
VOLUMES = ("metadata", "postgres", "s3", "wal", "vpn_pki", "kubernetes", "bundle", "bundles", "airflow-logs")
# Seconds between the end of a backup and the next one
_PAUSE_S = 5
_LAKE = """
SELECT json_build_object(
  'metadata', (SELECT coalesce(json_agg(json_build_array(table_name, metadata_location)), '[]') FROM iceberg_tables),
  'publication', (SELECT coalesce(json_agg(json_build_array(table_name, partition, fence)), '[]') FROM publications
                  WHERE state = 'done'))"""
_AIRFLOW = """
SELECT json_build_object(
  'run', (SELECT coalesce(json_agg(json_build_array(dag_id, run_id)), '[]') FROM dag_run),
  'task', (SELECT coalesce(json_agg(json_build_array(dag_id, run_id, task_id)), '[]') FROM task_instance
           WHERE state = 'success'))"""
_STATES = "SELECT coalesce(json_agg(json_build_array(task_id, state)), '[]') FROM task_instance WHERE run_id = '{run}'"

# kind, and what names it, such as ("publication", "flights", "2013-02", "3")
Fact = tuple[str, ...]


@dataclass(frozen=True)
class Backups:
    """:param folder: the repository, and the folder of the programs' results."""

    replica: Replica
    folder: Path

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "COMPOSE_PROJECT_NAME": self.replica.project,
            "TRILAKE_BACKUP_STATE": str(self.folder / "state"),
            "RESTIC_REPOSITORY": str(self.folder / "repository"),
            "RESTIC_PASSWORD": "of the tests",
        }

    def run(self, *command: str, seconds: float = 1800) -> str:
        done = subprocess.run(
            command, cwd=PROJECT, env=self._environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def result(self, program: str) -> dict[str, Any]:
        """As monitoring reads it."""
        found: dict[str, Any] = json.loads((self.folder / "state" / f"{program}.json").read_text())
        return found

    def restore(self) -> str:
        """`make restore`, with the Compose files of the replica in the place of those of the host alone."""
        return self.run("make", "restore", "COMPOSE_VPS_1=docker compose")

    @contextmanager
    def timer(self) -> Iterator[Timer]:
        """Back up again and again until the block ends, or until it is killed."""
        timer = Timer(self)
        await_true(lambda: timer.last, 120, "what was acknowledged before the first backup")
        timer.thread.start()
        try:
            yield timer
        finally:
            timer.end()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(PROGRAMS / "backup")],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def volume(self, name: str) -> Path:
        return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.replica.project}_{name}"))

    def ask(self, server: str, query: str) -> Any:
        """The answer of a query with one row and one column, as JSON."""
        database, port = {"metadata": ("airflow", 5433), "postgres": ("lake", 5432)}[server]
        script = 'export PGPASSWORD="$POSTGRES_PASSWORD"; exec psql -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 "$@"'
        where = ("-p", str(port), "-U", "postgres", "-d", database, "-c", query)
        container = f"{self.replica.project}-{server}-1"
        return json.loads(docker("exec", container, "sh", "-c", script, "sh", *where))

    def states_of(self, run: str) -> dict[str, str]:
        """The state of each task of a run that has begun or ended."""
        return {task: state for task, state in self.ask("metadata", _STATES.format(run=run)) if state}

    def facts(self) -> set[Fact]:
        """What the servers of vps_1 have acknowledged, and the source's objects in its store with their sizes."""
        found = {
            (kind, *map(str, fact))
            for server, query in (("postgres", _LAKE), ("metadata", _AIRFLOW))
            for kind, facts in self.ask(server, query).items()
            for fact in facts
        }
        raw = self.volume("s3") / "buckets" / "raw"  # jobs may remove their files of the lake, those of dead tries
        for parent, _, names in os.walk(raw):
            for name in names:
                with suppress(FileNotFoundError):
                    path = Path(parent, name)
                    found.add(("object", str(path.relative_to(raw)), str(path.stat().st_size)))
        return found

    def check_named_files(self) -> int:
        """Check that each file that the current snapshots name is there with its size. Returns how many they are."""
        machine = Machine(self.replica.project, PROJECT / ".env", self.folder / "state")
        named = self.ask("postgres", TABLES)
        return check_files(machine, named, self.volume("s3") / "buckets")

    def missing(self, facts: set[Fact]) -> set[Fact]:
        """Those of the facts that are not there any more, and that nothing later has replaced."""
        now = self.facts()
        fences: dict[tuple[str, str], int] = {}
        for kind, *named in now:
            if kind == "publication":
                table, partition, fence = named
                fences[table, partition] = max(int(fence), fences.get((table, partition), 0))
        history = {("metadata", table, location) for table, location in self._metadata_of_tables()}
        gone = facts - now - history
        return {f for f in gone if not (f[0] == "publication" and fences.get((f[1], f[2]), 0) >= int(f[3]))}

    def _metadata_of_tables(self) -> Iterator[tuple[str, str]]:
        """Each metadata file that a table has had, by the file that the catalog names."""
        for table, location in self.ask("postgres", _LAKE)["metadata"]:
            document = json.loads((self.volume("s3") / "buckets" / location.partition("://")[2]).read_bytes())
            for entry in document["metadata-log"]:
                yield table, entry["metadata-file"]

    def lose(self) -> datetime:
        """vps_1's services are killed at once, and their volumes are gone. Returns when."""
        project, folder = self.replica.project, PROJECT / "docker" / "vps_1"
        files = [yaml.safe_load((folder / name).read_text()) for name in ("compose.yml", "openvpn.yml")]
        services = [name for file in files for name in file["services"]]
        running = self.replica.compose("ps", "--quiet", *services).split()
        lost_at = datetime.now(UTC)
        docker("kill", *running)
        for volume in VOLUMES:
            users = docker("ps", "--all", "--quiet", "--filter", f"volume={project}_{volume}").split()
            if users:
                docker("rm", "--force", *users)
            docker("volume", "rm", f"{project}_{volume}")
        return lost_at


@dataclass
class Timer:
    """Backups, one after the other, and what was acknowledged meanwhile.

    :param made: the results of the backups that succeeded.
    :param failed: the output of those that did not.
    :param seen: when each fact was seen first.
    :param last: the facts that were seen last.
    """

    backups: Backups
    made: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seen: dict[Fact, datetime] = field(default_factory=dict)
    last: set[Fact] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)
    _running: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.observer = threading.Thread(target=self._observe, daemon=True)
        self.observer.start()

    def _work(self) -> None:
        while not self._ended.is_set():
            self._running = self.backups.start()
            output, _ = self._running.communicate()
            if self._running.returncode == 0:
                self.made.append(self.backups.result("backup"))
            elif not self._ended.is_set():
                self.failed.append(output)
            self._ended.wait(_PAUSE_S)

    def _observe(self) -> None:
        while not self._ended.is_set():
            with suppress(AssertionError, OSError, ValueError):  # a server that was killed just now
                found = self.backups.facts()
                now = datetime.now(UTC)
                self.last = found
                for fact in found:
                    self.seen.setdefault(fact, now)
            self._ended.wait(0.2)

    def kill(self) -> None:
        """As if the machine died: a backup that runs is not completed, and none begins."""
        self._ended.set()
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.thread.join()
        self.observer.join()

    def must_be_there(self) -> set[Fact]:
        """What was seen before the last backup, and was not removed since."""
        if not self.made:
            return set()
        until, began = (datetime.fromisoformat(self.made[-1][name]) for name in ("until", "began"))
        return {f for f in self.last if self.seen[f] <= (began if f[0] == "object" else until)}
