"""What killed drivers and tasks left in PostgreSQL and S3, where no next try comes to clear it up."""

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

# Those that Airflow writes, but for the lake's, which the DAG lake_maintenance ends with Iceberg's orphan files.
_UPLOADED_TO = (RAW_BUCKET, ARTIFACTS_BUCKET, LOGS_BUCKET, EXPORTS_BUCKET)


class RemoveAbandonedOperator(BaseOperator):
    """Removes what Spark drivers and tasks have left that were killed. Safe beside those at work, and by two at once: a
    driver at work holds an advisory lock, and an upload is ended when it is older than anything that runs.

    XCom has ``staging`` (tables of PostgreSQL that `write_postgres` made), ``sessions`` (whose exports `read_table`
    made) and ``uploads`` (how many were begun and never completed, by bucket).

    :param uploads_stay: how old an upload has to be.
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
        """:raises TrilakeError: of the first that could not be looked for, after the others were."""
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
        found: dict[str, Any] = {}
        errors = []
        for step in steps:
            try:
                found[step.__name__] = step()
            except TrilakeError as e:  # one service that is away does not keep what lies in the others
                self.log.warning("Nothing was removed of %s: %s", step.__name__, e)
                errors.append(e)
        self.log.info("Removed: %s", found)
        if errors:
            raise errors[0]
        return found
