"""What this package adds to Airflow's API server. Airflow loads it in every process, so it is cheap elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from trilake.endpoints import AGENTS_CLICKHOUSE_CONNECTION, AGENTS_S3_CONNECTION


def _has_the_door() -> bool:
    """Whether this process is an API server that has the agents' connections. Tasks and the other components load
    plugins, too, and need none of it. An Airflow that only uses the operators has no such connections.
    """
    agents = (AGENTS_CLICKHOUSE_CONNECTION, AGENTS_S3_CONNECTION)
    return "api-server" in sys.argv and all(f"AIRFLOW_CONN_{name.upper()}" in os.environ for name in agents)


def _apps() -> list[dict[str, Any]]:
    from trilake.agents.app import PREFIX, create_app

    return [{"app": create_app(), "url_prefix": PREFIX, "name": "Trilake for agents"}]


def _middlewares() -> list[dict[str, Any]]:
    from trilake.agents.llms_txt import LlmsTxt

    return [{"middleware": LlmsTxt, "args": [], "kwargs": {}, "name": "Trilake: llms.txt"}]


class TrilakePlugin(AirflowPlugin):
    """The agents' door, and the page that says how to find it."""

    name = "trilake"
    fastapi_apps = _apps() if _has_the_door() else []
    fastapi_root_middlewares = _middlewares() if _has_the_door() else []
