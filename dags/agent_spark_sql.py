"""
# Agent Spark SQL

Runs an agent's query in Spark SQL over the curated tables of the lake, and writes its rows to Parquet files that the
agent can get. For old snapshots, data sets that are not in ClickHouse, and queries that are too large for it.

Agents start it with `submit("agent_spark_sql", {"sql": "SELECT ..."}, key)`. The tables are `lake.curated.<data set>`.
The files are `<key>/part-*.parquet`. Their manifest, `<key>/manifest.json`, is written last. The query can only read.

**When it fails:** the driver's last lines in the log of `query` say why: the query was refused, Spark could not run it,
or the result has more than 10 GB. Nothing has to be cleaned up. The agent corrects its query and submits it with
another key.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param
from nyc.tags import Tag

from trilake.agents.spark_operator import AgentSparkSqlOperator

with DAG(
    "agent_spark_sql",
    schedule=None,
    catchup=False,
    params={"sql": Param(type="string", minLength=1, maxLength=20000, description="one query in Spark SQL")},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20), "pool": "agents"},
    tags=[Tag.AGENTS],
    is_paused_upon_creation=False,
    doc_md=__doc__,
):
    AgentSparkSqlOperator(task_id="query", sql="{{ params.sql }}", run_timeout_seconds=3600)
