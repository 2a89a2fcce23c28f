"""One task instance of Airflow. Queries, applications, objects and runs get their names from it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trilake.spark.application import application_name, instance_digest

if TYPE_CHECKING:
    from airflow.sdk import Context

# A label of a SparkApplication and its pods. It identifies the task instance and is the same for all its tries.
INSTANCE_LABEL = "trilake/instance"
_UNSAFE = re.compile(r"[^\w.:+-]+", re.ASCII)


@dataclass(frozen=True)
class TaskInstance:
    """A task of a run. All its tries have the same names.

    :param map_index: -1 for a task that is not mapped.
    :param try_number: number of the current try. Only `log_comment` uses it.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1
    try_number: int = 0

    @classmethod
    def of(cls, context: Context) -> TaskInstance:
        """The task instance of a context."""
        ti = context["ti"]
        map_index = ti.map_index if ti.map_index is not None else -1
        run_id = str(context.get("run_id") or ti.run_id)
        return cls(ti.dag_id, ti.task_id, run_id, map_index, int(getattr(ti, "try_number", 0) or 0))

    @property
    def run(self) -> str:
        """The run's name, unique over all DAGs, because a run id is unique within its DAG. Neither part has a slash."""
        return f"{self.dag_id}/{self.run_id}"

    @property
    def words(self) -> list[str]:
        """DAG, task, run and map index: the same for each try."""
        return [self.dag_id, self.task_id, self.run_id, str(self.map_index)]

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that identify the task instance."""
        return instance_digest(**self._ids)

    def log_comment(self) -> dict[str, Any]:
        """The ``log_comment`` of a task's statements in the query log."""
        return {
            "dag": self.dag_id,
            "task": self.task_id,
            "run": self.run_id,
            "map_index": self.map_index,
            "try": self.try_number,
        }

    def application_name(self, number: int) -> str:
        """The name of its `number`-th SparkApplication."""
        return application_name(**self._ids, number=number)

    def labels(self) -> dict[str, str]:
        """Labels of its SparkApplications."""
        labels = {
            "trilake/dag": self.dag_id,
            "trilake/task": self.task_id,
            "trilake/run": self.run_id,
            INSTANCE_LABEL: self.digest,
        }
        return labels if self.map_index < 0 else {**labels, "trilake/map-index": str(self.map_index)}

    @property
    def _ids(self) -> dict[str, Any]:
        return {
            "dag_id": self.dag_id,
            "task_id": self.task_id,
            "run_id": self.run_id,
            "map_index": self.map_index,
        }


def joined(words: Sequence[str]) -> str:
    """The words with colons between them. Characters that a query id cannot have become underscores."""
    return _UNSAFE.sub("_", ":".join(words))


def as_comment(values: dict[str, Any]) -> str:
    """A ``log_comment`` as the text that ClickHouse gets."""
    return json.dumps(values, sort_keys=True)
