"""The operator of the DAG with which agents run Spark SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException

from trilake.agents.knowledge import Knowledge
from trilake.agents.operators import agent_and_key
from trilake.endpoints import (
    AGENTS_KUBERNETES_CONNECTION,
    LAKE_CONNECTION,
    S3_CONNECTION,
    PostgresEndpoint,
    S3Endpoint,
)
from trilake.errors import TrilakeError
from trilake.operators.spark import SparkApplicationError, SparkApplicationOperator
from trilake.spark import agent_sql
from trilake.spark.readonly import QueryRefusedError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from trilake.hooks.spark import SparkSubmission


class AgentSparkSqlOperator(SparkApplicationOperator):
    """Runs an agent's query in Spark SQL. Its rows become Parquet files below the agent's prefix of bucket ``exports``.
    See `trilake.spark.agent_sql` and `trilake.spark.readonly`.

    On the hosts, the application runs in a namespace of its own, whose keys can read the lake and write the agents'
    prefix.

    XCom has ``files`` and ``manifest`` (names for the tool `file_url`), ``rows``, ``bytes`` and ``columns``.

    :param sql: one query of curated tables; templated.
    """

    template_fields: Sequence[str] = (*SparkApplicationOperator.template_fields, "sql")
    ui_color = "#fed7aa"

    def __init__(
        self,
        *,
        sql: str,
        job: str = "agent_sql",
        kubernetes_conn_id: str = AGENTS_KUBERNETES_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(job=job, kubernetes_conn_id=kubernetes_conn_id, **kwargs)
        self.sql = sql

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        outcome = super().execute_complete(context, event)
        if "files" not in outcome:
            raise TrilakeError(
                f"{self.result_uri(context, '')} is missing, but the application has completed.",
                hint="Somebody removed it. Submit the query again with another key.",
            )
        told = {name: value for name, value in outcome.items() if name != "sql"}
        return {**told, "files": [part["file"] for part in outcome["files"]]}

    def result_uri(self, context: Context, name: str) -> str:
        """The manifest. The agents' applications cannot write where other jobs write their results."""
        return agent_sql.address(*agent_and_key(context["run_id"]))

    def _arguments(self, context: Context) -> list[str]:
        agent, key = agent_and_key(context["run_id"])
        knowledge = Knowledge(
            PostgresEndpoint.from_connection(BaseHook.get_connection(LAKE_CONNECTION)),
            S3Endpoint.from_connection(BaseHook.get_connection(S3_CONNECTION)),
        )
        return [
            *super()._arguments(context),
            *("--agent", agent, "--key", key, "--tables", json.dumps(knowledge.data_sets())),
            # Kubernetes puts a variable of the pod's environment, such as a connection, in the place of $(NAME).
            *("--sql", json.dumps(self.sql).replace("$", "\\u0024")),
        ]

    def _fail(
        self, submission: SparkSubmission, application: dict[str, Any] | None, event: Mapping[str, Any]
    ) -> NoReturn:
        try:
            super()._fail(submission, application, event)
        except SparkApplicationError as e:
            if QueryRefusedError.__name__ in str(e):
                raise AirflowFailException(str(e)) from None  # another try would not help
            raise
