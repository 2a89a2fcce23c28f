"""Which partitions a run works on."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG
from airflow.timetables.base import TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable
from hypothesis import given
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.window import Window, parse_partition
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
    lengths=st.lists(st.timedeltas(min_value=timedelta(days=1), max_value=timedelta(days=400)), min_size=1, max_size=5),
    offset=st.integers(min_value=-14, max_value=14),
    grain=st.sampled_from(["day", "month"]),
)
def test_runs_of_a_schedule_cover_each_partition_once_and_none_before_it_is_over(
    first: datetime, lengths: list[timedelta], offset: int, grain: Any
) -> None:
    zone = timezone(timedelta(hours=offset))
    start = first.replace(tzinfo=UTC)
    covered: list[str] = []
    for length in lengths:
        until = start + length
        interval = {"data_interval_start": start.astimezone(zone), "data_interval_end": until.astimezone(zone)}
        if parse_partition(grain, start.date().isoformat()) == parse_partition(grain, until.date().isoformat()):
            with pytest.raises(ConfigurationError, match="covers no partition"):
                find_window(grain, None, None, interval)
        else:
            window = find_window(grain, None, None, interval)
            assert datetime.combine(window.stop, time(), UTC) <= until
            covered += window
        start = until
    last = parse_partition(grain, start.date().isoformat())
    begins = parse_partition(grain, first.date().isoformat())
    if begins < last:
        assert covered == Window.parse(grain, begins.isoformat(), (last - timedelta(days=1)).isoformat()).partitions
    else:
        assert not covered


@pytest.mark.parametrize(
    ("cron", "zone", "start", "grain", "covered"),
    [
        ("@daily", "UTC", "2013-03-09", "day", ["2013-03-09", "2013-03-10"]),
        ("0 6 * * *", "UTC", "2013-03-09T06:00", "day", ["2013-03-09", "2013-03-10"]),
        ("@monthly", "UTC", "2013-03-01", "month", ["2013-03", "2013-04"]),
        ("@daily", "America/New_York", "2013-03-09", "day", ["2013-03-09", "2013-03-10", "2013-03-11"]),
        ("@daily", "Europe/Berlin", "2013-03-30", "day", ["2013-03-29", "2013-03-30", "2013-03-31"]),
        ("@daily", "Asia/Tokyo", "2013-03-30", "day", ["2013-03-29", "2013-03-30"]),
        ("@monthly", "Europe/Berlin", "2013-03-01", "month", ["2013-02", "2013-03"]),
        ("@monthly", "America/New_York", "2013-03-01", "month", ["2013-03", "2013-04"]),
    ],
)
def test_the_runs_of_a_timetable_cover_one_partition_each(
    cron: str, zone: str, start: str, grain: Any, covered: list[str]
) -> None:
    """In other zones, over the change to daylight saving time, and at other hours than midnight."""
    table = CronDataIntervalTimetable(cron, zone)
    limits = TimeRestriction(earliest=pendulum.parse(start, tz=zone), latest=None, catchup=True)  # type: ignore[arg-type]
    found, last = [], None
    for _ in covered:
        run = table.next_dagrun_info(last_automated_data_interval=last, restriction=limits)
        assert run is not None
        last = run.data_interval
        assert last is not None
        found.append(
            str(find_window(grain, None, None, {"data_interval_start": last.start, "data_interval_end": last.end}))
        )
    assert found == covered


def test_a_run_says_what_it_covers_and_warns_of_what_is_not_over() -> None:
    interval = {
        "data_interval_start": datetime(2013, 3, 9, 6, tzinfo=UTC),
        "data_interval_end": datetime(2013, 3, 10, 6, tzinfo=UTC),
    }
    task = rendered(interval, data_set=DataSet("visits", grain="day", date="day", shard_by="id"))
    said: list[str] = []
    task.log.info = lambda text, *values: said.append(text % values)  # type: ignore[method-assign]
    task.log.warning = task.log.info  # type: ignore[method-assign]
    task.execute(interval)
    assert said[-1:] == [
        "This run covers 2013-03-09 of visits (1 day, in UTC); the run's interval is from 2013-03-09 06:00 to "
        "2013-03-10 06:00 in UTC"
    ]
    task = rendered({"params": {"start": "2999-01"}})
    task.log.info = task.log.warning = lambda text, *values: said.append(text % values)  # type: ignore[method-assign]
    task.execute({})
    assert said[-1] == "2999-01 of flights is not over yet: rows that arrive later need another run"


@given(st.dates(min_value=date(1, 1, 1)), st.sampled_from(["day", "month"]))
def test_partition_date_names_the_partition_around_it(day: date, grain: Any) -> None:
    at_noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    window = find_window(grain, "", "", {"partition_date": at_noon})
    assert len(window) == 1
    assert window.start == (day if grain == "day" else day.replace(day=1))
