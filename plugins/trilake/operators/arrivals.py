"""The first task of a DAG that arrivals start: it claims the partitions of the run."""

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
    """Claims, for this run, partitions that have new, changed or late files below ``s3://raw/<data set>/``.

    It claims the oldest due partition and the due partitions that follow without a gap, up to 12 months or 31 days, so
    that one run recomputes them all. The watcher starts another run for the rest. If nothing is due, because another
    run has claimed it, the run is skipped. Give ``output["start"]`` and ``output["end"]`` to the next tasks. A run with
    the param ``start`` claims that window instead, whether or not it is due.

    The run keeps its claim: if a later task fails, clear that task. `trilake arrivals` lists claims that were never
    committed. See `trilake.lake.arrivals`.

    XCom has ``start`` and ``end``, the first and the last partition.

    :param data_set: the data set whose arrivals are claimed; the DAG's schedule is its `trilake.assets.arrivals`.
    :param settle_seconds: a partition is due when it has not changed for this many seconds. Use the same value as in
        the schedule.
    """

    data_set: DataSet
    ui_color = "#bfdbfe"

    def __init__(self, *, data_set: DataSet, settle_seconds: float = SETTLE_SECONDS, **kwargs: Any) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(data_set=data_set, **kwargs)
        self.settle_seconds = settle_seconds

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Only renders. Without a start, the window is what is due; it does not come from the run's date."""
        BaseOperator.render_template_fields(self, context, jinja_env)

    def execute(self, context: Context) -> dict[str, str]:
        """:raises AirflowSkipException: nothing is due."""
        arrivals = LakeHook().arrivals(self.data_set, settle_seconds=self.settle_seconds)
        run = TaskInstance.of(context).run
        if self.start:
            window = self.window(context)
            arrivals.take_window(window, run)
        elif (due := arrivals.take(run)) is None:
            raise AirflowSkipException(f"No arrivals of {self.data_set.name} are due. Other runs may have them.")
        else:
            window = due
        self.log.info("This run has claimed %s %s", self.data_set.name, window)
        return {name: partition_name(window.grain, day) for name, day in (("start", window.start), ("end", window.end))}
