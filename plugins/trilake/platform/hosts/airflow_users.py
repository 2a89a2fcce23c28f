"""Airflow's users on vps_1 and in the replica. A process in the API server's container makes each request.

Secrets go through its standard input. The entry point makes Airflow's settings from the container's environment.
"""

from __future__ import annotations

import json
from typing import Any

from trilake.platform import airflow_users
from trilake.platform.airflow_users import AirflowUserError, Request
from trilake.platform.hosts.containers import docker, find_container

_SERVICE = "airflow-api-server"
_COMMAND = ("python", "-m", "trilake.platform.hosts.entrypoint", "python", "-m", airflow_users.__name__)


def ask(project: str, request: Request) -> Any:
    """The answer to a request of `airflow_users`.

    :param project: the compose project's name.
    :raises AirflowUserError: the request was refused, or Airflow's database does not answer.
    :raises UnreachableError: the API server does not run on this machine.
    """
    container = find_container(project, _SERVICE)
    printed = docker("exec", "-i", container, *_COMMAND, stdin=json.dumps(request), error=AirflowUserError)
    return airflow_users.read_answer(printed)
