"""What a snapshot's plan refuses, on a catalog in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyiceberg.catalog.memory import InMemoryCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, DayTransform, MonthTransform, Transform
from pyiceberg.types import DateType, IntegerType, NestedField

from trilake.lake import DataSet
from trilake.lake.catalog import UnpublishableSnapshotError, _buckets

SCHEMA = Schema(
    NestedField(1, "d", DateType(), required=True),
    NestedField(2, "k", IntegerType(), required=True),
    NestedField(3, "other", IntegerType(), required=True),
)


@pytest.mark.parametrize(
    ("transform", "column", "fits"),
    [(MonthTransform(), 2, True), (DayTransform(), 2, False), (MonthTransform(), 3, False)],
)
def test_a_table_of_another_grain_or_shard_key_is_refused_and_not_taken_for_empty(
    tmp_path: Path, transform: Transform[int, int], column: int, fits: bool
) -> None:
    catalog = InMemoryCatalog("c", warehouse=tmp_path.as_uri())
    catalog.create_namespace("curated")
    spec = PartitionSpec(PartitionField(1, 1000, transform, "p"), PartitionField(column, 1001, BucketTransform(2), "b"))
    table = catalog.create_table("curated.t", SCHEMA, partition_spec=spec)
    data_set = DataSet("t", grain="month", date="d", shard_by="k")
    if fits:
        assert _buckets(table, data_set) == 2
    else:
        with pytest.raises(UnpublishableSnapshotError, match=r"is partitioned by .* and not by month\(d\)"):
            _buckets(table, data_set)
