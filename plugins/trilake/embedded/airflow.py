"""Airflow: its settings for one small machine, its database, its four processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version

from trilake.embedded.home import LOOPBACK, Home, write_private
from trilake.embedded.processes import Program, last_lines
from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError

ADMIN = "admin"
API_SERVER = "airflow-api-server"
# Service -> its command line. Logs are read from the folder they lie in, here as in S3: nobody need serve them.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "airflow-scheduler": ("scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("dag-processor",),
    "airflow-triggerer": ("triggerer", "--skip-serve-logs"),
    API_SERVER: ("api-server",),
}
# Those with a heartbeat in the database, and what the API server's health document calls them.
HEALTH_NAMES = {
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}
MIGRATION = "airflow-migrate"
_PASSWORDS = "airflow-passwords.json"
_MIGRATE_TIMEOUT_S = 300


class AirflowSetupError(TrilakeError):
    """Airflow's database could not be brought to this version."""


def url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def settings(home: Home, port: int, secrets: Mapping[str, str], database: PostgresEndpoint) -> dict[str, str]:
    """Everything that Airflow is told, as environment variables."""
    by_section: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": home.project / "dags",
            "plugins_folder": home.project / "plugins",
            "load_examples": False,
            "executor": "LocalExecutor",
            # a task is a process of 150 MB, and Spark and ClickHouse want the two cores too
            "parallelism": 4,
            "max_active_tasks_per_dag": 4,
            "fernet_key": secrets["airflow_fernet_key"],
            "simple_auth_manager_users": f"{ADMIN}:admin",
            "simple_auth_manager_passwords_file": home.config(_PASSWORDS),
            "execution_api_server_url": f"{url(port)}/execution/",
            "default_timezone": "utc",
            # two cores that Spark keeps busy: what is slow is not broken
            "dagbag_import_timeout": 120,
        },
        "workers": {"execution_api_timeout": 30},
        "database": {"sql_alchemy_conn": database.uri, "sql_alchemy_pool_size": 3},
        "api": {
            "host": LOOPBACK,
            "port": port,
            "base_url": url(port),
            "workers": 1,
            "secret_key": secrets["airflow_api_secret_key"],
        },
        "api_auth": {"jwt_secret": secrets["airflow_jwt_secret"], "jwt_issuer": "trilake"},
        "logging": {
            "base_log_folder": home.path / "logs" / "airflow",
            "dag_processor_child_process_log_directory": home.path / "logs" / "airflow" / "dag_processor",
            "remote_logging": True,
            "remote_base_log_folder": "s3://logs/airflow",
            "remote_log_conn_id": "aws_default",
            "colored_console_log": False,
        },
        "scheduler": {
            # tasks of a lost scheduler come back within a minute, not five
            "orphaned_tasks_check_interval": 30,
            "task_instance_heartbeat_timeout": 60,
            "scheduler_idle_sleep_time": 0.5,
            "enable_health_check": False,
        },
        "dag_processor": {
            # a changed file is parsed at once, one that is not rarely: two cores
            "refresh_interval": 10,
            "bundle_refresh_check_interval": 5,
            "min_file_process_interval": 60,
            "file_parsing_sort_mode": "modified_time",
            "parsing_processes": 2,
        },
        "usage_data_collection": {"enabled": False},
    }
    return {"AIRFLOW_HOME": str(home.data("airflow")), "NO_COLOR": "1"} | {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, values in by_section.items()
        for name, value in values.items()
    }


def write_configuration(home: Home, secrets: Mapping[str, str]) -> None:
    """Airflow's folder and the file of its one user."""
    home.data("airflow").mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(home.config(_PASSWORDS), json.dumps({ADMIN: secrets["airflow_admin"]}))


def programs(home: Home) -> list[Program]:
    """Airflow's processes. They read their settings, secrets among them, from ``connections.env`` by themselves."""
    read = f'set -a && . "${{TRILAKE_HOME}}/{home.connections_file.name}" && exec "$0" "$@"'
    return [
        Program(
            name,
            ["/bin/sh", "-c", read, sys.executable, "-m", "airflow", *arguments],
            # it ends its runner itself; one that is told to end by a second voice as well hangs
            stop_group=name != "airflow-triggerer",
        )
        for name, arguments in COMMANDS.items()
    ]


def migrate(home: Home, environment: Mapping[str, str], database: PostgresEndpoint) -> bool:
    """Bring Airflow's database to the installed version, once. False if it was.

    :raises AirflowSetupError: `airflow db migrate` failed.
    """
    installed = version("apache-airflow")
    stamp = home.data("airflow") / "migrated"
    if stamp.exists() and stamp.read_text() == installed and _has_tables(database):
        return False
    log = home.log(MIGRATION)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=_MIGRATE_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        told = next((line for line in reversed(last_lines(log, 20)) if line.strip()), "")
        raise AirflowSetupError(f"`airflow db migrate` failed: {told.strip()}", hint=f"See {log}.")
    write_private(stamp, installed)
    return True


def _has_tables(database: PostgresEndpoint) -> bool:
    from trilake.postgres import connect

    with connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.alembic_version') IS NOT NULL")
        row = cursor.fetchone()
    return bool(row and row[0])
