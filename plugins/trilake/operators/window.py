"""Decides which partitions a task works on, in one place for all operators that work on partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from trilake.errors import ConfigurationError
from trilake.lake.window import Grain, Window, parse_partition, partition_name

if TYPE_CHECKING:
    from airflow.sdk import Context
    from jinja2 import Environment

    from trilake.lake.data_set import DataSet

# These render to the empty string if the DAG does not have the params, or if they are None: then the run decides.
START = "{{ params.get('start') or '' }}"
END = "{{ params.get('end') or '' }}"


class WrongWindowError(ConfigurationError, AirflowFailException):
    """A window that cannot be run. The task fails without a retry, because a retry would get the same window."""


class WindowedOperator(BaseOperator):
    """An operator that works on a window of its data set's partitions.

    Put it first among the base classes. It has `data_set`, `start` and `end` (templated); `execute` calls
    `window(context)`.

    The window comes from the first of these that is set: `start` and `end` of the operator; the run's params ``start``
    and ``end``; the run's partition key or date; the run's data interval. Partitions are in UTC.

    Airflow 3 reads ``schedule="@monthly"`` as a moment, not as an interval: the window of such a run is the partition
    of its logical date. If a DAG should process the month before, use ``CronDataIntervalTimetable``.

    :param data_set: the data set of the partitions; None for an operator that runs without a window.
    :param start: first partition, such as ``2013-02`` or ``2013-02-28``; empty: the run decides.
    :param end: last partition, included. None: the run's end if the start is the run's too, else the same as `start`.
    """

    template_fields: Sequence[str] = ("start", "end")

    def __init__(
        self,
        *,
        data_set: DataSet | None = None,
        start: str | None = START,
        end: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_set = data_set
        self.start = start
        # If the operator has its own start, the run's end does not apply.
        self.end = end if end is not None else END if start == START else ""

    def window(self, context: Context) -> Window:
        """The partitions of this run.

        :raises WrongWindowError: neither the operator nor the run names a valid window.
        :raises ConfigurationError: the operator has no data set, or the data set has no grain.
        """
        if self.data_set is None or self.data_set.grain is None:
            problem = f"data set {self.data_set.name} has no grain" if self.data_set else "it has no data set"
            raise ConfigurationError(
                f"Task {self.task_id} needs a window, but {problem}.",
                hint="Give the task a data set with a grain (day or month), or run it without a window.",
            )
        try:
            return find_window(self.data_set.grain, self.start, self.end, context)
        except ConfigurationError as e:
            raise WrongWindowError(e.message, hint=e.hint) from None

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Renders. If no start was given, it sets the run's partitions, so that the UI shows them."""
        super().render_template_fields(context, jinja_env)
        if self.data_set is None or self.data_set.grain is None or self.start:
            return
        try:
            window = self.window(context)
        except ConfigurationError:
            return  # `execute` raises it as the task's error
        self.start, self.end = (partition_name(window.grain, day) for day in (window.start, window.end))


def find_window(grain: Grain, start: str | None, end: str | None, context: Context | Mapping[str, Any]) -> Window:
    """The window that `start` and `end` (rendered) name. If they are empty, the window of the run.

    :raises ConfigurationError: `start` and `end` are not a window, or they are empty and the run names no window.
    """
    if start:
        return Window.parse(grain, str(start), str(end) if end else None)
    if end:
        raise ConfigurationError(f"The window has an end ({end}) but no start.", hint="Give start as well.")
    if key := context.get("partition_key"):
        try:
            return Window.parse(grain, str(key))
        except ConfigurationError:
            pass  # a key of another kind (a region, a composite): the run's dates may still name the window
    if isinstance(partition_date := context.get("partition_date"), datetime):
        return _around(grain, partition_date, partition_date)
    first = context.get("data_interval_start") or context.get("logical_date")
    if isinstance(first, datetime):
        last = context.get("data_interval_end")
        return _around(grain, first, last if isinstance(last, datetime) else first)
    raise ConfigurationError(
        f"Run {context.get('run_id')} names no partition: it has no data interval, no partition key and no start.",
        hint=f'Trigger it with params such as {{"start": "{_example(grain)}"}}, or with a logical date.',
    )


def _around(grain: Grain, first: datetime, until: datetime) -> Window:
    """The partitions that contain the interval from `first` to `until` (excluded, unless it equals `first`)."""
    last = max(first, until - timedelta(microseconds=1))
    first, last = (moment.astimezone(UTC) if moment.tzinfo else moment for moment in (first, last))
    return Window(
        grain,
        parse_partition(grain, first.date().isoformat()),
        parse_partition(grain, last.date().isoformat()),
    )


def _example(grain: Grain) -> str:
    return "2013-02-28" if grain == "day" else "2013-02"
