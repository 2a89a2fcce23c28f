"""Airflow on vps_1: its settings, made from the secrets in a container's environment, its database and its admin."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.platform import airflow_settings
from trilake.platform.hosts.connections import AIRFLOW_PORT, METADATA_PORT, required
from trilake.postgres.connection import connect

ADMIN = "admin"
BUNDLE = "trilake"
LOGS = "/opt/trilake/logs"
# The DAGs' Git repository. In `_BUNDLES` Airflow keeps the versions that runs need. Both are volumes of vps_1.
REPOSITORY = "/opt/trilake/bundle/repository.git"
LIVE = "live"
_BUNDLES = "/opt/trilake/bundles"
_PROJECT = "/opt/trilake/project"
SCHEDULER_HEALTH_PORT = 8974
_LOOPBACK = "127.0.0.1"


class AirflowSetupError(TrilakeError):
    """Airflow's database could not be migrated to this version, or its admin could not be created."""


def metadata(env: Mapping[str, str]) -> PostgresEndpoint:
    """Airflow's own database. It listens on loopback, so only processes of vps_1 can connect."""
    return PostgresEndpoint(_LOOPBACK, METADATA_PORT, "airflow", "airflow", required(env, "AIRFLOW_DB_PASSWORD"))


def settings(env: Mapping[str, str]) -> dict[str, str]:
    """Airflow's settings as environment variables, without the connections.

    :param env: ``DAG_BUNDLE`` is ``git`` (the DAGs that `trilake deploy` made live) or ``folder`` (the project's DAGs,
        as they are now).
    :raises EnvironmentFileError: a secret is missing. The message names the variable.
    """
    if env.get("DAG_BUNDLE") == "folder":
        kind = "airflow.dag_processing.bundles.local.LocalDagBundle"
        arguments = {"path": f"{_PROJECT}/dags"}
    else:
        kind = "airflow.providers.git.bundles.git.GitDagBundle"
        arguments = {"repo_url": REPOSITORY, "tracking_ref": LIVE, "subdir": "dags"}
    own: airflow_settings.Settings = {
        "core": {
            "auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
            "fernet_key": required(env, "AIRFLOW_FERNET_KEY"),
            "execution_api_server_url": f"http://vps-1:{AIRFLOW_PORT}/execution/",
            # The provider is an installed package. This folder has no plugins, so nothing is loaded twice.
            "plugins_folder": "/opt/airflow/plugins",
        },
        "database": {"sql_alchemy_conn": metadata(env).uri},
        # No base_url: browsers open the UI by the host's name, by its address and, in the replica, on loopback.
        "api": {
            "host": required(env, "VPS_1_ADDRESS"),
            "port": AIRFLOW_PORT,
            "secret_key": required(env, "AIRFLOW_API_SECRET_KEY"),
            "expose_config": False,
        },
        "api_auth": {"jwt_secret": required(env, "AIRFLOW_JWT_SECRET")},
        "logging": {
            "base_log_folder": LOGS,
            "dag_processor_child_process_log_directory": f"{LOGS}/dag_processor",
        },
        "scheduler": {
            "enable_health_check": True,
            "scheduler_health_check_server_host": _LOOPBACK,
            "scheduler_health_check_server_port": SCHEDULER_HEALTH_PORT,
        },
        "dag_processor": {
            "dag_bundle_config_list": json.dumps([{"name": BUNDLE, "classpath": kind, "kwargs": arguments}]),
            "dag_bundle_storage_path": _BUNDLES,
        },
    }
    return airflow_settings.environment(own)


def set_up(env: Mapping[str, str]) -> None:
    """Migrate Airflow's database to this version and set the UI admin's password from ``.env``. It can be repeated.

    :raises AirflowSetupError: the migration failed, or Airflow refused the admin.
    :raises UnreachableError: the database does not answer, or refuses the password.
    """
    password = required(env, "AIRFLOW_ADMIN_PASSWORD")
    with connect(metadata(env)):  # gives an error of one line; Airflow's own has a hundred lines
        pass
    done = subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=False)
    if done.returncode:
        raise AirflowSetupError("`airflow db migrate` failed. Its output is above.")
    # This uses Airflow's Python interface: a command line would show the password in the list of processes.
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        manager = builder.sm
        user = manager.find_user(username=ADMIN)
        if user is None:
            role = manager.find_role("Admin")
            if not manager.add_user(ADMIN, ADMIN, ADMIN, f"{ADMIN}@localhost", role, password=password):
                raise AirflowSetupError(f"Airflow refused to create the user {ADMIN}. Its log is above.")
        elif not _has_password(user, password) and not manager.reset_password(user.id, password):
            raise AirflowSetupError(f"Airflow refused {ADMIN}'s new password. Its log is above.")


def _has_password(user: object, password: str) -> bool:
    from werkzeug.security import check_password_hash

    return check_password_hash(str(getattr(user, "password", "")), password)
