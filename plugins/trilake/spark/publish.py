"""Publishes from a driver: ClickHouse pulls a snapshot, as with `IcebergToClickHouseOperator` in Airflow.

It uses the same publisher, ledger and checks. A driver may die at any point. The next process (a retry, another
publisher, the DAG `publication_housekeeping`) finishes publications that the ledger has decided, and drops the staging
tables of others.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import Cluster
from trilake.clickhouse.publication.checks import Check, read_checks
from trilake.clickhouse.publication.ledger import Ledger
from trilake.clickhouse.publication.publisher import PublicationReport, Publisher
from trilake.errors import ConfigurationError
from trilake.lake.catalog import load_table, open_catalog, plan
from trilake.project import PROJECT
from trilake.spark.session import JOBS_ZIP

if TYPE_CHECKING:
    from trilake.endpoints import Endpoints
    from trilake.lake import DataSet


def job_checks(table: str) -> tuple[Check, ...]:
    """The checks of a table, from this job's version of the code, or else from the project's folder.

    :raises ConfigurationError: there is neither. A table must not be published without its checks.
    """
    if archive := os.environ.get(JOBS_ZIP):
        return read_checks(zipfile.Path(archive, "sql/"), table)
    if project := os.environ.get(PROJECT):
        return read_checks(Path(project) / "sql", table)
    raise ConfigurationError(
        f"The checks of {table} cannot be found: this job has neither a pushed version of the code nor a project.",
        hint=f"Run it as a SparkApplication, or set {PROJECT} to the project's folder.",
    )


def publish(
    endpoints: Endpoints,
    data_set: DataSet,
    partitions: Iterable[str] = (),
    *,
    run_id: str,
    snapshot_id: int | None = None,
    force: bool = False,
) -> PublicationReport:
    """Publishes partitions of a snapshot in ClickHouse, exactly once. See `Publisher.publish` for its errors.

    :param partitions: the partitions; empty for a data set without a grain, which is published as a whole.
    :param snapshot_id: a snapshot of the Iceberg table; default: the current one.
    :param force: publish also an older snapshot than the published one, or the same again.
    """
    checks, began = job_checks(data_set.table), time.time()
    catalog = open_catalog(endpoints.lake, endpoints.s3)
    try:
        planned = plan(load_table(catalog, data_set.curated), data_set, partitions, snapshot_id, with_columns=True)
    finally:
        catalog.close()
    comment = {"by": "spark", "run": run_id, "data_set": data_set.name}
    with Cluster(endpoints.clickhouse, comment=comment) as cluster:
        publisher = Publisher(cluster, Ledger(endpoints.lake), checks=checks)
        return publisher.measured(publisher.publish(planned, run_id=run_id, force=force), since=began)
