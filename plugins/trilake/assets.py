"""The assets that connect DAGs: a data set's raw files, and its table in ClickHouse. Each event is one partition; an
event of arrivals is a reason to look."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from airflow.sdk import Asset, AssetWatcher

from trilake.lake.arrivals import POLL_SECONDS, SETTLE_SECONDS, grain_of

if TYPE_CHECKING:
    from trilake.lake import DataSet


def published(data_set: DataSet) -> Asset:
    """A partition of the data set can be read in ClickHouse, or can be read anew."""
    return Asset(name=f"{data_set.name} published", uri=data_set.clickhouse_uri)


def landed(data_set: DataSet) -> Asset:
    """A partition of the data set has (new) raw files."""
    return Asset(name=f"{data_set.name} landed", uri=data_set.raw_uri())


def arrivals(
    data_set: DataSet, *, settle_seconds: float = SETTLE_SECONDS, poll_interval: float = POLL_SECONDS
) -> Asset:
    """Somebody has put files below ``s3://raw/<data set>/<partition>/``, or changed some, and no run has them in hand.

    ``schedule=[arrivals(data_set)]`` starts a DAG whose first task is `TakeArrivalsOperator`, which says for what. What
    Airflow's own ingests write is `landed` and no arrival. A paused DAG is told when it goes on.

    :param settle_seconds: a partition is told of when it has been quiet for so long.
    :param poll_interval: seconds between two looks at the store.
    :raises ConfigurationError: the data set has no grain.
    """
    from trilake.triggers.arrivals import ArrivalsTrigger

    grain_of(data_set)
    trigger = ArrivalsTrigger(data_set=data_set.to_json(), settle_seconds=settle_seconds, poll_interval=poll_interval)
    watcher = AssetWatcher(name=f"{data_set.name} arrivals", trigger=trigger)
    # an address of its own: assets that are at work at the same time may not share one
    return Asset(name=f"{data_set.name} arrivals", uri=f"{data_set.raw_uri()}*", watchers=[watcher])


def normalise(uri: SplitResult) -> SplitResult:
    """``clickhouse://database/table``: Airflow calls this for every asset of that scheme.

    :raises ValueError: it names no database or no table.
    """
    table = uri.path.strip("/")
    if not uri.netloc or not table or "/" in table:
        raise ValueError("An asset of ClickHouse is clickhouse://<database>/<table>.")
    return uri._replace(path=f"/{table}", query="", fragment="")
