"""One local Spark session for the tests of jobs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

# What every job's session has; a test that parses differently from production would prove nothing.
from trilake.spark.application import SPARK_CONF

_NO_CATALOG = {key: value for key, value in SPARK_CONF.items() if "catalog" not in key and "extensions" not in key}


# The session does not live for as long as the second compiler needs to pay for itself.
_LOCAL = {
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    # its connections tell of their end when the interpreter does, after pytest has closed what it captured
    logging.getLogger("py4j.clientserver").setLevel(logging.WARNING)
    os.environ["PYSPARK_PYTHON"] = sys.executable  # or a worker is any python3 that the path has
    builder = SparkSession.builder.master("local[1]").appName("tests")
    for key, value in {**_NO_CATALOG, **_LOCAL}.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
