"""What may be given for the objects of a load, and what is refused before anybody asks S3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.objects import _digest, _format, is_plain_key, read_objects
from trilake.lake.plan import DataFile

MONTHLY = DataSet("orders", grain="month", date="d", shard_by="k")
DIMENSION = DataSet("shops")


@pytest.mark.parametrize(
    "given",
    [
        {"2013-01": {"a.csv": 3, "b.csv": 0}},
        '{"2013-01-01": {"b.csv": 0, "a.csv": 3}}',
        {"2013-01": [{"key": "a.csv", "rows": 3, "bytes": 9}, {"key": "b.csv", "rows": 0}]},
        [{"partition": "2013-01", "key": "b.csv", "rows": 0}, {"partition": "2013-01", "key": "a.csv", "rows": 3}],
    ],
)
def test_each_form_names_the_same_objects(given: Any) -> None:
    assert read_objects(MONTHLY, given) == {
        "2013-01": (DataFile("a.csv", 3, 0, None), DataFile("b.csv", 0, 0, None)),
    }  # fmt: skip


@pytest.mark.parametrize(
    "given", [{"a.csv": 3}, {"all": {"a.csv": 3}}, [{"key": "a.csv", "rows": 3, "etag": '""'}], '{"a.csv": 3}']
)
def test_a_dimension_needs_no_partition(given: Any) -> None:
    assert read_objects(DIMENSION, given) == {"all": (DataFile("a.csv", 3, 0, None),)}


def test_no_object_is_an_empty_partition_where_it_is_named() -> None:
    assert read_objects(MONTHLY, {"2013-01": {}}) == {"2013-01": ()}
    assert read_objects(DIMENSION, {}) == {"all": ()}


@pytest.mark.parametrize(
    ("data_set", "given", "says"),
    [
        (MONTHLY, "{'2013-01': {}}", "are not valid JSON"),
        (MONTHLY, {"2013-01": ["a.csv"]}, "are not given with key and rows"),
        (MONTHLY, {"2013-01": 3}, "are not given with key and rows"),
        (MONTHLY, None, "are not given with key and rows"),
        (MONTHLY, {"2013-01": {"a.csv": "3"}}, "has key 'a.csv' and '3' rows"),
        (MONTHLY, {"2013-01": {"a.csv": -1}}, "and -1 rows"),
        (MONTHLY, {"2013-01": {"a.csv": True}}, "and True rows"),
        (MONTHLY, [{"partition": "2013-01", "key": "a.csv"}], "and None rows"),
        (MONTHLY, [{"key": "a.csv", "rows": 1}], "is not a month"),
        (MONTHLY, {"2013-01": {"a.csv": 1}, "2013-02": {"a.csv": 1}}, r"a\.csv is named twice"),
        (DIMENSION, {"2013-01": {"a.csv": 3}}, "no partition '2013-01'"),
    ],
)
def test_what_is_not_named_and_counted_is_refused(data_set: DataSet, given: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_objects(data_set, given)


def test_the_format_is_what_the_keys_say_unless_it_is_given() -> None:
    assert _format(MONTHLY, ["a.csv.gz", "b.csv"], None) == "CSVWithNames"
    assert _format(MONTHLY, ["a.snappy.parquet"], None) == _format(MONTHLY, [], None) == "Parquet"
    assert _format(MONTHLY, ["part-0"], "parquet") == "Parquet"
    for keys, given in ((["a.csv", "b.parquet"], None), (["part-0"], None), (["a.csv"], "orc")):
        with pytest.raises(ConfigurationError, match="neither all Parquet nor all CSV"):
            _format(MONTHLY, keys, given)


def test_the_digest_of_objects_tells_bucket_key_content_and_count_apart() -> None:
    given = DataFile("a.csv", 1, 7, None, "e")
    others = [replace(given, key="b.csv"), replace(given, etag="f"), replace(given, rows=2)]
    digests = {_digest("raw", [given]), _digest("x", [given]), _digest("raw", [])}
    digests |= {_digest("raw", [other]) for other in others}
    assert len(digests) == 6
    assert _digest("raw", [given]) in digests
    assert all(0 <= digest < 2**63 for digest in digests)  # a bigint of the ledger


@pytest.mark.parametrize(
    "key", ["a/../b", "./a", "a//b", "/a", "a/", "a b", "a*", "a?", "{a}", "[a]", "a%20", "a::b", ""]
)
def test_a_key_that_s3_would_not_read_as_it_stands_is_none(key: str) -> None:
    assert not is_plain_key(key)
    assert is_plain_key("orders/2013-01/d=1,e=+2/part-0.c000_1..x.parquet")
