"""A copy of the embedded PostgreSQL: made while it works, checked, recovered, and asked what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilake.endpoints import PostgresEndpoint
from trilake.lake.named_files import TABLES_QUERY
from trilake.platform.embedded import postgres
from trilake.platform.embedded.backup.store import BackupError
from trilake.platform.embedded.home import LOOPBACK, Home
from trilake.platform.embedded.processes import last_lines
from trilake.postgres.connection import connect

_START_S = 600  # a recovery reads all WAL of the copy
_POLL_S = 0.05
_REPORT_S = 5.0
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    # nobody but us works on it
    "max_connections": "10",
    "autovacuum": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_error_statement": "panic",
    # a copy is read and stopped; the caller syncs all files at the end
    "fsync": "off",
    # the copy keeps one WAL file, not those that the server would use next
    "wal_recycle": "off",
    "min_wal_size": "32MB",
    "cluster_name": "trilake-copy",
}


@dataclass(frozen=True)
class Facts:
    """What a copy of PostgreSQL holds.

    :param tables: Iceberg tables with the location of their metadata.
    :param publications: the ledger's rows.
    :param dag_runs: how many; `last_dag_run` is the highest id, `running` the ids and DAGs of those that had not ended.
    """

    system: str
    tables: tuple[tuple[str, str], ...]
    publications: int
    dag_runs: int
    last_dag_run: int
    running: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "tables": len(self.tables),
            "publications": self.publications,
            "dag_runs": self.dag_runs,
            "last_dag_run": self.last_dag_run,
            "running": list(self.running),
        }


def version(data: Path) -> str:
    """PostgreSQL's major version of a data folder."""
    return (data / "PG_VERSION").read_text().strip()


def copy_running(home: Home, target: Path, report: Callable[[str], None]) -> None:
    """Copy the running server by a base backup with its WAL, and compare each file with the server's checksums.

    :raises BackupError: the base backup failed, or a file is not the one that the server sent.
    """
    server = postgres.superuser(home.ports()["postgres"], home.secrets())
    command = [str(postgres.binaries() / "pg_basebackup"), "-h", LOOPBACK, "-p", str(server.port), "-U", server.user]
    command += ["-D", str(target), "--format=plain", "--wal-method=stream", "--checkpoint=fast", "--no-password"]
    command += ["--manifest-checksums=SHA256", "--no-sync"]
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGPASSWORD": server.password}
    with subprocess.Popen(
        _ends_with_us(command),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(_REPORT_S):
                report(f"copying, {folder_bytes(target) >> 20} MB")

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            _, errors = process.communicate()
        finally:
            ended.set()
            teller.join()
    if process.returncode:
        raise BackupError(
            f"PostgreSQL's base backup failed: {' '.join(errors.strip().splitlines()[-2:])}",
            hint="`trilake status` shows whether PostgreSQL runs. Run the backup again.",
        )
    _check_manifest(target)


def _check_manifest(target: Path) -> None:
    """Compare the files with the server's own list of them."""
    document = json.loads((target / "backup_manifest").read_bytes())
    for file in document["Files"]:
        path = target / (file["Path"] if "Path" in file else bytes.fromhex(file["Encoded-Path"]).decode())
        try:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            found = ""
        if found != file["Checksum"]:
            raise BackupError(
                f"PostgreSQL's base backup is damaged: {path.relative_to(target)} is not what the server sent.",
                hint="Check the disk, then run the backup again.",
            )
    (target / "backup_manifest").unlink()


def own(folder: Path) -> None:
    """As root: give the folder to PostgreSQL's OS user, because PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return
    user = postgres.os_user()
    os.chown(folder, user.pw_uid, user.pw_gid)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), user.pw_uid, user.pw_gid, follow_symlinks=False)


def examine(data: Path, secrets: Mapping[str, str]) -> Facts:
    """Recover a copy, ask what it holds, and stop it cleanly. The server has no port, and ends with this process.

    :param secrets: of the home that the copy is from.
    :raises BackupError: the server does not start.
    """
    with _server(data) as socket:

        def rows(database: str, query: str) -> list[tuple[Any, ...]]:
            password = secrets["postgres_superuser"]
            endpoint = PostgresEndpoint(str(socket), 5432, database, postgres.SUPERUSER, password)
            with connect(endpoint) as connection, connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()

        def exists(database: str, table: str) -> bool:
            return bool(rows(database, f"SELECT to_regclass('public.{table}') IS NOT NULL")[0][0])

        databases = {name for (name,) in rows("postgres", "SELECT datname FROM pg_database")}
        lake, airflow = "lake" in databases, "airflow" in databases and exists("airflow", "dag_run")
        tables = rows("lake", TABLES_QUERY) if lake and exists("lake", "iceberg_tables") else []
        publications = lake and exists("lake", "publications")
        counted = rows("airflow", "SELECT count(*), coalesce(max(id), 0) FROM dag_run")[0] if airflow else (0, 0)
        running = (
            rows(
                "airflow",
                "SELECT dag_id || ' ' || run_id FROM dag_run WHERE state IN ('running', 'queued') ORDER BY id",
            )
            if airflow
            else []
        )
        return Facts(
            system=str(rows("postgres", "SELECT system_identifier::text FROM pg_control_system()")[0][0]),
            tables=tuple((str(name), str(location)) for name, location in tables),
            publications=rows("lake", "SELECT count(*) FROM publications")[0][0] if publications else 0,
            dag_runs=counted[0],
            last_dag_run=counted[1],
            running=tuple(str(run) for (run,) in running),
        )


def dag_runs_after(data: Path, secrets: Mapping[str, str], last: int) -> int | None:
    """How many DAG runs a database has with a higher id than `last`. None: it does not start, or has no such table."""
    try:
        with _server(data) as socket:
            endpoint = PostgresEndpoint(str(socket), 5432, "airflow", postgres.SUPERUSER, secrets["postgres_superuser"])
            with connect(endpoint) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM dag_run WHERE id > %s", (last,))
                row = cursor.fetchone()
                return int(row[0]) if row else None
    except Exception:  # it may be damaged in any way: that is why a backup is restored
        return None


@contextmanager
def _server(data: Path) -> Iterator[Path]:
    """A server on a copy, reachable by a socket in the folder that this gives. It is stopped cleanly at the end."""
    user = postgres.os_user() if os.geteuid() == 0 else None
    socket = Path(tempfile.mkdtemp(prefix="trilake-copy-"))
    log = socket / "log"
    try:
        log.touch(mode=0o600)
        if user:
            for path in (socket, log):
                os.chown(path, user.pw_uid, user.pw_gid)
        (data / "postmaster.pid").unlink(missing_ok=True)
        settings = [
            f"--{name}={value}" for name, value in ({**_SETTINGS, "unix_socket_directories": str(socket)}).items()
        ]
        with (
            log.open("a") as output,
            subprocess.Popen(
                _ends_with_us([str(postgres.binaries() / "postgres"), "-D", str(data), *settings]),
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                cwd=socket,  # not the data folder: it is not the server of a home
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            ) as process,
        ):
            try:
                _wait_until_ready(process, data, log)
                yield socket
                process.send_signal(signal.SIGINT)
                if process.wait():
                    raise BackupError(f"PostgreSQL on the copy {data} did not stop cleanly: {_end_of(log)}")
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGQUIT)
    finally:
        shutil.rmtree(socket, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], data: Path, log: Path) -> None:
    until = time.monotonic() + _START_S
    # the eighth line is the server's state; it is padded with spaces
    while not _is_ready(data / "postmaster.pid"):
        if process.poll() is not None or time.monotonic() > until:
            raise BackupError(f"PostgreSQL does not start on the copy {data}: {_end_of(log)}")
        time.sleep(_POLL_S)


def _is_ready(pid_file: Path) -> bool:
    try:
        lines = pid_file.read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[7].strip() == "ready"


def _end_of(log: Path) -> str:
    return " ".join(line.strip() for line in last_lines(log, 3) if line.strip()) or "(no output)"


def _ends_with_us(command: list[str]) -> list[str]:
    """The command as one that the kernel ends when this process is killed, where `setpriv` (of Debian) is there."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "QUIT", "--", *command] if setpriv else command


def folder_bytes(folder: Path) -> int:
    """The size of all files. A file that goes away meanwhile does not count."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
