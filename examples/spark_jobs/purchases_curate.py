"""Purchases: single rows from raw files to ClickHouse, totals by day and shop to PostgreSQL."""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from trilake.spark.job import Job

CSV = "id int NOT NULL, shop string NOT NULL, day date NOT NULL, amount decimal(9, 2)"


def by_day(purchases: DataFrame) -> DataFrame:
    return purchases.groupBy("day", "shop").agg(F.count("*").alias("purchases"), F.sum("amount").alias("amount"))


def main(arguments: Sequence[str]) -> None:
    with Job(arguments) as job:
        purchases = job.read(CSV)
        job.commit(purchases.rows, purchases)
        job.publish()
        seen = job.read_table(job.data_set, partitions=job.window.partitions, columns=["day", "shop", "amount"])
        job.write_postgres(by_day(seen), "marts.purchases_day", date="day")
