"""Turns of runs in the lake, as far as no table is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from trilake.lake.catalog import SnapshotNotFoundError
from trilake.spark.overwrite import COMMIT_PROPERTY, snapshot_of


def snapshot(token: str) -> Any:
    return SimpleNamespace(summary=SimpleNamespace(additional_properties={COMMIT_PROPERTY: token}))


def test_a_commit_whose_snapshot_has_expired_is_named_with_what_to_do_next() -> None:
    snapshots = [SimpleNamespace(summary=None), snapshot("a"), snapshot("b")]
    table = cast("Any", SimpleNamespace(name=lambda: ("curated", "flights"), snapshots=lambda: snapshots))
    assert snapshot_of(table, "a") is snapshots[1]
    with pytest.raises(SnapshotNotFoundError, match=r"curated\.flights has no snapshot of commit c.*again") as expired:
        snapshot_of(table, "c")
    assert expired.value.hint
