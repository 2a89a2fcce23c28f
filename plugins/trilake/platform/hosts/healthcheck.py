"""Health of one of Airflow's processes, for a container's health check.

``python -m trilake.platform.hosts.healthcheck PROCESS`` exits with code 0 if the process is healthy.

Processes that listen on a port are asked over HTTP. The others write a heartbeat into the database, and this module
reads it, like `airflow jobs check`. It does not load Airflow: loading takes seconds of a small host's CPU each time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from trilake.errors import TrilakeError
from trilake.platform.hosts.airflow import SCHEDULER_HEALTH_PORT, metadata
from trilake.platform.hosts.connections import AIRFLOW_PORT, required
from trilake.postgres.connection import connect

TIMEOUT_S = 5
# Airflow's own thresholds (scheduler_health_check_threshold, triggerer_health_check_threshold)
HEARTBEAT_S = 30
JOBS = {"dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}


def problem(process: str, env: Mapping[str, str]) -> str:
    """Why the process is not healthy; empty if it is.

    :raises TrilakeError: the process cannot be checked.
    """
    if process == "api-server":
        return _problem_of_url(required(env, "VPS_1_ADDRESS"), AIRFLOW_PORT, "/api/v2/monitor/health")
    if process == "scheduler":
        return _problem_of_url("127.0.0.1", SCHEDULER_HEALTH_PORT, "/health")
    with connect(metadata(env)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM now() - max(latest_heartbeat)) FROM job "
            "WHERE job_type = %s AND state = 'running'",
            (JOBS[process],),
        )
        row = cursor.fetchone()
    if row is None or row[0] is None:
        return f"no {process} has written a heartbeat"
    return "" if row[0] < HEARTBEAT_S else f"the last heartbeat is {row[0]:.0f} s old"


def _problem_of_url(host: str, port: int, path: str) -> str:
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as e:
        return f"http://{host}:{port}{path}: {type(e).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"http://{host}:{port}{path} answers {status}"


def main() -> int:
    """Exit code 0 if the process is healthy, else 1 and one line with the reason."""
    try:
        reason = problem(sys.argv[1], os.environ)
    except TrilakeError as e:
        reason = str(e)
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
