"""Who sees a DAG beside the people who work with Airflow, for its `access_control`."""

from __future__ import annotations

# Airflow's role Agent sees only the DAGs that name it: their runs, logs and results. It cannot start or change them.
READ_BY_AGENTS: dict[str, dict[str, set[str]]] = {"Agent": {"DAGs": {"can_read"}}}
