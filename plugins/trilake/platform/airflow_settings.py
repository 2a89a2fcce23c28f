"""Airflow settings that are the same on every platform, by section. Each platform adds its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Settings = Mapping[str, Mapping[str, object]]

# Section -> name -> value. They suit one machine with two cores, which tasks and servers share.
COMMON: Settings = {
    "core": {
        "auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "load_examples": False,
        "executor": "LocalExecutor",
        # each task is a process of 150 MB, and Spark and ClickHouse also need the two cores
        "parallelism": 4,
        "max_active_tasks_per_dag": 4,
        "default_timezone": "utc",
        # Spark can keep both cores busy, so a correct DAG file may be slow to import
        "dagbag_import_timeout": 120,
    },
    "workers": {"execution_api_timeout": 30},
    "database": {"sql_alchemy_pool_size": 3},
    "api": {"workers": 1},
    "api_auth": {"jwt_issuer": "trilake"},
    "fab": {
        "config_file": Path(__file__).with_name("webserver_config.py"),  # it has Trilake's roles
        "cache_ttl": 30,  # so many seconds after it was deactivated, a user is refused
    },
    "logging": {
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
    },
    "dag_processor": {
        # to save CPU, a changed file is parsed at once and an unchanged file only once a minute
        "refresh_interval": 10,
        "bundle_refresh_check_interval": 5,
        "min_file_process_interval": 60,
        "file_parsing_sort_mode": "modified_time",
        "parsing_processes": 2,
        # longer than dagbag_import_timeout: a slow file then gives an import error with its name and the reason
        "dag_file_processor_timeout": 180,
    },
    "usage_data_collection": {"enabled": False},
}


def environment(own: Settings) -> dict[str, str]:
    """The common settings and `own` as environment variables, ``AIRFLOW__<SECTION>__<NAME>``."""
    return {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section in {**COMMON, **own}
        for name, value in {**COMMON.get(section, {}), **own.get(section, {})}.items()
    }
