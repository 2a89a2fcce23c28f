"""Operators of the DAGs that agents start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from trilake.agents import export as core
from trilake.agents.knowledge import Knowledge
from trilake.agents.refusals import CallError
from trilake.agents.statement import check_statement
from trilake.endpoints import (
    AGENTS_CLICKHOUSE_CONNECTION,
    AGENTS_S3_CONNECTION,
    LAKE_CONNECTION,
    S3_CONNECTION,
    ClickHouseEndpoint,
    PostgresEndpoint,
    S3Endpoint,
)
from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow.sdk import Context

_RUN_ID = re.compile(r"agent\.(?P<agent>[a-z][a-z0-9-]*)\.(?P<key>[a-z0-9-]+)")


def agent_and_key(run_id: str) -> tuple[str, str]:
    """The agent that started a run, and the run's key. They are parts of the run's id.

    :raises ConfigurationError: no agent started it.
    """
    match = _RUN_ID.fullmatch(run_id)
    if match is None:
        raise ConfigurationError(
            f"The run {run_id} was not started by an agent, so it has no prefix for its files.",
            hint="Start it through the agents' tool `submit`. An engineer can use ClickHouseToS3Operator instead.",
        )
    return match["agent"], match["key"]


class AgentExportOperator(BaseOperator):
    """Writes the whole result of an agent's query to the agent's prefix of bucket ``exports``, as Parquet. See
    `trilake.agents.export`.

    XCom has ``file`` and ``manifest`` (names for the tool `file_url`), ``rows``, ``bytes``, ``etag`` and ``columns``.

    :param sql: one SELECT of the project's tables; templated.
    """

    template_fields: Sequence[str] = ("sql",)
    ui_color = "#fed7aa"

    def __init__(self, *, sql: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sql = sql

    def execute(self, context: Context) -> dict[str, Any]:
        """:raises AirflowFailException: the query reads something else than the project's tables, or ClickHouse refused
        it. Another try would not help.
        """
        agent, key = agent_and_key(context["run_id"])
        clickhouse = ClickHouseEndpoint.from_connection(BaseHook.get_connection(AGENTS_CLICKHOUSE_CONNECTION))
        exchange = S3Endpoint.from_connection(BaseHook.get_connection(AGENTS_S3_CONNECTION))
        knowledge = Knowledge(
            PostgresEndpoint.from_connection(BaseHook.get_connection(LAKE_CONNECTION)),
            S3Endpoint.from_connection(BaseHook.get_connection(S3_CONNECTION)),
        )
        try:
            statement = check_statement(self.sql, knowledge.tables(), database=clickhouse.database)
            done = core.export(clickhouse, exchange, statement, agent, key)
        except CallError as e:
            if e.retry:
                raise
            raise AirflowFailException(str(e)) from None
        columns = [list(column) for column in done.columns]  # XCom shows tuples with their Python type
        return {**{name: value for name, value in asdict(done).items() if name != "sql"}, "columns": columns}
