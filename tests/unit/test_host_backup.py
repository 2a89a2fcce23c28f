"""What docker/host/backup decides without a server: which WAL is missing, which snapshots belong to a moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake_backup.backup import check_manifest, missing_wal
from trilake_backup.machine import BackupError, Machine, Snapshot
from trilake_backup.restore import choose

T = datetime(2026, 11, 28, 10, tzinfo=UTC)


def name(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


@given(first=st.integers(1, 600), count=st.integers(1, 300), lost=st.integers(0, 299))
def test_a_wal_file_that_was_never_received_is_found(first: int, count: int, lost: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("wal")
    base, wal = folder / "base", folder / "wal"
    base.mkdir()
    wal.mkdir()
    (base / "backup_label").write_text(f"START WAL LOCATION: 0/2000028 (file {name(first)})\n")
    names = [name(number) for number in range(first, first + count)]
    names[-1] += ".partial"
    for each in [name(first - 1), *names, "00000002.history"]:  # the one before is needed by nothing
        (wal / each).touch()
    assert missing_wal(base, wal) == ""
    if lost < count - 1:
        (wal / names[lost]).unlink()
        assert missing_wal(base, wal) == names[lost][8:24]


class Repository(Machine):
    """Snapshots as restic lists them: three runs, five minutes apart; the last one has no S3 yet."""

    def snapshots(self, kind: str) -> list[Snapshot]:
        runs = [(f"run {n}", T + timedelta(minutes=5 * n)) for n in range(3)]
        found = [Snapshot(f"{kind} {run}", kind, run, until if kind == "postgres" else None) for run, until in runs]
        return found if kind == "postgres" else found[:2]


def test_a_moment_is_restored_from_the_first_complete_run_that_covers_it() -> None:
    machine = Repository("p", Path("env"), Path("state"))

    def chosen(at: datetime | None) -> tuple[str, str]:
        postgres, s3 = choose(machine, at)
        return postgres.id, s3.id

    assert chosen(None) == ("postgres run 1", "s3 run 1")
    assert chosen(T) == ("postgres run 0", "s3 run 0")
    assert chosen(T + timedelta(minutes=1)) == ("postgres run 1", "s3 run 1")
    with pytest.raises(BackupError, match="can be restored up to 2026-11-28 10:05"):
        choose(machine, T + timedelta(minutes=6))


def test_a_base_backup_that_was_changed_is_named(tmp_path: Path) -> None:
    sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest = {"Files": [{"Path": "base/1", "Size": 0, "Checksum": sha256_of_nothing}]}
    (tmp_path / "backup_manifest").write_text(json.dumps(manifest))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "1").touch()
    check_manifest(tmp_path)
    (tmp_path / "base" / "1").write_text("x")
    with pytest.raises(BackupError, match="1 differs"):
        check_manifest(tmp_path)
