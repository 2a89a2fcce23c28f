"""Sums of columns: what is read is what was written, and a partition has the sums of its last commit."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from trilake.lake.column_sums import SUMS_PROPERTY, ColumnSum, SumsError, parse, sums_at, write

COUNTS = "trilake.counts"
ONE, OTHER = {1: ColumnSum(3, 2**63)}, {1: ColumnSum(0, 0), 2: ColumnSum(1, 5), 3: None}


class Bucket:
    """Keeps objects, as a client of S3 and as the files of a table."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_object(self, Key: str, Body: bytes, **_: Any) -> None:
        self.objects[Key] = Body

    def new_input(self, uri: str) -> Any:
        key = uri.removeprefix("s3a://lake/")
        if key not in self.objects:
            raise FileNotFoundError(uri)
        return SimpleNamespace(open=lambda: io.BytesIO(self.objects[key]))


class Snapshots:
    """A table's chain of snapshots."""

    def __init__(self, bucket: Bucket) -> None:
        self.io = bucket
        self.all: list[Any] = []

    def commit(self, *partitions: str, sums: Any = None, operation: str = "overwrite") -> Any:
        properties = {COUNTS: json.dumps({name: {} for name in partitions})} if partitions else {}
        if sums is not None:
            properties[SUMS_PROPERTY] = write(self.io, "curated.t", sums)  # type: ignore[arg-type]
        summary = SimpleNamespace(additional_properties=properties, operation=operation)
        parent = self.all[-1].snapshot_id if self.all else None
        made = SimpleNamespace(snapshot_id=len(self.all) + 1, parent_snapshot_id=parent, summary=summary)
        self.all.append(made)
        return made

    def snapshot_by_id(self, number: int) -> Any:
        return next((snapshot for snapshot in self.all if snapshot and snapshot.snapshot_id == number), None)

    def at(self, snapshot: Any, *partitions: str) -> Any:
        return sums_at(self, snapshot, list(partitions), counts_property=COUNTS)  # type: ignore[arg-type]


@pytest.fixture
def table() -> Snapshots:
    return Snapshots(Bucket())


def test_what_is_read_is_what_was_written_or_it_is_refused(table: Snapshots) -> None:
    key = write(table.io, "curated.t", {"2013-01": ONE, "2013-02": OTHER, "2013-03": {}})  # type: ignore[arg-type]
    content = table.io.objects[key]
    assert parse(key, content) == {"2013-01": ONE, "2013-02": OTHER, "2013-03": {}}
    with pytest.raises(SumsError, match="was changed after its commit"):
        parse(key, content.replace(b"3", b"4"))


def test_each_partition_has_the_sums_of_the_last_commit_that_wrote_it(table: Snapshots) -> None:
    table.commit("2013-01", "2013-02", sums={"2013-01": ONE, "2013-02": ONE})
    table.commit("2013-02", sums={"2013-02": OTHER})
    rewritten = table.commit(operation="replace")
    assert table.at(rewritten, "2013-01", "2013-02", "2013-03") == {"2013-01": ONE, "2013-02": OTHER}
    assert table.at(table.all[0], "2013-02") == {"2013-02": ONE}


def test_sums_are_unknown_after_another_writer_a_commit_without_sums_or_an_expired_parent(table: Snapshots) -> None:
    table.commit("2013-01", "2013-02", sums={"2013-01": ONE, "2013-02": ONE})
    older = table.commit("2013-01")
    assert table.at(older, "2013-01", "2013-02") == {"2013-02": ONE}
    foreign = table.commit(operation="append")
    assert table.at(foreign, "2013-02") == {}
    later = table.commit("2013-01", sums={"2013-01": OTHER})
    assert table.at(later, "2013-01", "2013-02") == {"2013-01": OTHER}
    table.all[2] = None  # expired
    assert table.at(later, "2013-01", "2013-02") == {"2013-01": OTHER}


def test_a_missing_object_is_named(table: Snapshots) -> None:
    snapshot = table.commit("2013-01", sums={"2013-01": ONE})
    table.io.objects.clear()
    with pytest.raises(SumsError, match="does not exist"):
        table.at(snapshot, "2013-01")
