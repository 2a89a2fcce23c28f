"""The platform's home: one folder with all files of one embedded platform.

``config/`` has the services' configuration, ``data/`` their data, ``logs/`` their output, ``run/`` the files that are
needed only while they run, and ``connections.env`` the addresses and credentials of all services. Ports and passwords
are chosen once and stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import secrets
import shlex
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trilake.errors import ConfigurationError
from trilake.platform.private_files import write_private
from trilake.project import find_project

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
# The services that jobs, SQL and publications need. Each starts within seconds.
STORES = ("postgres", "s3", "clickhouse", "kubernetes")
SERVICES = (
    *STORES,
    "airflow-api-server",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
)
# The services with a port. Airflow's other three have none.
PORT_NAMES = ("postgres", "s3", "clickhouse", "kubernetes", "airflow-api-server")
# Below the kernel's ports for outgoing connections: such a connection could take a stored port at any time.
_LOWEST_PORT, _HIGHEST_PORT = 10_000, 29_999
_PORT_TRIES = 200
# A unix socket's path has at most 108 bytes with the closing zero; supervisord adds ".<pid>" to it while it starts.
# Not XDG_RUNTIME_DIR or TMPDIR: every shell must find the same socket, also after a logout.
_SHORT_FOLDER = Path("/tmp")  # noqa: S108  `prepare` checks the owner of the folder in it and sets its mode
_SOCKET_PATH_BYTES = 107 - len(".4194304")


# Other characters have a meaning for some services: Java's options are split at spaces, supervisord's lines end at
# semicolons, percent signs are expanded, and backslashes escape.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@,=~-]+")


def _token() -> str:
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


# Name -> the function that makes it. If a newer version adds one, it is made when it is first needed.
_SECRETS: Mapping[str, Callable[[], str]] = {
    "postgres_superuser": _token,
    "postgres_airflow": _token,
    "postgres_oltp": _token,
    "postgres_lake": _token,
    "s3_access_key_id": lambda: f"trilake{secrets.token_hex(6)}",
    "s3_secret_access_key": _token,
    "clickhouse_trilake": _token,
    "kubernetes_token": _token,
    "airflow_admin": lambda: secrets.token_urlsafe(12),
    "airflow_fernet_key": _fernet_key,
    "airflow_jwt_secret": _token,
    "airflow_api_secret_key": _token,
}


@dataclass(frozen=True)
class Home:
    """One platform's folder. No file is created before `prepare`."""

    path: Path
    project: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str] = os.environ, start: Path | None = None) -> Home:
        """``TRILAKE_HOME``, or ``.trilake`` in the project's folder.

        :raises ConfigurationError: no project was found.
        """
        project = find_project(start, environ)
        return cls(Path(environ.get("TRILAKE_HOME") or project / ".trilake").resolve(), project)

    @property
    def connections_file(self) -> Path:
        return self.path / "connections.env"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def lock_file(self) -> Path:
        """The lock of the process that starts or stops services."""
        return self.run / "lock"

    @property
    def unfinished_restore(self) -> Path:
        """Exists while a restore has begun to exchange data and has not finished."""
        return self.path / "restore.json"

    @property
    def socket(self) -> Path:
        """supervisord's socket. If the home's path is too long for a socket, it is in a folder of this user in /tmp."""
        own = self.run / "supervisor.sock"
        if len(os.fsencode(own)) <= _SOCKET_PATH_BYTES:
            return own
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return _SHORT_FOLDER / f"trilake-{os.getuid()}-{digest}" / "supervisor.sock"

    def config(self, name: str) -> Path:
        """A file below ``config/``, such as ``clickhouse.json``."""
        return self.path / "config" / name

    def data(self, service: str) -> Path:
        return self.path / "data" / service

    def log(self, service: str) -> Path:
        return self.path / "logs" / f"{service}.log"

    def prepare(self) -> None:
        """Create the folders, with permissions for this user only.

        As root, other users can enter the home and ``data/``, but cannot list them: PostgreSQL refuses to run as root,
        and its own OS user must reach its data. Files and folders with secrets are closed to all other users.

        :raises ConfigurationError: the folder cannot be created or written, or some service does not support its path.
        """
        if not _PLAIN_PATH.fullmatch(str(self.path)):
            raise ConfigurationError(
                f"The platform's home {str(self.path)!r} has characters in its path that some services do not support.",
                hint="Set TRILAKE_HOME to a path that has only letters, digits and . _ + @ , = ~ -",
            )
        passage = 0o711 if os.geteuid() == 0 else 0o700
        folders = {
            self.path: passage,
            self.path / "data": passage,
            self.path / "config": 0o700,
            self.path / "logs": 0o700,
            self.run: 0o700,
            self.socket.parent: 0o700,
        }
        try:
            for folder, mode in folders.items():
                folder.mkdir(parents=True, exist_ok=True)
                if folder.stat().st_uid != os.geteuid():
                    raise ConfigurationError(
                        f"{folder} belongs to another user.", hint="Set TRILAKE_HOME to a folder of your own."
                    )
                folder.chmod(mode)
            with tempfile.TemporaryFile(dir=self.run):
                pass
        except OSError as e:
            raise ConfigurationError(
                f"The platform's home {self.path} cannot be written: {e.strerror}.",
                hint="Set TRILAKE_HOME to a folder that you can write to.",
            ) from None

    def ports(self) -> dict[str, int]:
        """The services' ports: chosen at the first call, and stored in ``config/ports.json``.

        :raises ConfigurationError: the file is damaged, or no port is free.
        """
        return self._remembered("ports.json", PORT_NAMES, lambda _, taken: free_port(taken.values()))

    def client_ports(self) -> dict[str, int]:
        """The ports that clients connect to: those of `ports`. Tests with proxies override this."""
        return self.ports()

    def secrets(self) -> dict[str, str]:
        """Passwords, keys and tokens: random, made at the first call, and stored in ``config/secrets.json`` (0600).

        :raises ConfigurationError: the file is damaged.
        """
        return self._remembered("secrets.json", tuple(_SECRETS), lambda name, _: _SECRETS[name]())

    def _remembered(self, file: str, names: tuple[str, ...], make: Callable[[str, dict[str, T]], T]) -> dict[str, T]:
        path = self.config(file)
        try:
            stored: dict[str, T] = json.loads(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError
        except FileNotFoundError:
            stored = {}
        except (OSError, ValueError):
            raise ConfigurationError(
                f"{path} cannot be read or is damaged.",
                hint="Restore it from a backup: the services' data cannot be opened without it.",
            ) from None
        if missing := [name for name in names if name not in stored]:
            for name in missing:
                stored[name] = make(name, stored)
            write_private(path, json.dumps(stored, indent=2) + "\n")
        return stored

    def environment(self) -> dict[str, str]:
        """The variables of ``connections.env``.

        :raises ConfigurationError: the platform was never started, or the file is damaged.
        """
        try:
            return read_environment(self.connections_file)
        except FileNotFoundError:
            raise ConfigurationError(
                f"There is no platform in {self.path} yet.", hint="Start it with `trilake up`."
            ) from None
        except OSError as e:
            raise ConfigurationError(f"{self.connections_file} cannot be read: {e.strerror}.") from None


def free_port(taken: Any = ()) -> int:
    """A random port of the loopback address that is not in use.

    :raises ConfigurationError: none was found.
    """
    for _ in range(_PORT_TRIES):
        port = random.randint(_LOWEST_PORT, _HIGHEST_PORT)  # noqa: S311  not a secret
        if port not in taken and port_is_free(port):
            return port
    raise ConfigurationError(f"No free port between {_LOWEST_PORT} and {_HIGHEST_PORT} was found.")


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # as servers do: the port counts as free even if a connection on it ended a moment ago
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def format_environment(variables: Mapping[str, str]) -> str:
    """``KEY=VALUE`` lines that a shell reads (``set -a; . connections.env``)."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def read_environment(path: Path) -> dict[str, str]:
    """Read a file that `format_environment` wrote.

    :raises OSError: the file cannot be read.
    :raises ConfigurationError: the file is damaged. The message has no text of it, because it holds passwords.
    """
    try:
        words = shlex.split(path.read_text())
        return dict(word.split("=", 1) for word in words)
    except ValueError:
        raise ConfigurationError(f"{path} is damaged.", hint="`trilake up` writes it again.") from None
