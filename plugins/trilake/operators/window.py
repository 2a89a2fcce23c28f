"""Decides which partitions a task works on, in one place for all operators that work on partitions.

Partitions are days and months in UTC. A run's data interval may begin at another hour, or in another time zone. Then
the run covers the partitions that end in its interval. So each partition is covered by exactly one run of a schedule,
and none before it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
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
    and ``end``; the run's partition key or date; the run's data interval. The log says which partitions the run covers.

    Partitions are in UTC. An interval covers the partitions that end in it: the run of a daily DAG at 06:00, or of a
    DAG in New York, covers the day in UTC that was over last. An interval in which no partition ends, such as that of
    an hourly DAG at noon, is refused.

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
            window = find_window(self.data_set.grain, self.start, self.end, context)
        except ConfigurationError as e:
            raise WrongWindowError(e.message, hint=e.hint) from None
        self._tell(window, context)
        return window

    def _tell(self, window: Window, context: Context) -> None:
        """Log what the run covers, and warn if that is not over yet."""
        name = self.data_set.name if self.data_set else ""
        self.log.info("This run covers %s of %s (%s, in UTC)%s", window, name, _number(window), _interval_of(context))
        if _moment(window.stop) > datetime.now(UTC):
            self.log.warning(
                "%s of %s is not over yet: rows that arrive later need another run",
                partition_name(window.grain, window.end),
                name,
            )

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Renders. If no start was given, it sets the run's partitions, so that the UI shows them."""
        super().render_template_fields(context, jinja_env)
        if self.data_set is None or self.data_set.grain is None or self.start:
            return
        try:
            window = find_window(self.data_set.grain, self.start, self.end, context)
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
        return _around(grain, partition_date)
    first = context.get("data_interval_start") or context.get("logical_date")
    if isinstance(first, datetime):
        last = context.get("data_interval_end")
        if isinstance(last, datetime) and last > first:
            return _ending_in(grain, first, last)
        return _around(grain, first)
    raise ConfigurationError(
        f"Run {context.get('run_id')} names no partition: it has no data interval, no partition key and no start.",
        hint=f'Trigger it with params such as {{"start": "{_example(grain)}"}}, or with a logical date.',
    )


def _around(grain: Grain, moment: datetime) -> Window:
    """The partition that contains a moment."""
    return Window.parse(grain, _utc(moment).date().isoformat())


def _ending_in(grain: Grain, first: datetime, until: datetime) -> Window:
    """The partitions that end after `first`, and not after `until`.

    :raises ConfigurationError: none ends then.
    """
    # A partition that begins at `until` or contains it is not over.
    start, behind = _around(grain, first), _around(grain, until)
    if start.start == behind.start:
        raise ConfigurationError(
            f"The run's interval from {_utc(first):%Y-%m-%d %H:%M} to {_utc(until):%Y-%m-%d %H:%M} (UTC) ends before "
            f"{grain} {start} is over, so the run covers no partition.",
            hint=f"Schedule the DAG once a {grain}. To work on a {grain} that is not over, set start, such as "
            'start="{{ data_interval_start | ds }}".',
        )
    return Window(grain, start.start, parse_partition(grain, (behind.start - timedelta(days=1)).isoformat()))


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _moment(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _number(window: Window) -> str:
    return f"1 {window.grain}" if len(window) == 1 else f"{len(window)} {window.grain}s"


def _interval_of(context: Context) -> str:
    """The run's interval, for the log."""
    first, last = context.get("data_interval_start"), context.get("data_interval_end")
    if not isinstance(first, datetime) or not isinstance(last, datetime) or first == last:
        return ""
    return f"; the run's interval is from {_utc(first):%Y-%m-%d %H:%M} to {_utc(last):%Y-%m-%d %H:%M} in UTC"


def _example(grain: Grain) -> str:
    return "2013-02-28" if grain == "day" else "2013-02"
