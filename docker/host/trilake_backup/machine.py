"""What the programs use of the host: Docker, its volumes, restic, and a folder for their results."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]
STATE = Path("/var/lib/trilake-backup")
POSTGRES_IMAGE = "postgres:17"
AIRFLOW_IMAGE = "trilake/airflow:3.3.2"
# Server (also its service and its volume) -> its port, and the databases that its facts are counted in.
SERVERS: Mapping[str, int] = {"metadata": 5433, "postgres": 5432}
# Other volumes of vps_1 in a backup, by the kind of their snapshot. The moment of a restore does not matter for them.
FOLDERS: Mapping[str, str] = {"pki": "vpn_pki", "kubernetes": "kubernetes", "bundle": "bundle"}
# restic: some files could not be read
_INCOMPLETE = 3


class BackupError(Exception):
    """It did not work. The message names the thing and the next step."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the repository.

    :param until: up to which time it can be restored; None if the tag is missing.
    """

    id: str
    kind: str
    run: str
    until: datetime | None


@dataclass(frozen=True)
class Machine:
    """:param project: Compose's name of the platform.
    :param settings: the host's ``.env``.
    :param state: a folder that only root can read: results, and what a restore unpacks.
    """

    project: str
    settings: Path
    state: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Machine:
        return cls(
            environ.get("COMPOSE_PROJECT_NAME", "trilake"),
            Path(environ.get("TRILAKE_SETTINGS", CHECKOUT / ".env")),
            Path(environ.get("TRILAKE_BACKUP_STATE", STATE)),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One program at a time.

        :raises BackupError: another one runs.
        """
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self.state / "lock", os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError("Another backup, restore or drill runs. Wait until it has ended.") from None
            yield

    @contextmanager
    def reporting(self, what: str) -> Iterator[dict[str, Any]]:
        """Write the result of a block, or its error, to ``<what>.json``. Monitoring reads this file."""
        path = self.state / f"{what}.json"
        last: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        began = datetime.now(UTC)
        result: dict[str, Any] = {
            "began": began.isoformat(timespec="seconds"),
            "last_success": last.get("last_success"),
        }
        try:
            yield result
            result |= {"ok": True, "last_success": datetime.now(UTC).isoformat(timespec="seconds")}
        except BaseException as e:
            result |= {"ok": False, "error": str(e) or type(e).__name__}
            raise
        finally:
            result["seconds"] = round((datetime.now(UTC) - began).total_seconds(), 1)
            write(path, json.dumps(result, indent=2))

    @property
    def unfinished_restore(self) -> Path:
        """Exists while a restore exchanges volumes. If it was interrupted then, some volumes are old."""
        return self.state / "restoring"

    # --- Docker

    def container(self, service: str) -> str:
        """The id of a service's running container; empty if none runs."""
        filters = {"project": self.project, "service": service}
        labels = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in filters.items()]
        return run("docker", "ps", "--quiet", *labels).strip()

    def volume(self, name: str, *, make: bool = False) -> Path:
        """The folder of a volume.

        :raises BackupError: there is no such volume.
        """
        full = f"{self.project}_{name}"
        if make:
            labels = {"project": self.project, "volume": name}
            options = [f"--label=com.docker.compose.{key}={value}" for key, value in labels.items()]
            run("docker", "volume", "create", *options, full)
        try:
            return Path(run("docker", "volume", "inspect", "--format", "{{.Mountpoint}}", full).strip())
        except BackupError:
            raise BackupError(
                f"There is no volume {full}. Start vps_1's services first (docs/operations/hosts.md)."
            ) from None

    def psql(self, container: str, server: str, query: str, database: str = "postgres", *, host: str = "") -> Any:
        """The answer of a query with one row and one column, as JSON."""
        # the container's own environment has the password: it is in no argument
        script = 'export PGPASSWORD="${POSTGRES_PASSWORD-}"; exec psql "$@"'
        where = ["--host", host or "127.0.0.1", "--port", str(SERVERS[server]), "--username", "postgres"]
        command = ["sh", "-c", script, "psql", "-XAtq", "--set=ON_ERROR_STOP=1", *where, "--dbname", database]
        return json.loads(run("docker", "exec", container, *command, "--command", query))

    # --- restic

    def restic(self, *arguments: str, cwd: Path | None = None, stdin: str | None = None) -> str:
        """:raises BackupError: restic failed. Its address and password are in the environment."""
        if not os.environ.get("RESTIC_REPOSITORY"):
            raise BackupError(
                "RESTIC_REPOSITORY is not set. Write /etc/trilake/backup.env (docs/operations/backup.md)."
            )
        return run("restic", "--quiet", *arguments, cwd=cwd, stdin=stdin, accepted=(0, _INCOMPLETE))

    def save(self, kind: str, run_name: str, folder: Path, *options: str, until: datetime | None = None) -> None:
        """Make a snapshot of a folder. Paths in it begin below the folder, so it can be restored anywhere."""
        tags = [kind, f"run={run_name}", *([f"until={until.timestamp():.6f}"] if until else [])]
        named = [f"--tag={tag}" for tag in tags]
        self.restic("backup", "--host=vps-1", *named, *options, ".", cwd=folder)

    def save_text(self, kind: str, run_name: str, text: str) -> None:
        named = [f"--tag={kind}", f"--tag=run={run_name}", f"--stdin-filename={kind}"]
        self.restic("backup", "--host=vps-1", "--stdin", *named, stdin=text)

    def snapshots(self, kind: str) -> list[Snapshot]:
        """The snapshots of a kind, oldest run first."""
        found = []
        for one in json.loads(self.restic("snapshots", "--no-lock", "--json", f"--tag={kind}") or "null") or []:
            tags = dict(tag.split("=", 1) for tag in one["tags"] if "=" in tag)
            until = datetime.fromtimestamp(float(tags["until"]), UTC) if "until" in tags else None
            found.append(Snapshot(one["id"], kind, tags.get("run", ""), until))
        return sorted(found, key=lambda snapshot: snapshot.run)

    def newest(self, kind: str) -> Snapshot:
        """:raises BackupError: there is none."""
        if not (found := self.snapshots(kind)):
            raise BackupError(f"The repository {os.environ.get('RESTIC_REPOSITORY')} has no snapshot of {kind}.")
        return found[-1]

    def unpack(self, snapshot: Snapshot, target: Path, *options: str) -> None:
        self.restic("restore", "--no-lock", snapshot.id, f"--target={target}", *options)

    def say(self, text: str) -> None:
        print(text, flush=True)


def run(
    *command: str,
    cwd: Path | None = None,
    stdin: str | None = None,
    accepted: Sequence[int] = (0,),
) -> str:
    """The output of a command.

    :raises BackupError: it failed. The message has the end of its output, and not its arguments.
    """
    try:
        done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackupError(f"{command[0]} is not installed. `apt-get install {command[0]}` installs it.") from None
    if done.returncode not in accepted:
        told = " ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise BackupError(f"{' '.join(command[:2])} failed: {told}")
    return done.stdout


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, with mode 600."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
