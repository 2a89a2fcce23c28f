"""One local Spark session for the tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from trilake.spark.testing import local_session


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    with local_session() as session:
        yield session
