"""
# Agent export

Writes the whole result of an agent's query to a Parquet file that the agent can get. For results of more rows than the
tool `query` returns.

Agents start it with `submit("agent_export", {"sql": "SELECT ..."}, key)`. The file is `<key>/rows.parquet`. Its
manifest, `<key>/manifest.json`, is written last. The query runs as the agents' ClickHouse user, which can only read.

**When it fails:** the log of `export` says why: ClickHouse refused the query, or the result has more than 10 GB.
Nothing has to be cleaned up. The agent corrects its query and submits it with another key.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param

from trilake.agents.operators import AgentExportOperator

with DAG(
    "agent_export",
    schedule=None,
    catchup=False,
    params={"sql": Param(type="string", minLength=1, maxLength=20000, description="one SELECT in ClickHouse's SQL")},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20), "pool": "agents"},
    tags=["agents"],
    is_paused_upon_creation=False,
    doc_md=__doc__,
):
    AgentExportOperator(task_id="export", sql="{{ params.sql }}")
