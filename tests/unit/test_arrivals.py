"""Which partition a key belongs to, and what stands for a listing: for every key there is."""

from __future__ import annotations

from datetime import UTC, date, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.assets import arrivals
from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.lake.arrivals import Listing, Object, digest, partition_of
from trilake.lake.window import Grain, partition_name

ORDERS = DataSet("orders", grain="month", date="d", shard_by="k")
DAYS = DataSet("orders", grain="day", date="d", shard_by="k")
# what S3 takes as a key, slashes, line ends and half a pair of surrogates among it
NAMES = st.text(st.characters(codec="utf-8") | st.sampled_from("/.\n\\ "), max_size=30)
OBJECTS = st.tuples(NAMES, st.text("0123456789abcdef-", max_size=8), st.integers(0, 1 << 40))


@given(
    st.dates(max_value=date(9999, 11, 30)),
    st.sampled_from(["day", "month"]),
    NAMES.filter(lambda name: name and not name.endswith("/")),
)
def test_a_file_below_a_partitions_prefix_is_that_partitions(day: date, grain: Grain, name: str) -> None:
    data_set = DataSet("orders", grain=grain, date="d", shard_by="k")
    partition = partition_name(grain, day)
    assert partition_of(data_set, data_set.raw_key(partition, name)) == partition


@given(NAMES)
def test_a_key_is_a_partitions_only_where_its_prefix_stands_before_it(key: str) -> None:
    for tried in (key, f"orders/{key}", f"orders/2013-02{key}", f"orders2/2013-02/{key}"):
        for data_set in (ORDERS, DAYS):
            found = partition_of(data_set, tried)
            if found is not None:
                assert tried.startswith(data_set.raw_key(found))
                assert data_set.window(found).partitions == [found]


@pytest.mark.parametrize(
    "key",
    [
        "orders/2013-2/a.csv", "orders/2013-02-01/a.csv", "orders/ 2013-02/a.csv", "orders/2013-13/a.csv",
        "orders/2013-02", "orders/2013-02/", "orders/2013-02/a/", "order/2013-02/a.csv", "/orders/2013-02/a.csv",
        "orders/x/2013-02/a.csv", "orders/२०१३-०२/a.csv", "orders/2013-02\n/a.csv", "orders/9999-12/a.csv",
    ],
)  # fmt: skip
def test_a_key_that_names_no_month_is_none_of_a_month(key: str) -> None:
    assert partition_of(ORDERS, key) is None


@given(st.lists(OBJECTS, max_size=6), st.randoms())
def test_a_listing_has_one_digest_in_whichever_order_it_comes(objects: list[Object], random: Random) -> None:
    shuffled = [*objects, *objects]
    random.shuffle(shuffled)
    assert digest(shuffled) == digest(objects)


@given(st.sets(OBJECTS, max_size=6), st.sets(OBJECTS, max_size=6))
def test_two_listings_that_differ_have_two_digests(one: set[Object], other: set[Object]) -> None:
    assert (digest(one) == digest(other)) == (one == other)


MOMENTS = st.datetimes(timezones=st.just(UTC))


@given(st.dictionaries(OBJECTS, MOMENTS, min_size=1, max_size=6), st.none() | MOMENTS)
def test_what_has_waited_longest_is_the_first_that_nobody_took(
    objects: dict[Object, datetime], taken: datetime | None
) -> None:
    waits = Listing(objects).waits_since(taken)
    new = [at for at in objects.values() if taken is None or at > taken]
    assert waits == (min(new) if new else max(objects.values()))


def test_arrivals_of_a_data_set_without_partitions_are_refused_where_the_dag_says_it() -> None:
    with pytest.raises(ConfigurationError, match="planes has no grain"):
        arrivals(DataSet("planes"))
