"""What runs of a platform, and what it was told to keep."""

from __future__ import annotations

import time
import urllib.request

from support.running_platform import Platform
from trilake import s3
from trilake.clickhouse.cluster import Cluster
from trilake.platform.embedded.home import LOOPBACK
from trilake.platform.embedded.status import status
from trilake.postgres.connection import connect


def pids(platform: Platform) -> dict[str, int | None]:
    return {service.service: service.pid for service in status(platform.home, memory=False)}


def states(platform: Platform) -> dict[str, str]:
    return {service.service: service.state for service in status(platform.home, memory=False)}


class Kept:
    """A row in PostgreSQL, an object in S3, a row in each ClickHouse shard, an admin's login to Airflow."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._mark = f"kept_{time.time_ns()}"
        self._s3 = s3.client(platform.endpoints.s3)
        self._cluster = Cluster(platform.endpoints.clickhouse)
        with connect(platform.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {self._mark} AS SELECT 42 AS answer")
        self._s3.put_object(Bucket="artifacts", Key=f"test/{self._mark}", Body=b"42")
        for shard in platform.endpoints.clickhouse.shards:
            table = f"{shard.database}.{self._mark}"
            self._run(f"CREATE TABLE {table} (answer UInt8) ENGINE = MergeTree ORDER BY answer")
            self._run(f"INSERT INTO {table} VALUES (42)")

    def _run(self, statement: str) -> object:
        port = self._platform.endpoints.clickhouse.shards[0].port
        endpoint = self._platform.endpoints.clickhouse
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{port}/",
            data=statement.encode(),
            headers={"X-ClickHouse-User": endpoint.user, "X-ClickHouse-Key": endpoint.password},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode().strip()

    def check(self) -> None:
        with connect(self._platform.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT answer FROM {self._mark}")
            assert cursor.fetchall() == [(42,)]
        assert self._s3.get_object(Bucket="artifacts", Key=f"test/{self._mark}")["Body"].read() == b"42"
        for shard in self._platform.endpoints.clickhouse.shards:
            assert self._run(f"SELECT answer FROM {shard.database}.{self._mark}") == "42"

    def drop(self) -> None:
        with connect(self._platform.endpoints.oltp) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {self._mark}")
        self._s3.delete_object(Bucket="artifacts", Key=f"test/{self._mark}")
        for shard in self._platform.endpoints.clickhouse.shards:
            self._run(f"DROP TABLE {shard.database}.{self._mark}")
