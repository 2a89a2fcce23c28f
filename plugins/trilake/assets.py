"""The assets that connect DAGs: a data set's raw files, and its table in ClickHouse.

Each event stands for one partition. Only an event of `arrivals` names none: the run claims the partitions that are due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from airflow.sdk import Asset, AssetWatcher

from trilake.lake.arrivals import POLL_SECONDS, SETTLE_SECONDS, grain_of

if TYPE_CHECKING:
    from trilake.lake import DataSet


def published(data_set: DataSet) -> Asset:
    """A partition of the data set was published in ClickHouse, for the first time or again."""
    return Asset(name=f"{data_set.name} published", uri=data_set.clickhouse_uri)


def landed(data_set: DataSet) -> Asset:
    """An ingest task of Airflow has written raw files of a partition."""
    return Asset(name=f"{data_set.name} landed", uri=data_set.raw_uri())


def arrivals(
    data_set: DataSet, *, settle_seconds: float = SETTLE_SECONDS, poll_interval: float = POLL_SECONDS
) -> Asset:
    """A producer has added or changed files below ``s3://raw/<data set>/<partition>/``, and no run has claimed them.

    ``schedule=[arrivals(data_set)]`` starts a DAG. Its first task must be a `TakeArrivalsOperator`, which claims the
    partitions. Files that Airflow's own ingests write are `landed`, not arrivals. A paused DAG gets the event when it
    is unpaused.

    :param settle_seconds: a partition is due when it has not changed for this many seconds.
    :param poll_interval: seconds between two listings of the bucket.
    :raises ConfigurationError: the data set has no grain.
    """
    from trilake.triggers.arrivals import ArrivalsTrigger

    grain_of(data_set)
    trigger = ArrivalsTrigger(data_set=data_set.to_json(), settle_seconds=settle_seconds, poll_interval=poll_interval)
    watcher = AssetWatcher(name=f"{data_set.name} arrivals", trigger=trigger)
    # Airflow does not allow two active assets with the same URI.
    return Asset(name=f"{data_set.name} arrivals", uri=f"{data_set.raw_uri()}*", watchers=[watcher])


def normalise(uri: SplitResult) -> SplitResult:
    """Normalises ``clickhouse://database/table``. Airflow calls this for every asset of that scheme.

    :raises ValueError: the URI has no database or no table.
    """
    table = uri.path.strip("/")
    if not uri.netloc or not table or "/" in table:
        raise ValueError("Write the URI of a ClickHouse asset as clickhouse://<database>/<table>.")
    return uri._replace(path=f"/{table}", query="", fragment="")
