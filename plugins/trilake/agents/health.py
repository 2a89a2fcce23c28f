"""Whether the services of the platform answer, and whether what readers see is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, replace

from trilake import s3
from trilake.clickhouse.cluster import Cluster, Statement
from trilake.clickhouse.publication.ledger import Ledger
from trilake.endpoints import ClickHouseEndpoint, ClickHouseShard, Endpoints, PostgresEndpoint
from trilake.errors import TrilakeError
from trilake.lake.data_set import BUCKETS
from trilake.postgres.connection import connect

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ServiceHealth:
    """:param says: why it is not well; empty if it is.
    :param seconds: that the answer took.
    """

    name: str
    ok: bool
    says: str = ""
    seconds: float = 0.0


def check_services(endpoints: Endpoints) -> list[ServiceHealth]:
    """Ask every service that tasks and jobs use, at the same time. A service that does not answer within `TIMEOUT_S`
    is not well.
    """
    checks: dict[str, Callable[[], str]] = {
        "postgres lake": lambda: _postgres(endpoints.lake),
        "postgres oltp": lambda: _postgres(endpoints.oltp),
        "s3": lambda: _s3(endpoints),
        **{
            f"clickhouse shard {shard.number}": _clickhouse_check(endpoints.clickhouse, shard)
            for shard in endpoints.clickhouse.shards
        },
        "publications": lambda: _publications(endpoints.lake),
    }
    return _ask_all(checks)


def _ask_all(checks: Mapping[str, Callable[[], str]]) -> list[ServiceHealth]:
    # not a `with` block: it would wait for a check that hangs
    pool = ThreadPoolExecutor(max_workers=len(checks), thread_name_prefix="health")
    try:
        until = time.monotonic() + TIMEOUT_S
        asked = {name: pool.submit(_timed, name, check) for name, check in checks.items()}
        found = []
        for name, future in asked.items():
            try:
                found.append(future.result(timeout=max(until - time.monotonic(), 0.0)))
            except NotInTime:
                found.append(ServiceHealth(name, False, f"No answer within {TIMEOUT_S:.0f} s.", TIMEOUT_S))
        return found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _timed(name: str, check: Callable[[], str]) -> ServiceHealth:
    began = time.monotonic()
    try:
        says = check()
    except TrilakeError as e:
        says = str(e)
    return ServiceHealth(name, not says, says, round(time.monotonic() - began, 3))


def _postgres(endpoint: PostgresEndpoint) -> str:
    with connect(endpoint) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ""


def _s3(endpoints: Endpoints) -> str:
    client = s3.client(endpoints.s3)
    missing = []
    for bucket in BUCKETS:  # the list of buckets has only those that an identity owns
        try:
            client.head_bucket(Bucket=bucket)
        except client.exceptions.ClientError:
            missing.append(bucket)
    return f"There is no bucket {', '.join(missing)}." if missing else ""


def _clickhouse_check(endpoint: ClickHouseEndpoint, shard: ClickHouseShard) -> Callable[[], str]:
    def check() -> str:
        with Cluster(replace(endpoint, shards=(shard,)).for_questions()) as cluster:
            cluster.on_shard(shard, Statement("SELECT 1"))
        return ""

    return check


def _publications(lake: PostgresEndpoint) -> str:
    waiting = Ledger(lake).switching()
    if not waiting:
        return ""
    first = waiting[0]
    return (
        f"{len(waiting)} publications are decided and not complete, such as {first.table} {first.partition}. "
        "publication_housekeeping completes them within ten minutes, or `trilake publications --finish`."
    )
