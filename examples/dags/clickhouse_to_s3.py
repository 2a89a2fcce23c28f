"""
# ClickHouseToS3Operator

`visits` exports the table of a data set, one file for each month and shard. `pages` exports the result of a query on
each shard, for each month. `check` reads the manifest and every file that it lists.

**When it fails:** clear the failed task. Each attempt writes to its own prefix and removes the files of earlier
attempts.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from trilake.lake import DataSet
from trilake.transfers.clickhouse_to_s3 import ClickHouseToS3Operator

VISITS = DataSet("visits", grain="month", date="day", shard_by="visitor")

with DAG(
    "clickhouse_to_s3",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):

    @task
    def fill() -> None:
        from trilake.clickhouse.cluster import Statement
        from trilake.hooks.clickhouse import ClickHouseHook

        with ClickHouseHook().cluster() as cluster:
            cluster.every_shard(Statement("TRUNCATE TABLE {shard}.visits_local"))
            cluster.every_shard(
                Statement(
                    "INSERT INTO {shard}.visits_local SELECT number % 100, toDate('2013-01-01') + number % 59, "
                    "if(number % 7 = 0, NULL, concat('/', toString(number % 5))), number % 300 FROM numbers(1000)"
                )
            )

    visits = ClickHouseToS3Operator(
        task_id="visits",
        data_set=VISITS,
        start="2013-01",
        end="2013-02",
        columns=["visitor", "day", "page"],
        where="seconds >= {least:UInt16}",
        parameters={"least": 1},
    )
    pages = ClickHouseToS3Operator(
        task_id="pages",
        data_set=VISITS,
        start="2013-01",
        end="2013-02",
        sql="clickhouse/visits/exported.sql",
        parameters={"least": 1},
        name="pages",
    )

    @task
    def check(manifest: str) -> int:
        from pyarrow import BufferReader, parquet

        from trilake.clickhouse.export import read_manifest
        from trilake.hooks.lake import LakeHook

        client = LakeHook().s3_client()
        export = read_manifest(client, manifest)
        for item in export.objects:
            content = client.get_object(Bucket="exports", Key=item.key)["Body"].read()
            assert parquet.read_metadata(BufferReader(content)).num_rows == item.rows
        return export.rows

    fill() >> [visits, pages] >> check(visits.output["manifest"])
