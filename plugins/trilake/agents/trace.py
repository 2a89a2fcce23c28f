"""From a partition that readers see back to the files that it was made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trilake.agents.refusals import CallError
from trilake.clickhouse.publication.ledger import Ledger, Publication
from trilake.endpoints import PostgresEndpoint, S3Endpoint
from trilake.lake.catalog import (
    COUNTS_PROPERTY,
    FILES_PROPERTY,
    RUN_PROPERTY,
    SnapshotNotFoundError,
    TableNotFoundError,
    load_table,
    open_catalog,
    snapshot_summary,
)
from trilake.lake.data_set import DataSet
from trilake.lake.plan import PLAIN_OBJECTS

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog

MAX_FILES = 20
MAX_REASONS = 20


@dataclass(frozen=True)
class InputFile:
    """A file of bucket ``raw``, or a plain object, as it was when it was read. :param bytes: None: not recorded."""

    key: str
    etag: str
    bytes: int | None = None


@dataclass(frozen=True)
class Trace:
    """Where the rows of one partition came from.

    :param rows: that readers of ClickHouse see.
    :param published_by: the run that published them; `committed_by`: the run that wrote the snapshot.
    :param snapshot: of the Iceberg table; None for plain objects.
    :param counts: of the files' rows: read, curated, quarantined, duplicates. Empty: not recorded.
    :param reasons: of the quarantined rows: how many for each reason and file.
    :param files: that were read; `number_of_files`: how many there were, since long lists are cut. None: not recorded.
    :param gone: the snapshot has expired, so counts and files are not known any more.
    """

    table: str
    partition: str
    rows: int
    published_by: str
    published_at: str | None
    state: str
    snapshot: str | None = None
    committed_by: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    number_of_files: int | None = None
    gone: bool = False


def trace(lake: PostgresEndpoint, s3: S3Endpoint, data_set: DataSet, partition: str) -> Trace:
    """The origin of a partition of a table that readers see.

    :raises CallError: the partition was never published.
    :raises UnreachableError: the catalog or the store does not answer.
    """
    ledger = Ledger(lake)
    found = ledger.current(data_set.table, partition)
    if found is None:
        published = [publication.partition for publication in ledger.publications(data_set.table)]
        known = f"{min(published)} to {max(published)}" if published else "none"
        raise CallError(
            "never_published",
            f"Partition {partition} of {data_set.table} was never published.",
            hint=f"Published are {known}.",
        )
    if found.source == PLAIN_OBJECTS:
        return _of_objects(found)
    with closing(open_catalog(lake, s3)) as catalog:
        try:
            table = load_table(catalog, data_set.curated)
            summary = snapshot_summary(table, found.snapshot_id)
        except (TableNotFoundError, SnapshotNotFoundError):
            return _traced(found, snapshot=str(found.snapshot_id), gone=True)
        counts = json.loads(summary.get(COUNTS_PROPERTY, "{}")).get(partition, {})
        files = json.loads(summary.get(FILES_PROPERTY, "{}")).get(partition)
        return _traced(
            found,
            snapshot=str(found.snapshot_id),
            committed_by=summary.get(RUN_PROPERTY),
            counts=_named(counts),
            reasons=_reasons(catalog, data_set, partition) if counts.get("quarantined") else {},
            files=tuple(InputFile(*file) for file in files["files"]) if files else (),
            number_of_files=files["number"] if files else None,
        )


def _traced(publication: Publication, **more: Any) -> Trace:
    return Trace(
        table=publication.table,
        partition=publication.partition,
        rows=publication.total_rows,
        published_by=publication.run_id,
        published_at=publication.done_at.isoformat(timespec="seconds") if publication.done_at else None,
        state=publication.state,
        **more,
    )


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    return {("read" if name == "rows_in" else name): number for name, number in counts.items()}


def _of_objects(publication: Publication) -> Trace:
    objects = (publication.contents.objects if publication.contents else None) or {}
    listed = [InputFile(str(item["key"]), str(item["etag"])) for item in objects.get("objects", ())]
    return _traced(publication, files=tuple(listed[:MAX_FILES]), number_of_files=len(listed) if objects else None)


def _reasons(catalog: SqlCatalog, data_set: DataSet, partition: str) -> dict[str, int]:
    """How many rows of the partition are in quarantine, by reason and file."""
    try:
        table = load_table(catalog, data_set.quarantine)
    except TableNotFoundError:
        return {}
    # the ledger has this partition, so its name has digits and dashes alone
    of_partition = f"partition = '{partition}'"
    rows = table.scan(row_filter=of_partition, selected_fields=("file", "reason")).to_arrow()
    counted = Counter(f"{row['reason']}: {row['file']}" for row in rows.to_pylist())
    return dict(counted.most_common(MAX_REASONS))
