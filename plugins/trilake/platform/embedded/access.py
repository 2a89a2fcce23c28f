"""Access to the embedded platform: Airflow has users. The other servers have one user each, which Trilake needs."""

from __future__ import annotations

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


def access_of(home: Home) -> Access:
    """:raises ConfigurationError: the platform was never started."""
    environment = base_environment(home) | home.environment()
    ask = partial(airflow_users.ask, environment)
    part = AirflowPart(ask, airflow.url(home.ports()[airflow.API_SERVER]))
    lake = Endpoints.from_environment(environment).lake
    return Access(Table(lake), [part], missing=MISSING, cancel_runs=lambda name: ask(["cancel_runs", name]))
