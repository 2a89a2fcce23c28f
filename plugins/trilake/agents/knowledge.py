"""What an agent is told about the data: which tables there are, what is in them, and how fresh they are.

Descriptions come from the catalog of the current job version (`trilake.clickhouse.data_catalog`), and so from the
project's repository alone. Numbers and times come from the ledger of publications.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from trilake import s3
from trilake.agents.refusals import CallError, plain
from trilake.clickhouse.data_catalog import DescribedDataSet, ExampleQuery, from_json
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.lake.data_set import WHOLE
from trilake.spark import versions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# How long an answer of the store and of the ledger is used again.
KEPT_SECONDS = 5.0
MAX_PARTITIONS = 24
MAX_EXAMPLES = 3
_MAX_ABOUT = 400
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Freshness:
    """What readers see of a table.

    :param partitions: rows by partition, the latest first; at most `MAX_PARTITIONS`.
    """

    rows: int
    first: str
    last: str
    published_at: str
    partitions: Mapping[str, int]


class Knowledge:
    """Everything that is told about tables. It may be used in several threads."""

    def __init__(self, lake: PostgresEndpoint, store: S3Endpoint) -> None:
        self._lake = lake
        self._store = store
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._version = ""
        self._described: dict[str, DescribedDataSet] = {}
        self._fresh: dict[str, Freshness] = {}
        self._read_at = float("-inf")

    def tables(self) -> dict[str, DescribedDataSet]:
        """The tables that can be queried, by name.

        :raises ConfigurationError: no job code was pushed yet.
        """
        self._refresh()
        return {name: item for name, item in self._described.items() if item.table}

    def data_sets(self) -> list[str]:
        """The names of all declared data sets. Spark can read their curated tables."""
        self._refresh()
        return [name for name, item in self._described.items() if item.declared]

    def data_set(self, name: str) -> DescribedDataSet:
        """:raises CallError: there is none of this name."""
        self._refresh()
        if name not in self._described:
            raise CallError("unknown_name", f"There is no table or run {plain(name, 100)}.", hint="find() lists them.")
        return self._described[name]

    def found(self) -> list[dict[str, Any]]:
        """All tables, in the form of `find`."""
        tables = self.tables()
        return [self._found(item) for item in tables.values()]

    def described(self, name: str) -> dict[str, Any]:
        """A table, in the form of `describe`, without its columns.

        :raises CallError: there is no such table.
        """
        item = self.data_set(name)
        if not item.table:
            raise CallError(
                "not_in_clickhouse",
                f"{name} is a data set without a table in ClickHouse.",
                hint=f"Spark can read it as lake.curated.{name}: submit agent_spark_sql.",
            )
        fresh = self._fresh.get(name)
        return {
            **self._found(item),
            "sorted by": item.order_by,
            "partitions": dict(fresh.partitions) if fresh else {},
            "checks": [
                f"{check.about or check.name} ({'blocking: stops a publication' if check.blocking else 'warning'})"
                for check in item.checks
            ],
            "examples": [_example(query, item, fresh) for query in item.queries[:MAX_EXAMPLES]],
        }

    def _found(self, item: DescribedDataSet) -> dict[str, Any]:
        data_set, fresh = item.data_set, self._fresh.get(item.name)
        return {
            "name": item.name,
            "kind": "table",
            "about": plain(item.about.split("\n")[0], _MAX_ABOUT),
            "one partition is": data_set.grain or "the whole table",
            **({"date": data_set.date} if data_set.date else {}),
            **(
                {"rows": fresh.rows, "from": fresh.first, "to": fresh.last, "published": fresh.published_at}
                if fresh
                else {"rows": 0, "published": "never"}
            ),
        }

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._read_at < KEPT_SECONDS:
                return
            if self._client is None:
                self._client = s3.client(self._store)
            version = versions.current(self._client)
            if version != self._version:
                text = versions.catalog(self._client, version)
                self._described, self._version = from_json(text) if text else {}, version
            by_table: dict[str, list[Publication]] = {}
            for publication in Ledger(self._lake).publications():
                by_table.setdefault(publication.table, []).append(publication)
            self._fresh = {name: _freshness(items) for name, items in by_table.items()}
            self._read_at = time.monotonic()


def matches(item: Mapping[str, Any], words: str) -> int:
    """How many of the words are in what is told about an item. Without words every item matches."""
    text = set(_WORD.findall(" ".join(str(value) for value in item.values()).lower()))
    asked = set(_WORD.findall(words.lower()))
    return sum(any(part.startswith(word[:5]) for part in text) for word in asked) if asked else 1


def _freshness(publications: list[Publication]) -> Freshness:
    ordered = sorted(publications, key=lambda publication: publication.partition, reverse=True)
    moments = [publication.done_at for publication in ordered if publication.done_at]
    return Freshness(
        rows=sum(publication.total_rows for publication in ordered),
        first=ordered[-1].partition,
        last=ordered[0].partition,
        published_at=max(moments).isoformat(timespec="seconds") if moments else "not yet",
        partitions={publication.partition: publication.total_rows for publication in ordered[:MAX_PARTITIONS]},
    )


def _example(query: ExampleQuery, item: DescribedDataSet, fresh: Freshness | None) -> dict[str, str]:
    """A query of a report, over all partitions."""
    sql = query.sql
    if fresh and fresh.first != WHOLE:
        start, stop = _first_day(fresh.first), _day_after(fresh.last)
        sql = sql.replace("{start:Date}", f"'{start}'").replace("{stop:Date}", f"'{stop}'")
    return {"title": query.title, "sql": " ".join(sql.split())}


def _first_day(partition: str) -> date:
    """The first day of a month (2013-02) or a day (2013-02-28)."""
    return date.fromisoformat(partition if len(partition) > 7 else f"{partition}-01")


def _day_after(partition: str) -> date:
    if len(partition) > 7:
        return date.fromisoformat(partition) + timedelta(days=1)
    return (_first_day(partition) + timedelta(days=31)).replace(day=1)
