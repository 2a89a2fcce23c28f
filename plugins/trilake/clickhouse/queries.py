"""Look up the state of a query, and kill queries, on every host of a cluster."""

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

# A killed query ends at its next block. A query that still runs after this many seconds is blocked by something.
KILL_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Servers write their query log every 7.5 s. A user without the right to flush it must wait this long.
LOG_DELAY_SECONDS = 15.0


class QueryState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """No host runs it and no query log has its end: it was never sent, or its server died while it ran."""


@dataclass(frozen=True)
class QueryMetrics:
    """The resources that a query used. Bytes are uncompressed. Memory is the peak on the host that it was sent to."""

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
        """The sums, and the largest peak of memory."""
        listed = list(several)
        sums = {name: sum(getattr(metrics, name) for metrics in listed) for name in (*COUNTS, "seconds")}
        return cls(**sums, memory_bytes=max((metrics.memory_bytes for metrics in listed), default=0))

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> QueryMetrics:
        """The metrics from the summary of an HTTP answer."""
        numbers = {name: int(summary.get(name) or 0) for name in COUNTS}
        seconds = int(summary.get("elapsed_ns") or 0) / 1e9
        return cls(**numbers, memory_bytes=int(summary.get("memory_usage") or 0), seconds=seconds)


COUNTS = ("read_rows", "read_bytes", "written_rows", "written_bytes")


@dataclass(frozen=True)
class Seen:
    """The state of a query, as the hosts report it.

    :param error: why the query failed, in one line, without the query's text.
    :param code: ClickHouse's error code; 0 without an error.
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
    """The state of a query, from ``system.processes`` and ``system.query_log`` of every host.

    :param since: when the query was sent or a little earlier, in seconds since 1970.
    :raises ClusterError: a host does not answer, where the query may run, and no other host knows the query.
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
            if e.code != UNKNOWN_TABLE:  # the server creates the log with its first row
                raise
            rows = []
        return _of_log(rows[0]) if rows else Seen(QueryState.UNKNOWN)

    answers, errors = _each_host(cluster, look_on)
    for state in (QueryState.RUNNING, QueryState.FINISHED, QueryState.FAILED):
        for seen in answers:
            if seen.state is state:
                return seen
    if errors:
        raise ClusterError(errors)
    return Seen(QueryState.UNKNOWN)


def logged(cluster: Cluster, prefix: str, *, count: int, since: float) -> QueryMetrics | None:
    """The metrics of all finished queries whose ids begin with `prefix`, from the query logs. None: the logs do not
    have exactly `count` of them.

    :param since: when the first query was sent or a little earlier, in seconds since 1970.
    :raises ClusterError: a host does not answer, or has no query log.
    """
    fields = ", ".join([*(f"sum({name})" for name in COUNTS), "max(memory_usage)", "sum(query_duration_ms) / 1000"])
    statement = Statement(
        f"SELECT count(), {fields} FROM system.query_log WHERE startsWith(query_id, {quote_text(prefix)}) "
        f"AND event_date >= toDate('{_day_before(since)}') AND type = 'QueryFinish' AND is_initial_query"
    )

    def ask(shard: ClickHouseShard) -> tuple[int, QueryMetrics]:
        _flush(cluster, shard)
        queries, *numbers = cluster.on_shard(shard, statement)[0]
        return int(queries), QueryMetrics(*numbers)

    answers, errors = _each_host(cluster, ask)
    if errors:
        raise ClusterError(errors)
    if sum(queries for queries, _ in answers) != count:
        return None
    return QueryMetrics.of_all(metrics for _, metrics in answers)


def look_for_sure(cluster: Cluster, query_id: str, *, since: float) -> Seen:
    """Like `look`, but returns `UNKNOWN` only after the time that servers need to write their query log.

    :raises ClusterError: see `look`.
    """
    deadline = time.monotonic() + LOG_DELAY_SECONDS
    while (seen := look(cluster, query_id, since=since)).state is QueryState.UNKNOWN and time.monotonic() < deadline:
        time.sleep(1)
    return seen


def kill(
    cluster: Cluster, query_id: str = "", *, comment: Mapping[str, str] | None = None, seconds: float = KILL_SECONDS
) -> int:
    """Kill queries on every host, and wait until they have ended.

    :param query_id: of one query. Its parts on other hosts are killed too.
    :param comment: keys and values that the JSON of the queries' ``log_comment`` must have.
    :param seconds: how long to wait for the queries to end.
    :returns: how many queries were running.
    :raises ConfigurationError: neither `query_id` nor `comment` is given.
    :raises ClusterError: names the hosts that do not answer, or where a query does not end. Queries on other hosts have
        ended.
    """
    conditions = [
        f"JSONExtractString(Settings['log_comment'], {quote_text(key)}) = {quote_text(value)}"
        for key, value in (comment or {}).items()
    ]
    if query_id:
        conditions.append(f"(query_id = {quote_text(query_id)} OR initial_query_id = {quote_text(query_id)})")
    if not conditions:
        raise ConfigurationError(
            "There is neither a query id nor a log comment, so it is unknown which queries to kill.",
            hint="Set query_id or comment.",
        )
    mine = " AND ".join(conditions)
    deadline = time.monotonic() + seconds

    def kill_on(shard: ClickHouseShard) -> int:
        count = Statement(f"SELECT count() FROM system.processes WHERE {mine}")
        before = running = int(cluster.on_shard(shard, count)[0][0])
        while running:
            if time.monotonic() > deadline:
                raise ClickHouseError(
                    f"{shard}: {running} killed queries still run after {seconds:.0f} s.",
                    hint="See system.processes on this server for what they wait for.",
                )
            cluster.on_shard(shard, Statement(f"KILL QUERY WHERE {mine} ASYNC"))
            time.sleep(_POLL_SECONDS)
            running = int(cluster.on_shard(shard, count)[0][0])
        return before

    counts, errors = _each_host(cluster, kill_on)
    if errors:
        raise ClusterError(errors)
    return sum(counts)


def _day_before(since: float) -> date:
    """The first day to search in the query log. A host may have another clock or time zone, so start a day earlier."""
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
        # Only administrators may flush. Without the flush the log is a few seconds late.
        pass


def _each_host(
    cluster: Cluster, ask: Callable[[ClickHouseShard], T]
) -> tuple[list[T], list[tuple[ClickHouseShard, TrilakeError]]]:
    """The answers of the hosts that answer, and the errors of the others."""
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
