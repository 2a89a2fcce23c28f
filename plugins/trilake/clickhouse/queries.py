"""What became of a query, and how to end one: on whichever host of a cluster it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from trilake.clickhouse.cluster import (
    UNKNOWN_TABLE,
    ClickHouseError,
    Cluster,
    ClusterError,
    Statement,
    quote_text,
    without_statement,
)
from trilake.endpoints import ClickHouseShard
from trilake.errors import ConfigurationError, TrilakeError, UnreachableError

T = TypeVar("T")

# A query is asked to end and does so at its next block; one that does not within this has something in its way.
KILL_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Servers write their query log every 7.5 s; where a user may not flush it, it is waited for.
LOG_DELAY_SECONDS = 15.0


class QueryState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """No host runs it and no query log tells of its end: it was never sent, or its server died with it."""


@dataclass(frozen=True)
class QueryMetrics:
    """What a query took. Bytes are uncompressed; memory is the peak on the host that it was sent to."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.read_rows} rows ({self.read_bytes} bytes) read, {self.written_rows} rows ({self.written_bytes} "
            f"bytes) written, {self.memory_bytes} bytes of memory, {self.seconds:.3f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_all(cls, several: Iterable[QueryMetrics]) -> QueryMetrics:
        """Sums, and the largest peak of memory."""
        listed = list(several)
        sums = {name: sum(getattr(one, name) for one in listed) for name in (*COUNTS, "seconds")}
        return cls(**sums, memory_bytes=max((one.memory_bytes for one in listed), default=0))

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> QueryMetrics:
        """Of the summary that ends an HTTP answer."""
        numbers = {name: int(summary.get(name) or 0) for name in COUNTS}
        seconds = int(summary.get("elapsed_ns") or 0) / 1e9
        return cls(**numbers, memory_bytes=int(summary.get("memory_usage") or 0), seconds=seconds)


COUNTS = ("read_rows", "read_bytes", "written_rows", "written_bytes")


@dataclass(frozen=True)
class Seen:
    """A query as the hosts tell of it.

    :param error: why it failed, one line, without its text.
    """

    state: QueryState
    metrics: QueryMetrics = QueryMetrics()
    error: str = ""
    code: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"state": str(self.state), "metrics": self.metrics.to_dict(), "error": self.error, "code": self.code}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Seen:
        return cls(
            QueryState(document["state"]), QueryMetrics(**document["metrics"]), document["error"], document["code"]
        )


def look(cluster: Cluster, query_id: str, *, since: float) -> Seen:
    """Where a query is, from ``system.processes`` and ``system.query_log`` of every host.

    :param since: when it was sent or a little earlier, in seconds since 1970.
    :raises ClusterError: a host does not answer and no other knows the query: it may run there.
    """
    day = _day_before(since)
    mine = f"query_id = {quote_text(query_id)}"

    def look_on(shard: ClickHouseShard) -> Seen:
        if cluster.on_shard(shard, Statement(f"SELECT 1 FROM system.processes WHERE {mine} LIMIT 1")):
            return Seen(QueryState.RUNNING)
        _flush(cluster, shard)
        log = Statement(
            f"SELECT type, {', '.join(COUNTS)}, memory_usage, query_duration_ms, exception, exception_code "
            f"FROM system.query_log WHERE {mine} AND event_date >= toDate('{day}') AND type != 'QueryStart' "
            "ORDER BY event_time_microseconds DESC LIMIT 1"
        )
        try:
            rows = cluster.on_shard(shard, log)
        except ClickHouseError as e:
            if e.code != UNKNOWN_TABLE:  # it is made with its first row
                raise
            rows = []
        return _of_log(rows[0]) if rows else Seen(QueryState.UNKNOWN)

    seen, errors = _each_host(cluster, look_on)
    for state in (QueryState.RUNNING, QueryState.FINISHED, QueryState.FAILED):
        for one in seen:
            if one.state is state:
                return one
    if errors:
        raise ClusterError(errors)
    return Seen(QueryState.UNKNOWN)


def logged(cluster: Cluster, prefix: str, *, count: int, since: float) -> QueryMetrics | None:
    """What finished queries took together, whose ids begin with `prefix`. None: the logs do not have `count` of them.

    :param since: when the first was sent or a little earlier, in seconds since 1970.
    :raises ClusterError: a host does not answer, or has no query log.
    """
    fields = ", ".join([*(f"sum({name})" for name in COUNTS), "max(memory_usage)", "sum(query_duration_ms) / 1000"])
    statement = Statement(
        f"SELECT count(), {fields} FROM system.query_log WHERE startsWith(query_id, {quote_text(prefix)}) "
        f"AND event_date >= toDate('{_day_before(since)}') AND type = 'QueryFinish' AND is_initial_query"
    )

    def ask(shard: ClickHouseShard) -> tuple[int, QueryMetrics]:
        _flush(cluster, shard)
        found, *numbers = cluster.on_shard(shard, statement)[0]
        return int(found), QueryMetrics(*numbers)

    answers, errors = _each_host(cluster, ask)
    if errors:
        raise ClusterError(errors)
    return QueryMetrics.of_all(taken for _, taken in answers) if sum(found for found, _ in answers) == count else None


def look_for_sure(cluster: Cluster, query_id: str, *, since: float) -> Seen:
    """As `look`; unknown only after the query log has had its time to be written.

    :raises ClusterError: see `look`.
    """
    deadline = time.monotonic() + LOG_DELAY_SECONDS
    while (seen := look(cluster, query_id, since=since)).state is QueryState.UNKNOWN and time.monotonic() < deadline:
        time.sleep(1)
    return seen


def kill(
    cluster: Cluster, query_id: str = "", *, comment: Mapping[str, str] | None = None, seconds: float = KILL_SECONDS
) -> int:
    """End queries on every host, and see them gone.

    :param query_id: of one query, and of the parts of it that other hosts work on.
    :param comment: keys and values that the JSON of its ``log_comment`` has.
    :param seconds: to wait for them to be gone.
    :returns: how many were running.
    :raises ClusterError: of the hosts that do not answer or where a query does not end; the others' are ended.
    """
    conditions = [
        f"JSONExtractString(Settings['log_comment'], {quote_text(key)}) = {quote_text(value)}"
        for key, value in (comment or {}).items()
    ]
    if query_id:
        conditions.append(f"(query_id = {quote_text(query_id)} OR initial_query_id = {quote_text(query_id)})")
    if not conditions:
        raise ConfigurationError("What is to be killed? Give a query id, or what its log comment says.")
    mine = " AND ".join(conditions)
    deadline = time.monotonic() + seconds

    def kill_on(shard: ClickHouseShard) -> int:
        count = Statement(f"SELECT count() FROM system.processes WHERE {mine}")
        found = left = int(cluster.on_shard(shard, count)[0][0])
        while left:
            if time.monotonic() > deadline:
                raise ClickHouseError(f"{shard}: {left} queries are asked to end and still run after {seconds:.0f} s.")
            cluster.on_shard(shard, Statement(f"KILL QUERY WHERE {mine} ASYNC"))
            time.sleep(_POLL_SECONDS)
            left = int(cluster.on_shard(shard, count)[0][0])
        return found

    counts, errors = _each_host(cluster, kill_on)
    if errors:
        raise ClusterError(errors)
    return sum(counts)


def _day_before(since: float) -> date:
    """Where to begin in the query log: a host's clock and time zone may be others."""
    return (datetime.fromtimestamp(since, UTC) - timedelta(days=1)).date()


def _of_log(row: Sequence[Any]) -> Seen:
    kind, read_rows, read_bytes, written_rows, written_bytes, memory, milliseconds, exception, code = row
    metrics = QueryMetrics(read_rows, read_bytes, written_rows, written_bytes, memory, milliseconds / 1000)
    if kind == "QueryFinish":
        return Seen(QueryState.FINISHED, metrics)
    lines = str(exception).splitlines() or ["no reason given"]
    return Seen(QueryState.FAILED, metrics, error=without_statement(lines[0])[:500], code=int(code))


def _flush(cluster: Cluster, shard: ClickHouseShard) -> None:
    try:
        cluster.on_shard(shard, Statement("SYSTEM FLUSH LOGS"))
    except UnreachableError:
        raise
    except TrilakeError:
        # a right of administrators: without it the log is a few seconds late
        pass


def _each_host(
    cluster: Cluster, ask: Callable[[ClickHouseShard], T]
) -> tuple[list[T], list[tuple[ClickHouseShard, TrilakeError]]]:
    """Every host's answer, whatever the others'."""
    errors: list[tuple[ClickHouseShard, TrilakeError]] = []
    answers: list[T] = []

    def run(shard: ClickHouseShard) -> None:
        try:
            answers.append(ask(shard))
        except TrilakeError as e:
            errors.append((shard, e))

    with ThreadPoolExecutor(len(cluster.hosts)) as pool:
        list(pool.map(run, cluster.hosts))
    return answers, errors
