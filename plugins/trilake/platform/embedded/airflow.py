"""Airflow: settings for one small machine, its database, and its four processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version

from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.platform import airflow_roles, airflow_set_up, airflow_settings
from trilake.platform.airflow_roles import ADMIN
from trilake.platform.embedded.home import LOOPBACK, Home
from trilake.platform.embedded.processes import Program, last_lines
from trilake.platform.private_files import write_private

API_SERVER = "airflow-api-server"
# Service -> its command line. The API server reads logs from their folder or from S3, so no process serves logs.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "airflow-scheduler": ("scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("dag-processor",),
    "airflow-triggerer": ("triggerer", "--skip-serve-logs"),
    API_SERVER: ("api-server",),
}
# The services with a heartbeat in the database -> their name in the API server's health document.
HEALTH_NAMES = {
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}
SET_UP = "airflow-setup"
# The password file of an earlier version. The password is in the database now.
_OLD_PASSWORDS = "airflow-passwords.json"
_SET_UP_TIMEOUT_S = 300


class AirflowSetupError(TrilakeError):
    """Airflow's database could not be migrated to the installed version, or its administrator not be set up."""


def url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def settings(home: Home, port: int, secrets: Mapping[str, str], database: PostgresEndpoint) -> dict[str, str]:
    """All of Airflow's settings, as environment variables."""
    embedded_settings: airflow_settings.Settings = {
        "core": {
            "dags_folder": home.project / "dags",
            "plugins_folder": home.project / "plugins",
            "fernet_key": secrets["airflow_fernet_key"],
            "execution_api_server_url": f"{url(port)}/execution/",
        },
        "database": {"sql_alchemy_conn": database.uri},
        "api": {
            "host": LOOPBACK,
            "port": port,
            "base_url": url(port),
            "secret_key": secrets["airflow_api_secret_key"],
        },
        "api_auth": {"jwt_secret": secrets["airflow_jwt_secret"]},
        "logging": {
            "base_log_folder": home.path / "logs" / "airflow",
            "dag_processor_child_process_log_directory": home.path / "logs" / "airflow" / "dag_processor",
        },
        "scheduler": {"enable_health_check": False},
    }
    return {
        "AIRFLOW_HOME": str(home.data("airflow")),
        "NO_COLOR": "1",
        **airflow_settings.environment(embedded_settings),
    }


def prepare(home: Home) -> None:
    """Create Airflow's folder."""
    home.data("airflow").mkdir(mode=0o700, parents=True, exist_ok=True)
    home.config(_OLD_PASSWORDS).unlink(missing_ok=True)


def programs(home: Home) -> list[Program]:
    """Airflow's processes. They read their settings, which include secrets, from ``connections.env``."""
    read_environment = f'set -a && . "${{TRILAKE_HOME}}/{home.connections_file.name}" && exec "$0" "$@"'
    return [
        Program(
            name,
            ["/bin/sh", "-c", read_environment, sys.executable, "-m", "airflow", *arguments],
            # the triggerer ends its own child process; if the child gets a second signal, it hangs
            stop_group=name != "airflow-triggerer",
        )
        for name, arguments in COMMANDS.items()
    ]


def set_up(home: Home, environment: Mapping[str, str], database: PostgresEndpoint, password: str) -> bool:
    """Migrate Airflow's database to the installed version, write the roles, and set admin's password.

    False if nothing was to do.

    :raises AirflowSetupError: the set-up failed.
    """
    versions = f"{version('apache-airflow')} {version('apache-airflow-providers-fab')} {airflow_roles.digest()}"
    stamp = home.data("airflow") / "migrated"
    if stamp.exists() and stamp.read_text() == versions and _admin_has(database, password):
        return False
    log = home.log(SET_UP)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        try:
            done = airflow_set_up.run(environment, password, output=file, timeout_s=_SET_UP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AirflowSetupError(
                f"The set-up of Airflow's database took more than {_SET_UP_TIMEOUT_S} s.",
                hint=f"See {log}, and run `trilake up` again.",
            ) from None
    if not done:
        last_line = next((line for line in reversed(last_lines(log, 20)) if line.strip()), "")
        raise AirflowSetupError(f"The set-up of Airflow's database failed: {last_line.strip()}", hint=f"See {log}.")
    write_private(stamp, versions)
    return True


def _admin_has(database: PostgresEndpoint, password: str) -> bool:
    """Whether the database has tables, and the administrator in them with this password."""
    from trilake.postgres.connection import connect

    with connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.ab_user') IS NOT NULL")
        if cursor.fetchone() != (True,):
            return False
        cursor.execute("SELECT password FROM ab_user WHERE username = %s AND active", (ADMIN,))
        row = cursor.fetchone()
    return row is not None and airflow_set_up.has_password(row[0], password)


def administrator(home: Home) -> tuple[str, str, str]:
    """Airflow's URL, and the name and password of its administrator."""
    return url(home.ports()[API_SERVER]), ADMIN, home.secrets()["airflow_admin"]
