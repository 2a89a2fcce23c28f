"""Which partitions a run works on."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG
from hypothesis import given
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.operators.window import END, START, WindowedOperator, find_window

FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="tailnum")


class Windowed(WindowedOperator):
    def execute(self, context: Any) -> str:
        return str(self.window(context))


def rendered(context: dict[str, Any], **kwargs: Any) -> Windowed:
    with DAG("windows", schedule=None):
        task = Windowed(task_id="work", **{"data_set": FLIGHTS, **kwargs})
    task.render_template_fields({"params": {}, "run_id": "manual__1", **context})  # type: ignore[typeddict-item]
    return task


def month(year: int, number: int) -> datetime:
    return datetime(year, number, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("context", "window"),
    [
        pytest.param({"params": {"start": "2013-01", "end": "2013-12"}}, "2013-01..2013-12", id="params"),
        pytest.param({"params": {"start": "2013-01", "end": None}}, "2013-01", id="start alone"),
        pytest.param(
            {"params": {"start": "2013-01"}, "data_interval_start": month(2014, 5)}, "2013-01", id="params first"
        ),
        pytest.param({"partition_key": "2013-07"}, "2013-07", id="partition key"),
        pytest.param({"partition_key": "2013-07-09"}, "2013-07", id="key of a finer grain"),
        pytest.param({"partition_key": "emea", "partition_date": month(2013, 8)}, "2013-08", id="key of another form"),
        pytest.param(
            {"data_interval_start": month(2013, 2), "data_interval_end": month(2013, 3), "logical_date": None},
            "2013-02",
            id="interval",
        ),
        pytest.param(
            {"data_interval_start": month(2013, 1), "data_interval_end": month(2014, 1)},
            "2013-01..2013-12",
            id="interval of a year",
        ),
        pytest.param(
            {"data_interval_start": month(2013, 2), "data_interval_end": month(2013, 2)}, "2013-02", id="a moment"
        ),
        pytest.param({"data_interval_start": None, "logical_date": month(2013, 9)}, "2013-09", id="logical date"),
    ],
)
def test_window_is_what_the_run_says(context: dict[str, Any], window: str) -> None:
    task = rendered(context)
    assert task.execute({"params": {}, **context}) == window
    assert str(FLIGHTS.window(task.start or "", task.end)) == window, "what the UI shows is what the task works on"


def test_operators_own_window_comes_before_params() -> None:
    task = rendered({"params": {"start": "2013-01"}}, start="2012-03", end="2012-04")
    assert task.execute({}) == "2012-03..2012-04"


def test_a_start_of_the_operators_own_takes_no_end_from_the_run() -> None:
    task = rendered({"params": {"start": "2013-01", "end": "2013-02"}}, start="2013-05")
    assert task.execute({}) == "2013-05"


def test_run_that_names_no_partition_is_refused_with_what_to_do() -> None:
    context = {"run_id": "manual__7", "logical_date": None, "data_interval_start": None, "partition_key": None}
    with pytest.raises(ConfigurationError, match=r"manual__7.*params such as .*2013-02"):
        rendered(context).execute(context)


def test_end_without_start_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no start"):
        rendered({"params": {"end": "2013-04"}}).execute({})


def test_data_set_without_grain_has_no_window() -> None:
    task = rendered({"data_interval_start": month(2013, 1)}, data_set=DataSet("airlines"))
    assert task.start == ""
    with pytest.raises(ConfigurationError, match="grain"):
        task.execute({})


def test_a_mapped_operator_takes_start_and_end() -> None:
    with DAG("mapped", schedule=None):
        mapped = Windowed.partial(task_id="work", data_set=FLIGHTS).expand(start=["2013-01", "2013-02"])
    assert mapped.operator_class is Windowed
    assert (START, END) == ("{{ params.get('start') or '' }}", "{{ params.get('end') or '' }}")


@given(
    first=st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1)),
    length=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)),
    offset=st.integers(min_value=-14, max_value=14),
)
def test_window_covers_its_interval_and_no_partition_more(first: datetime, length: timedelta, offset: int) -> None:
    zone = timezone(timedelta(hours=offset))
    start = first.replace(tzinfo=UTC).astimezone(zone)
    window = find_window("day", None, None, {"data_interval_start": start, "data_interval_end": start + length})
    last_moment = max(first, first + length - timedelta(microseconds=1))
    assert (window.start, window.end) == (first.date(), last_moment.date())


@given(st.dates(min_value=date(1, 1, 1)), st.sampled_from(["day", "month"]))
def test_partition_date_names_the_partition_around_it(day: date, grain: Any) -> None:
    at_noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    window = find_window(grain, "", "", {"partition_date": at_noon})
    assert len(window) == 1
    assert window.start == (day if grain == "day" else day.replace(day=1))
