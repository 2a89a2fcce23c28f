"""A backup of the embedded platform: made while it works, whole or not there, and restored with everything in it."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from support.running_platform import PROJECT, Platform, run_trilake
from trilake import s3
from trilake.lake import catalog as lake_catalog
from trilake.lake import named_files
from trilake.platform.embedded.backup import create, database, restore
from trilake.platform.embedded.backup.store import BackupError, Store, open_store
from trilake.platform.embedded.home import Home
from trilake.postgres.connection import connect

PART = 5 << 20


class Lake:
    """An Iceberg table of a test, and a note in PostgreSQL of each commit that was acknowledged."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.name = f"backup_{uuid.uuid4().hex[:8]}"
        self.catalog = lake_catalog.open_catalog(platform.endpoints.lake, platform.endpoints.s3)
        lake_catalog.ensure_namespace(self.catalog, "curated")
        self.table = self.catalog.create_table(f"curated.{self.name}", pa.schema([("n", pa.int64())]))
        self.commits = 0

    def commit(self) -> None:
        self.table.append(pa.table({"n": pa.array([self.commits], pa.int64())}))
        self.commits += 1

    def drop(self) -> None:
        self.catalog.drop_table(f"curated.{self.name}")
        self.catalog.close()


@pytest.fixture
def lake(platform: Platform) -> Iterator[Lake]:
    platform.up()
    made = Lake(platform)
    made.commit()
    yield made
    made.drop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@contextmanager
def busy(lake: Lake) -> Iterator[None]:
    """Commits, an upload of many parts after another, and objects that are replaced, until the end of the block."""
    ended, errors = threading.Event(), []
    client = s3.client(lake.platform.endpoints.s3)
    content = os.urandom(PART)

    def until_the_end(work) -> None:
        try:
            while not ended.is_set():
                work()
        except Exception as e:
            errors.append(e)

    def upload() -> None:
        key = f"{lake.name}/large-{uuid.uuid4().hex}"
        upload_id = client.create_multipart_upload(Bucket="raw", Key=key)["UploadId"]
        parts = []
        for number in range(1, 5):
            part = client.upload_part(Bucket="raw", Key=key, UploadId=upload_id, PartNumber=number, Body=content)
            parts.append({"ETag": part["ETag"], "PartNumber": number})
        client.complete_multipart_upload(Bucket="raw", Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts})

    def replace() -> None:
        client.put_object(Bucket="raw", Key=f"{lake.name}/replaced", Body=os.urandom(random.randrange(1 << 20)))

    threads = [threading.Thread(target=until_the_end, args=(work,)) for work in (lake.commit, upload, replace)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors


def rows(home: Home, name: str) -> int:
    """The rows of the table in a home whose servers do not run, and of which every file is there."""
    facts = database.examine(home.data("postgres"), home.secrets())
    locations = dict(facts.tables)

    def locate(key: str) -> Path | None:
        path = home.data("s3") / key
        return path if path.is_file() else None

    assert named_files.check(facts.tables, locate) > 0
    metadata = json.loads((home.data("s3") / locations[f"curated.{name}"].partition("://")[2]).read_text())
    current = next(s for s in metadata["snapshots"] if s["snapshot-id"] == metadata["current-snapshot-id"])
    return int(current["summary"]["total-records"])


def test_a_backup_during_writes_has_every_commit_before_it_and_every_file_that_they_name(
    lake: Lake, folder: Path, fresh_home: Home
) -> None:
    with busy(lake):
        time.sleep(0.5)
        acknowledged = lake.commits
        made = create.back_up(lake.platform.home, folder)
    restore.write_back(fresh_home, open_store(folder))
    assert acknowledged <= rows(fresh_home, lake.name) <= lake.commits
    # objects are whole: their ETags are those of their content, and parts of unfinished uploads are left out
    objects = [entry for entry in open_store(folder).entries(made.backup) if entry.path.startswith("data/s3/")]
    files = [entry for entry in objects if not entry.is_folder]
    assert all("user.user.content-md5" in entry.attributes for entry in files)
    assert not any("/.mpus-" in entry.path for entry in objects)
    large = [entry.size for entry in files if f"/{lake.name}/large-" in entry.path]
    assert set(large) <= {4 * PART}
    # only the owner can read it, there and back
    for path in [folder, *folder.rglob("*"), fresh_home.config("secrets.json")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert fresh_home.secrets() == lake.platform.home.secrets()


@pytest.mark.nightly
def test_unchanged_files_are_stored_once_and_old_backups_go_with_what_only_they_have(lake: Lake, folder: Path) -> None:
    client = s3.client(lake.platform.endpoints.s3)
    client.put_object(Bucket="raw", Key=f"{lake.name}/first", Body=os.urandom(PART))
    first = create.back_up(lake.platform.home, folder).backup
    client.delete_object(Bucket="raw", Key=f"{lake.name}/first")
    client.put_object(Bucket="raw", Key=f"{lake.name}/second", Body=os.urandom(100))
    second = create.back_up(lake.platform.home, folder, keep=1)
    store = open_store(folder)
    assert second.removed == (first.name,)
    assert store.backups() == [second.backup]
    # a new WAL file and what PostgreSQL changed, and none of the tables that it did not
    assert second.backup.added < 0.6 * first.size
    needed = {entry.sha256: entry.size for entry in store.entries(second.backup) if not entry.is_folder}
    assert store.stored() == needed


@pytest.mark.slow
def test_what_was_changed_in_a_backup_is_named_and_the_home_stays_as_it_was(
    lake: Lake, folder: Path, fresh_home: Home
) -> None:
    backup = create.back_up(lake.platform.home, folder).backup
    store = open_store(folder)
    entry = next(e for e in store.entries(backup) if e.path.endswith(".parquet"))
    content = store.object(entry.sha256)
    listed, manifest = folder / backup.name / "files.jsonl", folder / backup.name / "manifest.json"

    def flipped(file: Path) -> None:
        text = bytearray(file.read_bytes())
        text[len(text) // 2] ^= 1
        file.write_bytes(text)

    for file, damage in (
        (content, flipped),
        (content, lambda file: os.truncate(file, entry.size - 1)),
        (content, Path.unlink),
        (listed, flipped),
        (manifest, flipped),
        (manifest, Path.unlink),
    ):
        kept = file.read_bytes()
        damage(file)
        with pytest.raises(BackupError, match="Use another backup") as told:
            restore.write_back(fresh_home, store)
        assert str(file) in str(told.value)
        assert not fresh_home.data("postgres").exists()
        file.write_bytes(kept)
    restore.write_back(fresh_home, store)
    assert rows(fresh_home, lake.name) == lake.commits


@pytest.mark.nightly
def test_a_file_that_the_catalog_names_and_nobody_has_is_named_and_no_backup_is_made(lake: Lake, folder: Path) -> None:
    location = lake.table.current_snapshot().manifest_list.partition("://")[2]
    file = lake.platform.home.data("s3") / location
    kept, attributes = file.read_bytes(), {name: os.getxattr(file, name) for name in os.listxattr(file)}
    file.unlink()
    done = lake.platform.trilake("backup", str(folder))
    file.write_bytes(kept)
    for name, value in attributes.items():
        os.setxattr(file, name, value)
    assert done.returncode == 1
    assert f"s3://{location} of curated.{lake.name} is missing" in done.stderr
    assert open_store(folder).backups() == []
    assert open_store(folder).stored() == {}


@pytest.mark.nightly
def test_what_cannot_be_backed_up_or_restored_is_refused_with_the_next_step(
    platform: Platform, fresh_home: Home, tmp_path: Path
) -> None:
    platform.up()
    folder = tmp_path / "backups"
    create.back_up(platform.home, folder)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "photo.jpg").touch()

    def refused(home: Home, *arguments: str) -> str:
        done = run_trilake(home.path, *arguments)
        assert done.returncode == 1
        return done.stderr

    assert "it has other files (photo.jpg)" in refused(platform.home, "backup", str(strange))
    assert "inside of the platform's home" in refused(platform.home, "backup", str(platform.home.path / "backups"))
    assert "Start it with `trilake up`" in refused(fresh_home, "backup", str(folder))
    assert "is not a folder of backups" in refused(fresh_home, "restore", str(strange))
    assert "has no backup 2000" in refused(fresh_home, "restore", str(folder), "--backup", "2000-01-01T00-00-00Z")
    assert "Stop it first: `trilake down`" in refused(platform.home, "restore", str(folder), "--replace")
    fresh_home.data("s3").mkdir(parents=True, exist_ok=True)
    (fresh_home.data("s3") / "precious").touch()
    assert "Give --replace" in refused(fresh_home, "restore", str(folder))
    with open_store(folder).locked():
        assert "Another backup or restore uses" in refused(platform.home, "backup", str(folder))


def kill(arguments: list[str], home: Home, seconds: float) -> bool:
    """Run `trilake`, and kill it after some time. False: it had ended before."""
    environ = dict(os.environ, TRILAKE_HOME=str(home.path), TRILAKE_PROJECT=str(PROJECT))
    environ["PYTHONPATH"] = str(PROJECT / "plugins")
    program = [sys.executable, "-c", "from trilake.cli import main; main()", *arguments]
    with subprocess.Popen(program, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True


def copies() -> list[psutil.Process]:
    """Servers on copies of PostgreSQL."""
    return [p for p in psutil.process_iter() if p.name() == "postgres" and "trilake-copy" in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("moments", [1, pytest.param(15, marks=pytest.mark.nightly)])
def test_a_backup_that_was_killed_is_not_a_backup_and_the_next_one_removes_it(
    lake: Lake, folder: Path, fresh_home: Home, moments: int
) -> None:
    began = time.monotonic()
    whole = [create.back_up(lake.platform.home, folder).backup]
    length = time.monotonic() - began
    store = open_store(folder)
    left = 0
    for moment in range(moments):
        lake.commit()
        kill(["backup", str(folder)], lake.platform.home, 0.3 + (moment + random.random()) * length / moments)
        left += bool(store.unfinished())
        complete = store.backups()
        assert complete[: len(whole)] == whole
        stored = store.stored()
        for backup in complete:
            assert all(stored[entry.sha256] == entry.size for entry in store.entries(backup) if not entry.is_folder)
        whole = complete
    until = time.monotonic() + 60
    while copies():
        assert time.monotonic() < until, "a server outlived the backup that started it"
        time.sleep(0.1)
    last = create.back_up(lake.platform.home, folder).backup
    assert left or moments == 1
    assert store.unfinished() == []
    needed = {e.sha256 for b in (*whole, last) for e in store.entries(b) if not e.is_folder}
    assert set(store.stored()) == needed
    restore.write_back(fresh_home, store)
    assert rows(fresh_home, lake.name) == lake.commits


# ends the process at its nth step of changing the home
KILLED_AT = """
import os, pathlib, shutil, signal, sys
left = int(sys.argv.pop(1))
def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for module, name in ((os, "sync"), (pathlib.Path, "rename"), (pathlib.Path, "replace"), (shutil, "rmtree")):
    setattr(module, name, counted(getattr(module, name)))
from trilake.platform.embedded.backup import restore, store
from trilake.platform.embedded.home import Home
restore.write_back(Home.locate(), store.open_store(pathlib.Path(sys.argv[1])), replace=True)
"""


@pytest.mark.slow
def test_a_restore_that_was_killed_at_any_step_left_the_old_data_or_is_continued(
    lake: Lake, folder: Path, fresh_home: Home
) -> None:
    old = create.back_up(lake.platform.home, folder).backup
    restore.write_back(fresh_home, open_store(folder))
    fresh_home.unfinished_restore.unlink()  # as if it was finished: this is the data that is there
    before = rows(fresh_home, lake.name)
    lake.commit()
    new = create.back_up(lake.platform.home, folder).backup
    environ = dict(os.environ, TRILAKE_HOME=str(fresh_home.path), TRILAKE_PROJECT=str(PROJECT))
    environ["PYTHONPATH"] = str(PROJECT / "plugins")
    steps, told = 0, ""
    while True:
        program = [sys.executable, "-c", KILLED_AT, str(steps), str(folder)]
        done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if fresh_home.unfinished_restore.exists() and not told:
            refused = run_trilake(fresh_home.path, "up", "--without-airflow")
            assert "Run `trilake restore FOLDER` again" in refused.stderr
            told = run_trilake(fresh_home.path, "restore", str(folder), "--backup", old.name).stderr
            assert f"A restore of {new.name} into" in told
        elif not fresh_home.unfinished_restore.exists():
            assert rows(fresh_home, lake.name) == before
        steps += 1
    assert steps > 6
    assert rows(fresh_home, lake.name) == lake.commits
    (aside,) = fresh_home.path.glob("before-restore-*")
    assert rows(Home(aside, PROJECT), lake.name) == before
    assert not (fresh_home.path / "restore.unfinished").exists()


@pytest.mark.slow
def test_a_lost_home_comes_back_with_every_row_and_object_and_says_what_was_lost(
    lake: Lake, folder: Path, fresh_home: Home
) -> None:
    client, key = s3.client(lake.platform.endpoints.s3), f"{lake.name}/a b=ü/é"
    client.put_object(Bucket="raw", Key=key, Body=b"42", ContentType="text/plain", Metadata={"k": "v"})
    with connect(lake.platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {lake.name} AS SELECT 42 AS answer")
    create.back_up(lake.platform.home, folder)
    done = run_trilake(fresh_home.path, "restore", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["lost_dag_runs"] is None
    assert 0 <= told["lost_minutes"] < 30
    assert told["named_files"] > 0
    restored = Platform(fresh_home, _endpoints(fresh_home), {})
    there = s3.client(restored.endpoints.s3)
    original = client.head_object(Bucket="raw", Key=key)
    copy = there.head_object(Bucket="raw", Key=key)
    for what in ("ETag", "ContentLength", "ContentType", "Metadata"):
        assert copy[what] == original[what]
    with connect(restored.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT answer FROM {lake.name}")
        assert cursor.fetchall() == [(42,)]
    with closing(lake_catalog.open_catalog(restored.endpoints.lake, restored.endpoints.s3)) as catalog:
        assert catalog.load_table(f"curated.{lake.name}").scan().to_arrow().num_rows == lake.commits
    with connect(lake.platform.endpoints.oltp) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {lake.name}")


def _endpoints(home: Home):
    from trilake.endpoints import Endpoints

    return Endpoints.from_environment(home.environment())


@pytest.mark.nightly
def test_a_stopped_platform_is_backed_up_too(fresh_home: Home, folder: Path, lake: Lake, tmp_path: Path) -> None:
    create.back_up(lake.platform.home, folder)
    restore.write_back(fresh_home, open_store(folder))
    fresh_home.unfinished_restore.unlink()
    made = create.back_up(fresh_home, tmp_path / "second")
    assert made.backup.facts["tables"] >= 1
    assert Store(tmp_path / "second").backups() == [made.backup]
