"""
# PostgresToS3Operator

`parquet` writes the payments of three months with their types. `csv` writes the payments of one month as text.

**When it fails:** clear the failed task. Each object is replaced as a whole.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG

from trilake.lake import DataSet
from trilake.transfers.postgres_to_s3 import PostgresToS3Operator

PAYMENTS = DataSet("payments", grain="month", date="paid_at", shard_by="payment")

with DAG(
    "postgres_to_s3",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    parquet = PostgresToS3Operator(
        task_id="parquet",
        data_set=PAYMENTS,
        sql="postgres/payments/paid.sql",
        parameters={"least": 1},
        start="2013-01",
        end="2013-03",
    )
    csv = PostgresToS3Operator(
        task_id="csv",
        data_set=PAYMENTS,
        sql="SELECT payment, amount FROM payments WHERE paid_at >= %(start)s AND paid_at < %(stop)s",
        file_format="csv",
        start="2013-01",
    )
    parquet >> csv
