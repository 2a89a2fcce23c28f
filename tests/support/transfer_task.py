"""A task of a transfer: its connections, its context, and a DAG that it lies in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG


def connect_airflow(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    """Airflow's connections are those of the platform whose environment this is."""
    for name, value in env.items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)


class Events:
    """The partitions that a task has told of, as `outlet_events` takes them."""

    def __init__(self) -> None:
        self.partitions: list[str] = []

    def add_partitions(self, names: list[str]) -> None:
        self.partitions += names


def context(run_id: str = "manual", **more: Any) -> Any:
    ti = SimpleNamespace(
        dag_id="transfers", task_id="transfer", run_id=run_id, map_index=-1, try_number=1, start_date=datetime.now(UTC)
    )
    return {"ti": ti, "run_id": run_id, "params": {}, "outlet_events": defaultdict(Events), **more}


def make(operator: type[Any], **options: Any) -> Any:
    """An operator in a DAG of its own."""
    with DAG("transfers", schedule=None):
        return operator(task_id="transfer", **options)
