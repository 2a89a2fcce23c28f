"""The assets that connect DAGs: a data set's raw files, and its table in ClickHouse. Each event is one partition."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from airflow.sdk import Asset

if TYPE_CHECKING:
    from trilake.lake import DataSet


def published(data_set: DataSet) -> Asset:
    """A partition of the data set can be read in ClickHouse, or can be read anew."""
    return Asset(name=f"{data_set.name} published", uri=data_set.clickhouse_uri)


def landed(data_set: DataSet) -> Asset:
    """A partition of the data set has (new) raw files."""
    return Asset(name=f"{data_set.name} landed", uri=data_set.raw_uri())


def normalise(uri: SplitResult) -> SplitResult:
    """``clickhouse://database/table``: Airflow calls this for every asset of that scheme.

    :raises ValueError: it names no database or no table.
    """
    table = uri.path.strip("/")
    if not uri.netloc or not table or "/" in table:
        raise ValueError("An asset of ClickHouse is clickhouse://<database>/<table>.")
    return uri._replace(path=f"/{table}", query="", fragment="")
