"""A Spark session for the tests of jobs: their settings, without a catalog and without any server."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

# What every job's session has; a test that parses differently from production would prove nothing.
from trilake.spark.application import SPARK_CONF

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


# A short session: the second compiler would take longer than it saves.
_LOCAL = {
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@contextmanager
def local_session() -> Iterator[SparkSession]:
    """One core of this machine. For a fixture of session scope: a start costs seconds."""
    from pyspark.sql import SparkSession

    # its connections report their end when the interpreter ends, after pytest has closed what it captured
    logging.getLogger("py4j.clientserver").setLevel(logging.WARNING)
    os.environ["PYSPARK_PYTHON"] = sys.executable  # or a worker is any python3 that the path has
    builder = SparkSession.builder.master("local[1]").appName("tests")
    conf = {key: value for key, value in SPARK_CONF.items() if "catalog" not in key and "extensions" not in key}
    for key, value in {**conf, **_LOCAL}.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
