"""What this package adds to Airflow's API server. Airflow loads it in every process, so it is cheap elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin


def _serves_the_api() -> bool:
    """Whether this process is an API server. Tasks and the other components load plugins, too, and need none of it."""
    return "api-server" in sys.argv


def _apps() -> list[dict[str, Any]]:
    from trilake.agents.app import PREFIX, create_app

    return [{"app": create_app(), "url_prefix": PREFIX, "name": "Trilake for agents"}]


def _middlewares() -> list[dict[str, Any]]:
    from trilake.agents.llms_txt import LlmsTxt

    return [{"middleware": LlmsTxt, "args": [], "kwargs": {}, "name": "Trilake: llms.txt"}]


class TrilakePlugin(AirflowPlugin):
    """The agents' door, and the page that says how to find it."""

    name = "trilake"
    fastapi_apps = _apps() if _serves_the_api() else []
    fastapi_root_middlewares = _middlewares() if _serves_the_api() else []
