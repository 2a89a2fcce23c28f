"""Finds the partitions of ``s3://raw/`` that have new or changed objects which no run has claimed.

The state is a table in database ``lake``. For each partition it holds a digest of the objects (key, ETag, size) that
existed when a run last claimed the partition. If the objects now have another digest, the partition is due: a run must
process it. It does not matter who changed the objects, or when. The result does not depend on events. A lost,
duplicate or late event changes only the time of the next listing.

- A run that was started by arrivals first claims the due partitions (`take`). If the run fails, a person clears it. It
  keeps its claim, so no other run is started for these partitions. If the run never commits (it was deleted, or marked
  as a success), `overdue` reports the claim, and `again` releases it for another run.
- After its commit a job records the objects that it had pinned (`committed`). These may be more than the objects that
  existed when its run began. If the process dies before it records them, the partition stays due. Then it is
  processed twice, with the same result.
- A task that ingests records the object that it writes (`putting`). Such an object is not an arrival.
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

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from psycopg2.extensions import cursor as Cursor

# A producer writes its files one after another. The set counts as complete when no new file came for this long.
SETTLE_SECONDS = 60.0
# If a producer never pauses that long, the files are claimed after this time; later files make the partition due again.
MAX_WAIT_SECONDS = 900.0
# A claim without a commit is reported after this time. Few runs take longer, with all their retries.
OVERDUE_AFTER = timedelta(days=1)
# Each poll lists the whole prefix: one request for every thousand objects.
POLL_SECONDS = 30.0
# One run claims at most this many partitions, so that an unreadable file delays only these. The next run claims the
# rest.
RUN_PARTITIONS: Mapping[Grain, int] = {"day": 31, "month": 12}
_KEY = re.compile(r"([^/]+)/([^/]+)/(.*[^/])", re.DOTALL)

Object = tuple[str, str, int]


def grain_of(data_set: DataSet) -> Grain:
    """:raises ConfigurationError: the data set has no grain, so it has no partitions that could be due."""
    if data_set.grain is None:
        raise ConfigurationError(
            f"Data set {data_set.name} has no grain: it is always replaced as a whole.",
            hint="Arrivals need partitions: give the data set a grain.",
        )
    return data_set.grain


def partition_of(data_set: DataSet, key: str) -> str | None:
    """The partition of an object in bucket ``raw``; None if it does not belong to a partition of this data set.

    Only the names that `Window` uses are partitions: ``2013-2`` and ``2013-02-01`` do not name a month. A key that ends
    in ``/`` is a folder.
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
    """A digest of the objects (key, ETag, bytes), whatever their order."""
    return hashlib.sha256(json.dumps(sorted(set(objects))).encode()).hexdigest()


@dataclass(frozen=True)
class Listing:
    """The objects below the prefix of one partition.

    :param objects: each object with the time of its last change, by the store's clock.
    """

    objects: Mapping[Object, datetime]

    @property
    def digest(self) -> str:
        return digest(self.objects)

    def without(self, key: str) -> frozenset[Object]:
        return frozenset(item for item in self.objects if item[0] != key)

    def waits_since(self, taken: datetime | None) -> datetime:
        """The time of the oldest object that was changed after `taken`. If there is none, because objects were only
        removed, it is the time of the newest object.
        """
        return min(at for at in self.objects.values() if taken is None or at > taken or at == self.newest)

    @property
    def newest(self) -> datetime:
        return max(self.objects.values())


@dataclass(frozen=True)
class Taken:
    """A run's claim on one partition.

    :param at: when the run claimed it, by the database's clock.
    :param awaited: no job has committed it yet.
    """

    digest: str
    at: datetime
    run: str
    awaited: bool


@dataclass(frozen=True)
class Look:
    """All claims by partition, at one moment of the database's clock."""

    at: datetime
    taken: Mapping[str, Taken]


@dataclass(frozen=True)
class Overdue:
    """A partition that a run claimed and no job has committed."""

    data_set: str
    partition: str
    run: str
    taken_at: datetime


def overdue(lake: PostgresEndpoint, after: timedelta = OVERDUE_AFTER) -> list[Overdue]:
    """The claims of all data sets that are older than `after` and not committed, oldest first."""
    with connect(lake) as connection, connection.cursor() as ledger:
        ledger.execute(
            "SELECT data_set, partition, run_id, taken_at FROM arrivals WHERE awaited AND taken_at < now() - %s "
            "ORDER BY taken_at, data_set, partition",
            (after,),
        )
        return [Overdue(*row) for row in ledger.fetchall()]


def again(lake: PostgresEndpoint, data_set: str, partition: str) -> None:
    """Release the claim on a partition. It is due again, and the next run can claim it.

    :raises ConfigurationError: no run has claimed it.
    """
    with connect(lake) as connection, connection.cursor() as ledger:
        ledger.execute("DELETE FROM arrivals WHERE data_set = %s AND partition = %s", (data_set, partition))
        if not ledger.rowcount:
            raise ConfigurationError(
                f"No run has claimed partition {partition} of {data_set}.", hint="`trilake arrivals` lists the claims."
            )


class Arrivals:
    """The arrivals of one data set.

    A run's name is `trilake.hooks.task_instance.TaskInstance.run`, or the run id of a job that no DAG started.

    :param lake: database ``lake``.
    :param settle_seconds: a changed partition is due when no object has changed for this long.
    :param max_wait_seconds: it is due in any case when a change has waited for this long.
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
        """The due partitions, oldest first, and when each was last claimed. An empty partition is never due."""
        # Read the claims before the listing. A partition that is claimed in between is returned as due, but `take`
        # checks this again before it claims the partition.
        claims = self.look().taken
        return {partition: claims[partition].at if partition in claims else None for partition in self._due(claims)}

    def take(self, run: str) -> Window | None:
        """Claim the oldest due partition for a run, and the due ones directly after it. None: no partition is due.

        If two runs call this at the same time, one of them gets the partitions. A run that calls it again gets the same
        partitions.
        """
        with self._locked() as ledger:
            ledger.execute(
                "SELECT min(partition), max(partition) FROM arrivals WHERE data_set = %s AND run_id = %s",
                (self.data_set.name, run),
            )
            first, last = ledger.fetchone() or (None, None)
            if first is not None:
                return self.data_set.window(first, last)
            due = self._due(self._claims(ledger))
            if not due:
                return None
            stretch = self._stretch(list(due))
            self._write(ledger, {partition: due[partition].digest for partition in stretch}, run, awaited=True)
            return self.data_set.window(stretch[0], stretch[-1])

    def take_window(self, window: Window, run: str) -> None:
        """Claim these partitions, due or not, because a person named them."""
        with self._locked() as ledger:
            digests = {p: listed.digest for p in window if (listed := self._list(p)[0].get(p))}
            self._write(ledger, digests, run, awaited=True)

    def look(self) -> Look:
        """All current claims. A job calls this before it pins its input, and passes the result to `committed`."""
        with connect(self.lake) as connection, connection.cursor() as ledger:
            ledger.execute("SELECT now()")
            (at,) = ledger.fetchone() or ()
            return Look(at, self._claims(ledger))

    def committed(self, pinned: Mapping[str, Iterable[Object]], seen: Look, run: str) -> None:
        """Record that a job has committed these objects, by partition. They are no longer due, and no longer awaited.

        A claim that changed after the job's `look` is kept: it may be for objects that the job did not see. If the job
        did see them, one unnecessary run is started. It does no harm.
        """
        with self._locked() as ledger:
            claims = self._claims(ledger)
            ours = {p: digest(objects) for p, objects in pinned.items() if claims.get(p) == seen.taken.get(p)}
            self._write(ledger, ours, run, awaited=False, at=seen.at)

    def done(self, run: str) -> None:
        """Record that no commit is awaited for this run's claims, because its DAG does not commit to the lake."""
        with self._locked() as ledger:
            ledger.execute(
                "UPDATE arrivals SET awaited = false WHERE data_set = %s AND run_id = %s", (self.data_set.name, run)
            )

    @contextmanager
    def putting(self, partition: str, key: str, run: str) -> Iterator[None]:
        """Within the block a task writes this object. If nothing else changes, the partition does not become due.

        Objects that others wrote and no run has claimed stay due. If the task dies within the block, the partition is
        due, and a run may start that finds nothing new.
        """
        seen = self.look().taken.get(partition)
        before = self._list(partition)[0].get(partition)
        yield
        if before is not None and (seen is None or seen.digest != before.digest):
            return
        with self._locked() as ledger:
            after = self._list(partition)[0].get(partition)
            others = before.without(key) if before else frozenset()
            if after is None or after.without(key) != others or self._claims(ledger).get(partition) != seen:
                return
            if seen is None or not seen.awaited:
                self._write(ledger, {partition: after.digest}, run, awaited=False)
            else:  # The run keeps its claim. Its next try reads the new object; without a next try it becomes overdue.
                self._write(ledger, {partition: after.digest}, seen.run, awaited=True, at=seen.at)

    def _stretch(self, due: Sequence[str]) -> list[str]:
        """The first partition and those that follow it without a gap, at most as many as one run claims."""
        windows = [self.data_set.window(partition) for partition in due[: RUN_PARTITIONS[grain_of(self.data_set)]]]
        follows = takewhile(lambda two: two[0].stop == two[1].start, pairwise(windows))
        return [due[0], *(str(window) for _, window in follows)]

    # --- the table of claims

    @contextmanager
    def _locked(self) -> Iterator[Cursor]:
        """One transaction with a lock: only one process at a time lists objects and then writes claims."""
        with connect(self.lake) as connection, connection.cursor() as ledger:
            ledger.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LockSpace.ARRIVAL, lock_key(self.data_set.name)))
            yield ledger

    def _claims(self, ledger: Cursor) -> dict[str, Taken]:
        ledger.execute(
            "SELECT partition, digest, taken_at, run_id, awaited FROM arrivals WHERE data_set = %s",
            (self.data_set.name,),
        )
        return {partition: Taken(*claim) for partition, *claim in ledger.fetchall()}

    def _write(
        self, ledger: Cursor, digests: Mapping[str, str], run: str, *, awaited: bool, at: datetime | None = None
    ) -> None:
        ledger.executemany(
            "INSERT INTO arrivals (data_set, partition, digest, run_id, awaited, taken_at) "
            "VALUES (%s, %s, %s, %s, %s, coalesce(%s, now())) "
            "ON CONFLICT (data_set, partition) DO UPDATE SET (digest, run_id, awaited, taken_at) = "
            "(EXCLUDED.digest, EXCLUDED.run_id, EXCLUDED.awaited, EXCLUDED.taken_at)",
            [(self.data_set.name, partition, value, run, awaited, at) for partition, value in digests.items()],
        )

    # --- the objects in S3

    def _due(self, claims: Mapping[str, Taken]) -> dict[str, Listing]:
        listings, now = self._list()

        def waited(listing: Listing, claim: Taken | None) -> bool:
            return now - listing.newest >= self.settle or (
                now - listing.waits_since(claim.at if claim else None) >= self.max_wait
            )

        changed = {
            partition: listing
            for partition, listing in sorted(listings.items())
            if partition not in claims or listing.digest != claims[partition].digest
        }
        return {partition: listing for partition, listing in changed.items() if waited(listing, claims.get(partition))}

    def _list(self, partition: str = "") -> tuple[dict[str, Listing], datetime]:
        """The objects of every partition, or of one, and the store's time."""
        prefix = self.data_set.raw_key(partition) if partition else f"{self.data_set.name}/"
        objects: dict[str, dict[Object, datetime]] = {}
        now = datetime.now(UTC)
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=RAW_BUCKET, Prefix=prefix):
            if date := page["ResponseMetadata"]["HTTPHeaders"].get("date"):
                now = parsedate_to_datetime(date)
            for item in page.get("Contents", ()):
                if name := partition_of(self.data_set, item["Key"]):
                    # An object has no ETag if the store's disk was full. The run refuses it, with an error that names
                    # it.
                    identity = (item["Key"], item.get("ETag", "").strip('"'), item["Size"])
                    objects.setdefault(name, {})[identity] = item["LastModified"]
        return {name: Listing(of_partition) for name, of_partition in objects.items()}, now
