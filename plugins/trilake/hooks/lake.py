"""The lake (S3, the Iceberg catalog, the ledger of publications) as Airflow connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from trilake import s3
from trilake.clickhouse.publication.ledger import Ledger
from trilake.endpoints import LAKE_CONNECTION, S3_CONNECTION, PostgresEndpoint, S3Endpoint
from trilake.lake import DataSet
from trilake.lake.arrivals import SETTLE_SECONDS, Arrivals
from trilake.lake.catalog import open_catalog
from trilake.postgres.connection import await_answer
from trilake.retry import retry_while_unreachable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from pyiceberg.catalog.sql import SqlCatalog


class LakeHook(BaseHook):
    """Opens the services of the lake for a task.

    :param s3_conn_id: the object store, a connection of type ``aws`` with an endpoint_url.
    :param lake_conn_id: database ``lake``, a connection of type ``postgres``.
    """

    def __init__(self, *, s3_conn_id: str = S3_CONNECTION, lake_conn_id: str = LAKE_CONNECTION) -> None:
        super().__init__()
        self.s3_conn_id = s3_conn_id
        self.lake_conn_id = lake_conn_id

    @property
    def s3_endpoint(self) -> S3Endpoint:
        return S3Endpoint.from_connection(self.get_connection(self.s3_conn_id))

    @property
    def lake_endpoint(self) -> PostgresEndpoint:
        return PostgresEndpoint.from_connection(self.get_connection(self.lake_conn_id))

    def s3_client(self) -> S3Client:
        return s3.client(self.s3_endpoint)

    def catalog(self) -> SqlCatalog:
        """The Iceberg catalog. Close it after use. Waits until the catalog's database answers."""
        lake, s3_endpoint = self.lake_endpoint, self.s3_endpoint
        return retry_while_unreachable(lambda: open_catalog(lake, s3_endpoint))

    def ledger(self) -> Ledger:
        """The ledger of publications. Waits until it answers."""
        await_answer(self.lake_endpoint)
        return Ledger(self.lake_endpoint)

    def arrivals(self, data_set: DataSet, *, settle_seconds: float = SETTLE_SECONDS) -> Arrivals:
        """The ledger of arrivals. Waits until it answers.

        :raises ConfigurationError: the data set has no grain.
        """
        await_answer(self.lake_endpoint)
        return Arrivals(self.lake_endpoint, self.s3_client(), data_set, settle_seconds=settle_seconds)
