"""Work of an agent's query in a session that has the lake, for tests/product/spark/test_agent_sql.py."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.endpoints import Endpoints
from trilake.errors import TrilakeError
from trilake.lake.data_set import EXPORTS_BUCKET
from trilake.spark import agent_sql
from trilake.spark.readonly import open_query

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TABLE = "agent_numbers"
ROWS = 10_000


def make(spark: SparkSession) -> int:
    """A curated table of two columns, committed twice. Gives the id of its first snapshot."""
    name = f"lake.curated.{TABLE}"
    spark.sql("CREATE NAMESPACE IF NOT EXISTS lake.curated")
    spark.sql(f"DROP TABLE IF EXISTS {name}")
    spark.sql(f"CREATE TABLE {name} (id BIGINT, at TIMESTAMP) USING iceberg")
    for _ in range(2):
        spark.range(ROWS).selectExpr("id", "timestamp_seconds(id) AS at").writeTo(name).append()
    return int(spark.sql(f"SELECT snapshot_id FROM {name}.snapshots ORDER BY committed_at").first()[0])  # type: ignore[index]


def ask(spark: SparkSession, sql: str, key: str, max_bytes: str = "0") -> dict[str, Any]:
    """What the query left: its result or its refusal, and each object below the key with its rows."""
    from pyarrow import parquet

    client = s3.client(Endpoints.from_environment().s3)
    below = f"agents/ada/{key}/"
    client.put_object(Bucket=EXPORTS_BUCKET, Key=f"{below}own.txt", Body=b"the agent's own")
    try:
        frame = open_query(spark, sql, [TABLE])
        bound = int(max_bytes) or agent_sql.MAX_BYTES
        done = agent_sql.write(frame, sql, "ada", key, max_bytes=bound)
        told: dict[str, Any] = {"rows": done.rows, "files": [part.file for part in done.files], "columns": done.columns}
    except TrilakeError as e:
        told = {"refused": type(e).__name__, "says": str(e)}

    def objects() -> Iterator[tuple[str, Any]]:
        for name in s3.list_keys(client, EXPORTS_BUCKET, below):
            content = client.get_object(Bucket=EXPORTS_BUCKET, Key=name)["Body"].read()
            if name.endswith(".parquet"):
                yield name.removeprefix(below), parquet.read_table(io.BytesIO(content)).num_rows
            else:
                yield name.removeprefix(below), json.loads(content)["rows"] if name.endswith(".json") else None

    return told | {"left": dict(objects())}


def read_and_try_to_change(spark: SparkSession) -> dict[str, Any]:
    """As a user of the catalog that may only read: the rows of a query, and which changes of the lake were refused."""
    table, refused = f"lake.curated.{TABLE}", []
    rows = open_query(spark, f"SELECT count(*) FROM {TABLE}", [TABLE]).first()
    for statement in (
        f"INSERT INTO {table} VALUES (1, now())",
        f"DELETE FROM {table} WHERE id = 1",
        "CREATE TABLE lake.curated.agent_own (id BIGINT) USING iceberg",
        f"DROP TABLE {table}",
        "CREATE NAMESPACE lake.agent_own",
    ):
        try:
            spark.sql(statement)
        except Exception:
            refused.append(statement.split()[0] + " " + statement.split()[1])
    return {"rows": rows[0] if rows else None, "refused": refused}
