"""Which partitions a task works on, decided in one place for every operator that works on partitions."""

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

# A DAG without these params, or with None as their default, gives the empty string: the run decides.
START = "{{ params.get('start') or '' }}"
END = "{{ params.get('end') or '' }}"


class WrongWindowError(ConfigurationError, AirflowFailException):
    """A window that nobody can run: the task fails at once, since another try would read the same."""


class WindowedOperator(BaseOperator):
    """An operator that works on a window of its data set's partitions.

    Put it first among the bases. It holds `data_set`, `start` and `end` (templated); `execute` asks `window(context)`.

    The window is, in this order: `start` and `end` as given to the operator; the run's params ``start`` and ``end``;
    the run's partition key or date; the run's data interval. Partitions are in UTC, as everything is.

    Airflow 3 reads ``schedule="@monthly"`` as a moment, not as an interval: such a run's window is the partition that
    its logical date lies in. A DAG that wants the month before takes ``CronDataIntervalTimetable``.

    :param data_set: whose partitions; None for an operator that runs without a window.
    :param start: first partition, such as ``2013-02`` or ``2013-02-28``; empty: the run decides.
    :param end: last partition, included; None: the run's with the run's start, else the one that `start` names.
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
        # A start of the operator's own has nothing to do with the run's end.
        self.end = end if end is not None else END if start == START else ""

    def window(self, context: Context) -> Window:
        """The partitions of this run.

        :raises WrongWindowError: nothing says which partitions, or what says it is no window.
        :raises ConfigurationError: there is no data set, or it has no grain.
        """
        if self.data_set is None or self.data_set.grain is None:
            name = f"data set {self.data_set.name}" if self.data_set else "no data set"
            raise ConfigurationError(
                f"Task {self.task_id} asks for a window, but has {name} without a grain.",
                hint="Give the data set a grain (day or month), or run the task without a window.",
            )
        try:
            return find_window(self.data_set.grain, self.start, self.end, context)
        except ConfigurationError as e:
            raise WrongWindowError(e.message, hint=e.hint) from None

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Render, and show in the UI which partitions the run stands for where nobody named them."""
        super().render_template_fields(context, jinja_env)
        if self.data_set is None or self.data_set.grain is None or self.start:
            return
        try:
            window = self.window(context)
        except ConfigurationError:
            return  # `execute` says it, as the task's own error
        self.start, self.end = (partition_name(window.grain, day) for day in (window.start, window.end))


def find_window(grain: Grain, start: str | None, end: str | None, context: Context | Mapping[str, Any]) -> Window:
    """The window that rendered `start` and `end` name or, where they are empty, that the run stands for.

    :raises ConfigurationError: not a window, or neither they nor the run name one.
    """
    if start:
        return Window.parse(grain, str(start), str(end) if end else None)
    if end:
        raise ConfigurationError(f"The window has an end ({end}) but no start.", hint="Give start as well.")
    if key := context.get("partition_key"):
        try:
            return Window.parse(grain, str(key))
        except ConfigurationError:
            pass  # a key of another form (a region, a composite): the run's dates may still say it
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
    """The partitions that the interval from `first` to `until` (excluded, unless it is `first`) lies in."""
    last = max(first, until - timedelta(microseconds=1))
    first, last = (moment.astimezone(UTC) if moment.tzinfo else moment for moment in (first, last))
    return Window(
        grain,
        parse_partition(grain, first.date().isoformat()),
        parse_partition(grain, last.date().isoformat()),
    )


def _example(grain: Grain) -> str:
    return "2013-02-28" if grain == "day" else "2013-02"
