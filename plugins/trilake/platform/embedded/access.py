"""Access to the embedded platform: Airflow has users. The other servers have one user each, which Trilake needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trilake.endpoints import Endpoints
from trilake.platform import airflow_users
from trilake.platform.access import Access, AirflowPart, Table
from trilake.platform.embedded import airflow
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.processes import base_environment

MISSING = (
    "VPN: this platform listens on this machine's loopback only.",
    "ClickHouse: the engine has no users. Airflow asks it for everybody, and a password for it has all rights.",
    "S3 and PostgreSQL: one user each, which has all rights.",
)


def access_of(home: Home, *, cancel_runs: Callable[[str], Sequence[str]] | None = None) -> Access:
    """:param cancel_runs: see `Access`.
    :raises ConfigurationError: the platform was never started.
    """
    environment = base_environment(home) | home.environment()
    part = AirflowPart(partial(airflow_users.ask, environment), airflow.url(home.ports()[airflow.API_SERVER]))
    lake = Endpoints.from_environment(environment).lake
    return Access(Table(lake), [part], missing=MISSING, cancel_runs=cancel_runs)
