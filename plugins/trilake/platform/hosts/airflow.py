"""Airflow on vps_1: its settings, made from the secrets in a container's environment, its database and its admin."""

from __future__ import annotations

import json
from collections.abc import Mapping

from trilake.endpoints import PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.platform import airflow_set_up, airflow_settings
from trilake.platform.airflow_roles import ADMIN
from trilake.platform.hosts.connections import AIRFLOW_PORT, METADATA_PORT, required
from trilake.postgres.connection import connect

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
    """Migrate Airflow's database to this version, write its roles and set the admin's password from ``.env``.

    It can be repeated. Its own permissions come back to each role, and those that an operator added stay.

    :raises AirflowSetupError: a part of it failed.
    :raises UnreachableError: the database does not answer, or refuses the password.
    """
    password = required(env, "AIRFLOW_ADMIN_PASSWORD")
    with connect(metadata(env)):  # gives an error of one line; Airflow's own has a hundred lines
        pass
    if not airflow_set_up.run(env, password):
        raise AirflowSetupError(
            f"Airflow's database could not be migrated, or the user {ADMIN} not be set up. The output above says why."
        )
