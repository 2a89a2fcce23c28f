"""A Spark session for tests of jobs. It has the jobs' settings, and needs no catalog and no server."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

# The settings of every job's session, so that a test parses in the same way as production.
from trilake.spark.application import SPARK_CONF

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


# In a short session the JVM's second compiler takes more time than it saves.
_LOCAL = {
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@contextmanager
def local_session() -> Iterator[SparkSession]:
    """A local session with one core. Use it in a fixture of session scope, because a start takes seconds."""
    from pyspark.sql import SparkSession

    # Its connections log that they close when the interpreter ends. By then pytest has closed its log streams.
    logging.getLogger("py4j.clientserver").setLevel(logging.WARNING)
    os.environ["PYSPARK_PYTHON"] = sys.executable  # without it, workers use the first python3 on the path
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
