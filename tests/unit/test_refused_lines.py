"""How many refused lines keep a job from replacing a partition, and how a data set travels to a job."""

from __future__ import annotations

import json

import pytest

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.spark.counts import Counts, TooManyRefusedError, check_refused

ORDERS = DataSet("orders", grain="month", date="d", shard_by="k")


@pytest.mark.parametrize(
    ("refused", "lines", "limit", "stops"),
    [
        (0, 0, None, False),
        (0, 10, None, False),
        (9, 10, None, False),
        (10, 10, None, True),
        (20, 21, None, False),
        (21, 22, None, True),
        (50, 1000, None, False),
        (51, 1000, None, True),
        (1, 1000, 0.0, True),
        (0, 1000, 0.0, False),
        (10, 10, 1.0, False),
        (3, 10, 0.3, False),
        (4, 10, 0.3, True),
    ],
)
def test_a_partition_is_replaced_unless_too_many_lines_were_refused(
    refused: int, lines: int, limit: float | None, stops: bool
) -> None:
    counts = Counts(rows_in=lines, curated=lines - refused, quarantined=refused)
    assert counts.too_many_refused(limit) is stops


def test_the_error_names_each_partition_with_its_numbers() -> None:
    counts = {"2013-01": Counts(10, 10), "2013-02": Counts(10, 0, 10), "2013-03": Counts(100, 60, 40)}
    with pytest.raises(TooManyRefusedError, match=r"2013-02 \(10 of 10\), 2013-03 \(40 of 100\)"):
        check_refused(ORDERS, counts)


def test_a_share_is_between_0_and_1() -> None:
    with pytest.raises(ConfigurationError, match="max_refused is 5"):
        DataSet("orders", max_refused=5)


def test_a_job_version_reads_the_data_set_of_an_older_or_newer_operator() -> None:
    """Older job versions raise on keys that they do not know, so a default is not written."""
    assert set(json.loads(ORDERS.to_json())) == {"name", "grain", "date", "shard_by"}
    newer = json.dumps({**json.loads(ORDERS.to_json()), "a_field_of_tomorrow": 1})
    assert DataSet.from_json(newer) == ORDERS
    limited = DataSet("orders", grain="month", date="d", shard_by="k", max_refused=0.5)
    assert limited == ORDERS
    assert DataSet.from_json(limited.to_json()).max_refused == 0.5
