"""Renders a folder of queries as an HTML report in S3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trilake.clickhouse.report import ReportQuery, ReportResult, read_queries, render
from trilake.endpoints import CLICKHOUSE_CONNECTION
from trilake.errors import ConfigurationError
from trilake.hooks.clickhouse import ClickHouseHook
from trilake.hooks.lake import LakeHook
from trilake.lake.data_set import ARTIFACTS_BUCKET
from trilake.operators.project import ProjectOperator
from trilake.operators.window import WindowedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class ClickHouseReportOperator(WindowedOperator, ProjectOperator):
    """Renders the queries of `folder` and writes ``s3://artifacts/reports/<key>``.

    Queries can use the parameters ``{start:Date}`` and ``{stop:Date}``: the window's first day, and the first day after
    the window.

    :param folder: below ``sql/``, such as ``clickhouse/flights/report``; see `trilake.clickhouse.report` for its files.
    :param key: the report's key below ``reports/``; it ends in ``.html``; templated.
    """

    template_fields: Sequence[str] = (*WindowedOperator.template_fields, "key")
    ui_color = "#ddd6fe"

    def __init__(
        self,
        *,
        folder: str,
        title: str,
        key: str,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.title = title
        self.key = key
        self.clickhouse_conn_id = clickhouse_conn_id

    def execute(self, context: Context) -> str:
        """Returns the report's address, ``s3://...``.

        :raises ConfigurationError: the folder has no query, a query cannot be shown, or `key` does not end in .html.
        """
        window = self.window(context)
        queries = read_queries(self.sql_folder / self.folder)
        hook = ClickHouseHook(clickhouse_conn_id=self.clickhouse_conn_id)
        bounds = {"start": window.start, "stop": window.stop}
        with hook.client() as client:

            def run(query: ReportQuery) -> ReportResult:
                answer = client.query(query.sql, parameters=bounds, settings=hook.identify())
                return ReportResult(answer.column_names, answer.result_rows)

            page = render(self.title, f"{window}, from ClickHouse.", queries, run)
        if not self.key.endswith(".html"):
            raise ConfigurationError(f"The report's key {self.key!r} does not end in .html.")
        key = f"reports/{self.key}"
        LakeHook().s3_client().put_object(
            Bucket=ARTIFACTS_BUCKET, Key=key, Body=page.encode(), ContentType="text/html; charset=utf-8"
        )
        address = f"s3://{ARTIFACTS_BUCKET}/{key}"
        self.log.info("The report is %s", address)
        return address
