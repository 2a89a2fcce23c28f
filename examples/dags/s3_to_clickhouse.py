"""
# S3ToClickHouseOperator

`write` stands for any program that writes to S3 and counts its rows: two months in Parquet, and a list of meters in
CSV. `readings` publishes the months; each shard gets its own rows. `meters` publishes the complete list on every shard.
If a count is wrong, nothing is published.

**When it fails:** clear `write` and its downstream tasks. A publication that was decided is finished; otherwise readers
still see the old data.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from trilake.lake import DataSet
from trilake.transfers.s3_to_clickhouse import S3ToClickHouseOperator

READINGS = DataSet("meter_readings", grain="month", date="day", shard_by="meter")
METERS = DataSet("meters")
MONTHS = ("2013-01", "2013-02")

with DAG(
    "s3_to_clickhouse",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):

    @task(multiple_outputs=True)
    def write(months: tuple[str, ...]) -> dict[str, dict]:
        """Returns the number of rows by key; for the readings also by month."""
        import io
        from datetime import date

        import pyarrow as pa
        import pyarrow.parquet as pq

        from trilake.hooks.lake import LakeHook

        s3 = LakeHook().s3_client()
        readings = {}
        for month in months:
            days = [date.fromisoformat(f"{month}-{day:02}") for day in range(1, 29)]
            rows = [{"meter": meter, "day": day, "kwh": meter / day.day} for meter in range(10) for day in days]
            content, key = io.BytesIO(), READINGS.raw_key(month, "readings.parquet")
            pq.write_table(pa.Table.from_pylist(rows), content)
            s3.put_object(Bucket="raw", Key=key, Body=content.getvalue())
            readings[month] = {key: len(rows)}
        lines = [f'{meter},"Main Street {meter}"\n' for meter in range(10)]
        s3.put_object(Bucket="raw", Key="meters/meters.csv", Body="".join(["meter,street\n", *lines]).encode())
        return {"readings": readings, "meters": {"meters/meters.csv": len(lines)}}

    @task
    def report() -> int:
        from trilake.hooks.clickhouse import ClickHouseHook

        sql = "SELECT count() FROM meter_readings AS r JOIN meters AS m USING (meter) WHERE m.street != ''"
        return ClickHouseHook().get_first(sql)[0]

    written = write(MONTHS)
    readings = S3ToClickHouseOperator(
        task_id="readings", data_set=READINGS, objects=written["readings"], start=MONTHS[0], end=MONTHS[-1]
    )
    meters = S3ToClickHouseOperator(task_id="meters", data_set=METERS, objects=written["meters"], file_format="csv")
    [readings, meters] >> report()
