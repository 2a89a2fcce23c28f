"""What has come into ``s3://raw/`` and is in no run's hands yet.

The truth is a table in database ``lake``: for each partition a digest of the objects (key, ETag, size) that lay there
when a run last took it in hand. A partition that looks otherwise now is due, whoever changed it and however late. So
nothing depends on an event: one that is lost, doubled or late is only a reason to look, or to look again.

- A run that arrivals have started takes what is due before anything else (`take`). If it fails, it is there to be
  cleared: what it took is its own, and no other run is started for it. If it never comes to a commit (it was deleted,
  or marked as a success), `overdue` tells so and `again` has it taken anew.
- A job that has committed writes down what it had pinned (`committed`), which may be more than what lay there when its
  run began. Whatever dies before that line leaves it to be done, and what was done twice is the same.
- A task that ingests writes down what it has put there itself (`putting`): that is no arrival.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from trilake.endpoints import PostgresEndpoint
from trilake.errors import ConfigurationError
from trilake.lake.data_set import RAW_BUCKET, DataSet
from trilake.lake.window import Grain, Window, parse_partition, partition_name
from trilake.postgres.connection import connect
from trilake.postgres.locks import LockSpace, lock_key
from trilake.s3 import is_unfinished

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from psycopg2.extensions import cursor as Cursor

# A producer writes its files one after another: so long nothing new has come before they are taken for all.
SETTLE_SECONDS = 60.0
# A producer that is never quiet for that long: then they are taken as they are, and what comes later once more.
MAX_WAIT_SECONDS = 900.0
# What was taken and is not committed by then is told of: hardly a run takes longer, with all its tries.
OVERDUE_AFTER = timedelta(days=1)
# Each look lists the whole prefix, a request for a thousand objects.
POLL_SECONDS = 30.0
# What one run takes: a file that cannot be read holds up no more than this. The rest is the next one's.
RUN_PARTITIONS: Mapping[Grain, int] = {"day": 31, "month": 12}
_KEY = re.compile(r"([^/]+)/([^/]+)/(.*[^/])", re.DOTALL)

Object = tuple[str, str, int]


def grain_of(data_set: DataSet) -> Grain:
    """:raises ConfigurationError: the data set has no grain, and so no partitions that could be due."""
    if data_set.grain is None:
        raise ConfigurationError(
            f"Data set {data_set.name} has no grain: it is always replaced as a whole.",
            hint="Arrivals are of partitions: give it a grain.",
        )
    return data_set.grain


def partition_of(data_set: DataSet, key: str) -> str | None:
    """The partition that an object below bucket ``raw`` belongs to; None: to none of this data set's.

    A partition is named as `Window` names it and in no other way: ``2013-2`` or ``2013-02-01`` are no months. A key
    that ends in ``/`` is a folder's.
    """
    match = _KEY.fullmatch(key)
    if match is None or match[1] != data_set.name:
        return None
    try:
        named = partition_name(grain_of(data_set), parse_partition(grain_of(data_set), match[2]))
    except ConfigurationError:
        return None
    return match[2] if match[2] == named else None


def digest(objects: Iterable[Object]) -> str:
    """Stands for these objects (key, ETag, bytes), in whichever order they come."""
    return hashlib.sha256(json.dumps(sorted(set(objects))).encode()).hexdigest()


@dataclass(frozen=True)
class Listing:
    """What lies below the prefix of one partition.

    :param objects: and when each of them came, by the store's clock.
    """

    objects: Mapping[Object, datetime]

    @property
    def digest(self) -> str:
        return digest(self.objects)

    def without(self, key: str) -> frozenset[Object]:
        return frozenset(found for found in self.objects if found[0] != key)

    def waits_since(self, taken: datetime | None) -> datetime:
        """When the first of them came that came after this; of those that are gone nobody knows when."""
        return min(at for at in self.objects.values() if taken is None or at > taken or at == self.newest)

    @property
    def newest(self) -> datetime:
        return max(self.objects.values())


@dataclass(frozen=True)
class Taken:
    """What a run took in hand of one partition, and when, by the database's clock.

    :param awaited: a job is still to commit it.
    """

    digest: str
    at: datetime
    run: str
    awaited: bool


@dataclass(frozen=True)
class Look:
    """Who had what in hand, by partition, at one moment of the database's clock."""

    at: datetime
    taken: Mapping[str, Taken]


@dataclass(frozen=True)
class Overdue:
    """What a run took in hand and no job has committed."""

    data_set: str
    partition: str
    run: str
    taken_at: datetime


def overdue(lake: PostgresEndpoint, after: timedelta = OVERDUE_AFTER) -> list[Overdue]:
    """What was taken longer ago than this and not committed since, of all data sets: the longest first."""
    with connect(lake) as connection, connection.cursor() as ledger:
        ledger.execute(
            "SELECT data_set, partition, run_id, taken_at FROM arrivals WHERE awaited AND taken_at < now() - %s "
            "ORDER BY taken_at, data_set, partition",
            (after,),
        )
        return [Overdue(*row) for row in ledger.fetchall()]


def again(lake: PostgresEndpoint, data_set: str, partition: str) -> None:
    """Forget that somebody has this in hand: what lies there is due, for whichever run comes first.

    :raises ConfigurationError: nobody has.
    """
    with connect(lake) as connection, connection.cursor() as ledger:
        ledger.execute("DELETE FROM arrivals WHERE data_set = %s AND partition = %s", (data_set, partition))
        if not ledger.rowcount:
            raise ConfigurationError(
                f"Nobody has {data_set} {partition} in hand.", hint="`trilake arrivals` lists what was taken."
            )


class Arrivals:
    """The arrivals of one data set.

    A run's name is `trilake.hooks.task_instance.TaskInstance.run`, or what a job got that no DAG started.

    :param lake: database ``lake``.
    :param settle_seconds: a partition is due when it has been quiet for so long.
    :param max_wait_seconds: or when something has waited in it for so long, however busy it is.
    :raises ConfigurationError: the data set has no grain.
    """

    def __init__(
        self,
        lake: PostgresEndpoint,
        client: S3Client,
        data_set: DataSet,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        grain_of(data_set)
        self.lake = lake
        self.client = client
        self.data_set = data_set
        self.settle = timedelta(seconds=settle_seconds)
        self.max_wait = timedelta(seconds=max_wait_seconds)

    def due(self) -> dict[str, datetime | None]:
        """The partitions that are due, oldest first, and when each was taken last. One that is empty is not."""
        # the ledger first: what is taken in between is seen as due, and whoever comes to take it sees that it is not
        known = self.look().taken
        return {partition: known[partition].at if partition in known else None for partition in self._due(known)}

    def take(self, run: str) -> Window | None:
        """Take the oldest partitions that are due and follow each other in hand, for a run; None: there are none.

        Of two that come at once one gets them. A run that has taken some gets the same again.
        """
        with self._locked() as ledger:
            ledger.execute(
                "SELECT min(partition), max(partition) FROM arrivals WHERE data_set = %s AND run_id = %s",
                (self.data_set.name, run),
            )
            first, last = ledger.fetchone() or (None, None)
            if first is not None:
                return self.data_set.window(first, last)
            due = self._due(self._known(ledger))
            if not due:
                return None
            stretch = self._stretch(list(due))
            self._write(ledger, {partition: due[partition].digest for partition in stretch}, run, awaited=True)
            return self.data_set.window(stretch[0], stretch[-1])

    def take_window(self, window: Window, run: str) -> None:
        """Take these partitions in hand, due or not: somebody asked for them."""
        with self._locked() as ledger:
            found = {p: listed.digest for p in window if (listed := self._list(p)[0].get(p))}
            self._write(ledger, found, run, awaited=True)

    def look(self) -> Look:
        """Who has what in hand. A job asks before it pins its input, and tells `committed` what it saw."""
        with connect(self.lake) as connection, connection.cursor() as ledger:
            ledger.execute("SELECT now()")
            (at,) = ledger.fetchone() or ()
            return Look(at, self._known(ledger))

    def committed(self, pinned: Mapping[str, Iterable[Object]], seen: Look, run: str) -> None:
        """A job has committed what it pinned, by partition: nobody needs to take that, and nobody waits for it.

        Where another one has written since the job looked, its word stands. It may have been taken for objects that
        the job did not see; and if it were not, one run too many does no harm.
        """
        with self._locked() as ledger:
            known = self._known(ledger)
            ours = {p: digest(objects) for p, objects in pinned.items() if known.get(p) == seen.taken.get(p)}
            self._write(ledger, ours, run, awaited=False, at=seen.at)

    def done(self, run: str) -> None:
        """Nobody waits for a commit of what this run took: its DAG makes something else of it."""
        with self._locked() as ledger:
            ledger.execute(
                "UPDATE arrivals SET awaited = false WHERE data_set = %s AND run_id = %s", (self.data_set.name, run)
            )

    @contextmanager
    def putting(self, partition: str, key: str, run: str) -> Iterator[None]:
        """Within the block a task writes this object. Where that is all that changed, nothing has arrived.

        What others have put there and no run has taken stays due. So it does if the task dies within the block: then a
        run may be started that has nothing new to find.
        """
        seen = self.look().taken.get(partition)
        before = self._list(partition)[0].get(partition)
        yield
        if before is not None and (seen is None or seen.digest != before.digest):
            return
        with self._locked() as ledger:
            after = self._list(partition)[0].get(partition)
            others = before.without(key) if before else frozenset()
            if after is None or after.without(key) != others or self._known(ledger).get(partition) != seen:
                return
            if seen is None or not seen.awaited:
                self._write(ledger, {partition: after.digest}, run, awaited=False)
            else:  # whoever has it in hand keeps it: its next try finds its own, and if there is none that is told
                self._write(ledger, {partition: after.digest}, seen.run, awaited=True, at=seen.at)

    def _stretch(self, due: Sequence[str]) -> list[str]:
        """The first of them, and those that follow it without a gap: as many as one run takes."""
        windows = [self.data_set.window(partition) for partition in due[: RUN_PARTITIONS[grain_of(self.data_set)]]]
        follows = takewhile(lambda two: two[0].stop == two[1].start, pairwise(windows))
        return [due[0], *(str(window) for _, window in follows)]

    # --- the table

    @contextmanager
    def _locked(self) -> Iterator[Cursor]:
        """One transaction, and of those that write nobody else: what is listed in it is in the order of the writes."""
        with connect(self.lake) as connection, connection.cursor() as ledger:
            ledger.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LockSpace.ARRIVAL, lock_key(self.data_set.name)))
            yield ledger

    def _known(self, ledger: Cursor) -> dict[str, Taken]:
        ledger.execute(
            "SELECT partition, digest, taken_at, run_id, awaited FROM arrivals WHERE data_set = %s",
            (self.data_set.name,),
        )
        return {partition: Taken(*taken) for partition, *taken in ledger.fetchall()}

    def _write(
        self, ledger: Cursor, digests: Mapping[str, str], run: str, *, awaited: bool, at: datetime | None = None
    ) -> None:
        ledger.executemany(
            "INSERT INTO arrivals (data_set, partition, digest, run_id, awaited, taken_at) "
            "VALUES (%s, %s, %s, %s, %s, coalesce(%s, now())) "
            "ON CONFLICT (data_set, partition) DO UPDATE SET (digest, run_id, awaited, taken_at) = "
            "(EXCLUDED.digest, EXCLUDED.run_id, EXCLUDED.awaited, EXCLUDED.taken_at)",
            [(self.data_set.name, partition, found, run, awaited, at) for partition, found in digests.items()],
        )

    # --- the store

    def _due(self, known: Mapping[str, Taken]) -> dict[str, Listing]:
        listed, now = self._list()

        def waited(found: Listing, taken: Taken | None) -> bool:
            return now - found.newest >= self.settle or (
                now - found.waits_since(taken.at if taken else None) >= self.max_wait
            )

        changed = {p: found for p, found in sorted(listed.items()) if p not in known or found.digest != known[p].digest}
        return {p: found for p, found in changed.items() if waited(found, known.get(p))}

    def _list(self, partition: str = "") -> tuple[dict[str, Listing], datetime]:
        """What lies there, by partition (or in one), and the store's time."""
        prefix = self.data_set.raw_key(partition) if partition else f"{self.data_set.name}/"
        objects: dict[str, dict[Object, datetime]] = {}
        now = datetime.now(UTC)
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=RAW_BUCKET, Prefix=prefix):
            if date := page["ResponseMetadata"]["HTTPHeaders"].get("date"):
                now = parsedate_to_datetime(date)
            for item in page.get("Contents", ()):
                if not is_unfinished(item) and (found := partition_of(self.data_set, item["Key"])):
                    # one that has none, for want of room, is for the run to refuse: it names it
                    one = (item["Key"], item.get("ETag", "").strip('"'), item["Size"])
                    objects.setdefault(found, {})[one] = item["LastModified"]
        return {name: Listing(some) for name, some in objects.items()}, now
