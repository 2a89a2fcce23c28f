"""A dry run ends at the job's commit: what a job would write before it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from trilake.errors import ConfigurationError
from trilake.lake import DataSet
from trilake.spark.job import Job

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from trilake.endpoints import Endpoints


def test_a_write_to_postgresql_before_the_commit_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    data_set = DataSet("orders", grain="month", date="d", shard_by="k")
    arguments = ["--data-set", data_set.to_json(), "--start", "2013-01", "--dry-run", str(tmp_path)]
    nowhere = cast("Endpoints", object())  # it may reach for none
    with Job(arguments, endpoints=nowhere, spark=spark) as job, pytest.raises(ConfigurationError) as told:
        job.write_postgres(spark.range(1), "marts.orders")
    assert "marts.orders" in str(told.value)
    assert "Call commit first" in str(told.value)
