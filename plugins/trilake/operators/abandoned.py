"""Removes what killed drivers and tasks left in PostgreSQL and S3, and what no later try removes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from trilake import s3
from trilake.endpoints import CLICKHOUSE_CONNECTION, OLTP_CONNECTION, PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.lake.data_set import ARTIFACTS_BUCKET, EXPORTS_BUCKET, LOGS_BUCKET, RAW_BUCKET
from trilake.postgres.connection import await_answer
from trilake.spark import clickhouse, postgres
from trilake.spark.maintenance import ORPHANS_STAY

if TYPE_CHECKING:
    from airflow.sdk import Context

# The buckets that Airflow writes to. The lake's bucket is not here: the DAG lake_maintenance cleans it.
_UPLOADED_TO = (RAW_BUCKET, ARTIFACTS_BUCKET, LOGS_BUCKET, EXPORTS_BUCKET)


class RemoveAbandonedOperator(BaseOperator):
    """Removes what killed Spark drivers and tasks have left.

    It is safe while drivers and tasks run, and in two tasks at once: a running driver holds an advisory lock, and an
    upload is only aborted when it is older than any job may run.

    XCom has what was removed: ``staging`` (staging tables of `write_postgres` in PostgreSQL), ``sessions`` (sessions
    whose `read_table` exports were in S3) and ``uploads`` (number of incomplete uploads by bucket).

    :param uploads_stay: minimum age of an upload that is aborted.
    :param postgres_conn_id: the database that jobs write to.
    """

    ui_color = "#fde68a"

    def __init__(
        self,
        *,
        uploads_stay: timedelta = ORPHANS_STAY,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        postgres_conn_id: str = OLTP_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.uploads_stay = uploads_stay
        self.clickhouse_conn_id = clickhouse_conn_id
        self.postgres_conn_id = postgres_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """:raises TrilakeError: a service did not answer (the first one). The other services were cleaned."""
        lake = LakeHook()
        store = lake.s3_client()

        def staging() -> list[str]:
            oltp = PostgresEndpoint.from_connection(lake.get_connection(self.postgres_conn_id))
            await_answer(oltp)
            return postgres.remove_abandoned(oltp)

        def sessions() -> list[str]:
            await_answer(lake.lake_endpoint)
            with ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id).cluster(context) as cluster:
                return clickhouse.remove_abandoned(cluster, store, lake.lake_endpoint)

        def uploads() -> dict[str, int]:
            before = datetime.now(UTC) - self.uploads_stay
            ended = {bucket: s3.abort_uploads(store, bucket, "", before=before) for bucket in _UPLOADED_TO}
            return {bucket: number for bucket, number in ended.items() if number}

        steps: tuple[Callable[[], Any], ...] = (staging, sessions, uploads)
        removed: dict[str, Any] = {}
        errors = []
        for step in steps:
            try:
                removed[step.__name__] = step()
            except TrilakeError as e:  # a service that is down must not stop the cleaning of the others
                self.log.warning("Removed nothing from %s: %s", step.__name__, e)
                errors.append(e)
        self.log.info("Removed: %s", removed)
        if errors:
            raise errors[0]
        return removed
