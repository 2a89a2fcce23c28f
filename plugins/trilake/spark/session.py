"""The Spark session of a job: the settings of its SparkApplication, and addresses and keys from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.lake.catalog import CATALOG
from trilake.spark.application import SPARK_CONF

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Where spark/image/run_job.py has put the job's code.
JOBS_ZIP = "TRILAKE_JOBS_ZIP"


class LakeServices(Protocol):
    """What a session needs of `trilake.endpoints.Endpoints`. An agent's job has nothing else."""

    @property
    def s3(self) -> S3Endpoint: ...
    @property
    def lake(self) -> PostgresEndpoint: ...


def endpoint_conf(endpoints: LakeServices) -> dict[str, str]:
    """Settings with addresses and keys. They are set inside the driver, so no manifest and no command line has them.
    Spark redacts them in its UI and event log because of their names (password, secret, access.key).
    """
    s3, lake = endpoints.s3, endpoints.lake
    return {
        "spark.hadoop.fs.s3a.endpoint": s3.url,
        "spark.hadoop.fs.s3a.endpoint.region": s3.region,
        "spark.hadoop.fs.s3a.connection.ssl.enabled": str(s3.url.startswith("https:")).lower(),
        "spark.hadoop.fs.s3a.access.key": s3.access_key_id,
        "spark.hadoop.fs.s3a.secret.key": s3.secret_access_key,
        f"spark.sql.catalog.{CATALOG}.uri": lake.jdbc_url,
        f"spark.sql.catalog.{CATALOG}.jdbc.user": lake.user,
        f"spark.sql.catalog.{CATALOG}.jdbc.password": lake.password,
    }


def build_session(endpoints: LakeServices, name: str, conf: Mapping[str, str] | None = None) -> SparkSession:
    """The session of a driver. The settings of spark-submit (from the SparkApplication) override the common ones.

    :param conf: more settings. They override all others.
    """
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    spark_conf = SparkConf()
    spark_conf.setIfMissing("spark.app.name", name)
    for key, value in SPARK_CONF.items():
        spark_conf.setIfMissing(key, value)
    for key, value in {**endpoint_conf(endpoints), **(conf or {})}.items():
        spark_conf.set(key, value)
    session = SparkSession.builder.config(conf=spark_conf).getOrCreate()
    if code := os.environ.get(JOBS_ZIP):
        # The driver already has the job's code on its path. The Python workers of a UDF need it too.
        session.sparkContext.addPyFile(code)
    return session
