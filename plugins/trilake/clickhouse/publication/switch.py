"""The switch: after it, readers of every shard see the publications that the ledger has decided.

Any process can repeat each step, any number of times. A decided publication is never undone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from trilake.clickhouse.cluster import (
    INCOMPATIBLE_COLUMNS,
    UNKNOWN_DATABASE,
    UNKNOWN_TABLE,
    ClickHouseError,
    Cluster,
    Statement,
    error_of,
    quote_name,
    quote_text,
)
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.clickhouse.publication.partitions import ttl_of
from trilake.clickhouse.publication.staging import drop_staging
from trilake.errors import CountMismatchError, TrilakeError
from trilake.lake.data_set import WHOLE, DataSet

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from trilake.endpoints import ClickHouseShard

log = logging.getLogger(__name__)

# An empty partition is published like any other. By default the server refuses an empty source, because somebody may
# have forgotten to load it. Here the audit has compared the row count.
REPLACE_SETTINGS = {
    "allow_replace_partition_from_empty_source": 1,
    # without it, the server refuses to replace a partition of more than 50 GB
    "max_partition_size_to_drop": 0,
}

# Partitions that are switched in parallel. Each needs a few fast statements, which mostly wait for each other.
PARTITIONS_SIDE_BY_SIDE = 4


class SwitchIncompleteError(TrilakeError):
    """The publication is decided, but not every shard shows it yet.

    :ivar staging_lost: a staging table does not exist, so repeating the switch cannot complete it.
    """

    def __init__(self, message: str, *, hint: str = "", staging_lost: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.staging_lost = staging_lost


class Switch:
    """Switches publications of one ledger on one cluster."""

    def __init__(self, cluster: Cluster, ledger: Ledger) -> None:
        self.cluster = cluster
        self.ledger = ledger

    def all(self, publications: Sequence[Publication]) -> None:
        """Switch each publication, several in parallel.

        :raises SwitchIncompleteError: names all that cannot be completed. The others are complete.
        """
        errors: list[TrilakeError] = []

        def collect(publication: Publication) -> None:
            try:
                self.one(publication)
            except TrilakeError as e:
                errors.append(e)

        with ThreadPoolExecutor(max_workers=PARTITIONS_SIDE_BY_SIDE) as pool:
            list(pool.map(collect, publications))
        raise_all(errors)

    def one(self, publication: Publication) -> None:
        """Drop staging tables of lower fences, replace the partition on every shard, count again, and mark it as done.

        If an earlier publisher continues too late, it does not find its staging table. So it cannot publish old rows
        again.

        :raises SwitchIncompleteError: a step failed, and no other process has completed this publication.
        """
        data_set = DataSet(publication.table)
        partition_id = quote_text(data_set.partition_id(publication.partition))
        staging = quote_name(data_set.staging_table(publication.attempt, publication.partition))
        local = quote_name(data_set.local_table)
        cluster = self.cluster.only(publication.rows)
        try:
            for attempt in self.ledger.lower_fences(publication):
                self._drop(publication, attempt)
            move = f"ALTER TABLE {{shard}}.{local} REPLACE PARTITION ID {partition_id} FROM "
            cluster.every_shard(partial(_replace, move, staging))
            self._empty_other_shards(publication)
            counted = cluster.every_shard(
                Statement(f"SELECT count() FROM {{shard}}.{local} WHERE _partition_id = {partition_id}")
            )
        except TrilakeError as e:
            self._raise_unless_overtaken(publication, e)
            return
        held = {number: int(rows[0][0]) for number, rows in counted.items()}
        if held != dict(publication.rows):
            ttl = ttl_of(self.cluster, data_set)
            wrong = CountMismatchError(
                f"the shards hold {held} rows after the switch, but the ledger says {publication.rows}."
                + (f" The table's TTL removes rows: {ttl}." if ttl else "")
            )
            self._raise_unless_overtaken(publication, wrong)
            return
        if self.ledger.done(publication):
            log.info("Published %s of %s: %s rows by shard, fence %s", publication.partition, publication.table, held,
                     publication.fence)  # fmt: skip
        self._drop(publication, publication.attempt)

    def _empty_other_shards(self, publication: Publication) -> None:
        """Drop the partition on shards that this publication does not name: its rows would be read twice.

        They are there if the ledger was restored to a time before a reshard, or if a server came back with an old disk.
        """
        others = {shard.number for shard in self.cluster.shards} - publication.rows.keys()
        if others and publication.partition != WHOLE:
            data_set = DataSet(publication.table)
            partition_id = quote_text(data_set.partition_id(publication.partition))
            drop = f"ALTER TABLE {{shard}}.{quote_name(data_set.local_table)} DROP PARTITION ID {partition_id}"
            self.cluster.only(others).every_shard(Statement(drop, {"max_partition_size_to_drop": 0}))

    def _drop(self, publication: Publication, attempt: str) -> None:
        """Drop a staging table on every shard, so that no process can fill it or switch to it any more."""
        name = DataSet(publication.table).staging_table(attempt, publication.partition)
        self.cluster.every_shard(partial(drop_staging, name))

    def _raise_unless_overtaken(self, publication: Publication, error: TrilakeError) -> None:
        """Raise `error`, unless its cause is that another process completed or replaced this publication."""
        current = self.ledger.current(publication.table, publication.partition)
        if current and (current.fence > publication.fence or current.state == "done"):
            log.info("%s of %s was completed by another process", publication.partition, publication.table)
            return
        lost = (
            f"Its staging table does not exist any more. `trilake rebuild --table {publication.table}` publishes the "
            "rows again."
        )
        hints = {
            UNKNOWN_TABLE: lost,
            UNKNOWN_DATABASE: lost,
            INCOMPATIBLE_COLUMNS: "The table's columns were changed during the publication. Publish a snapshot that "
            f"has the new columns: `trilake publish {publication.table} --partition {publication.partition} --force`.",
        }
        code = error.code if isinstance(error, ClickHouseError) else 0
        raise SwitchIncompleteError(
            f"Partition {publication.partition} of {publication.table} is decided (fence {publication.fence}), but not "
            f"every shard shows it: {error.message}",
            hint=hints.get(code, "Run the task again, or `trilake publications --finish`."),
            staging_lost=code in (UNKNOWN_TABLE, UNKNOWN_DATABASE),
        ) from error


def _replace(move: str, staging: str, client: Client, shard: ClickHouseShard) -> None:
    """Replace a partition from a staging table.

    :param move: the statement up to the table.
    """
    try:
        Statement(f"{move}{{staging}}.{staging}", REPLACE_SETTINGS)(client, shard)
    except Exception as e:
        if not _is_missing(e):
            raise
        try:  # an earlier version made the table in the shard's database, and died
            Statement(f"{move}{{shard}}.{staging}", REPLACE_SETTINGS)(client, shard)
        except Exception as earlier:
            raise (e if _is_missing(earlier) else earlier) from None


def _is_missing(error: Exception) -> bool:
    """Whether a table or its database does not exist."""
    told = error_of(None, error)
    return isinstance(told, ClickHouseError) and told.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE)


def raise_all(errors: Sequence[TrilakeError]) -> None:
    """Raise a single error as it is, and several as one error. Without errors, do nothing."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        raise SwitchIncompleteError(" ".join(error.message for error in errors), hint=" ".join(hints))
