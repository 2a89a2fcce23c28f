"""The first task of a DAG that arrivals start: which partitions the run is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from trilake.hooks.lake import LakeHook
from trilake.hooks.task_instance import TaskInstance
from trilake.lake.arrivals import SETTLE_SECONDS
from trilake.lake.window import partition_name
from trilake.operators.window import WindowedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from jinja2 import Environment

    from trilake.lake import DataSet


class TakeArrivalsOperator(WindowedOperator):
    """Takes partitions in hand that have new, changed or late files below ``s3://raw/<data set>/``, for this run.

    It takes the oldest that are due and those that follow it without a gap, 12 months or 31 days of them: one
    recomputation for all. What is left is told again by the watcher, and is the next run's. Where nothing is due
    (another run has it), the run is skipped. Give ``output["start"]`` and ``output["end"]`` to the tasks that follow. A
    run with the param ``start`` takes that window instead, due or not.

    What a run took is its own: if a later task fails, clear it. `trilake arrivals` lists what was never committed. See
    `trilake.lake.arrivals`.

    XCom has ``start`` and ``end``, the first and the last partition.

    :param data_set: whose arrivals; the DAG's schedule is `trilake.assets.arrivals` of the same.
    :param settle_seconds: a partition is due when it has been quiet for so long; the schedule's, if it says another.
    """

    data_set: DataSet
    ui_color = "#bfdbfe"

    def __init__(self, *, data_set: DataSet, settle_seconds: float = SETTLE_SECONDS, **kwargs: Any) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(data_set=data_set, **kwargs)
        self.settle_seconds = settle_seconds

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Render, and nothing more: where nobody names a start, it is not the run's date that says the window."""
        BaseOperator.render_template_fields(self, context, jinja_env)

    def execute(self, context: Context) -> dict[str, str]:
        """:raises AirflowSkipException: nothing is due."""
        arrivals = LakeHook().arrivals(self.data_set, settle_seconds=self.settle_seconds)
        run = TaskInstance.of(context).run
        if self.start:
            window = self.window(context)
            arrivals.take_window(window, run)
        elif (due := arrivals.take(run)) is None:
            raise AirflowSkipException(f"Nothing has arrived for {self.data_set.name} that no other run has taken.")
        else:
            window = due
        self.log.info("%s %s is this run's", self.data_set.name, window)
        return {name: partition_name(window.grain, day) for name, day in (("start", window.start), ("end", window.end))}
