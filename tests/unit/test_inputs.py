"""What a run pins as its input."""

from __future__ import annotations

from typing import Any

import pytest

from trilake.lake import DataSet
from trilake.spark.inputs import InputError, pin

ORDERS = DataSet("orders", grain="month", date="d", shard_by="k")


class Store:
    """As much of an S3 client as `pin` asks for."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def get_paginator(self, _operation: str) -> Store:
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        found = [{"Key": key, "ETag": "e", "Size": 1} for key in self.keys if key.startswith(Prefix)]
        return [{"Contents": found}]


def test_every_object_of_the_partitions_is_pinned() -> None:
    keys = ("orders/2013-01/a.csv", "orders/2013-01/shop_2/b-1.csv", "orders/2013-02/c.csv")
    found = pin(Store(*keys, "orders/2013-03/d.csv"), ORDERS, ["2013-01", "2013-02"])  # type: ignore[arg-type]
    assert tuple(item.key for item in found) == keys


@pytest.mark.parametrize("name", ["*.csv", "a[1].csv", "{a,b}.csv", "a?.csv", "a\\b.csv", "_a.csv", ".a.csv", "/a.csv"])
def test_a_name_that_spark_reads_as_other_files_or_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a pattern or as a hidden file"):
        pin(Store("orders/2013-01/a.csv", f"orders/2013-01/{name}"), ORDERS, ["2013-01"])  # type: ignore[arg-type]
