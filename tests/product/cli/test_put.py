"""``trilake put``: what a user puts into ``s3://raw/``, and what is refused before anything is put."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running_platform import Platform, run_trilake
from trilake import s3
from trilake.lake.data_set import RAW_BUCKET

# Long before the flights' first
PREFIX = "flights/1999-01/"


@pytest.fixture(autouse=True)
def nothing_stays(platform: Platform) -> Iterator[None]:
    yield
    s3.remove(s3.client(platform.endpoints.s3), RAW_BUCKET, there(platform))


def there(platform: Platform) -> list[str]:
    return s3.list_keys(s3.client(platform.endpoints.s3), RAW_BUCKET, PREFIX)


def test_files_lie_there_whole_and_one_that_was_there_is_said_to_be_replaced(
    platform: Platform, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "another one.csv"
    one.write_bytes(b"k\n" + b"1\n" * 5_000_000)  # more than one part
    other.write_bytes(b"k\n1\n")
    first = platform.trilake("put", "flights", "1999-01", str(one))
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"s3://raw/{PREFIX}one.csv: 10,000,002 bytes\n"
    second = platform.trilake("put", "flights", "1999-01-31", str(one), str(other), "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == [
        {"key": f"{PREFIX}one.csv", "bytes": 10_000_002, "replaced": True},
        {"key": f"{PREFIX}another one.csv", "bytes": 4, "replaced": False},
    ]
    store = s3.client(platform.endpoints.s3)
    for file in (one, other):
        assert store.get_object(Bucket=RAW_BUCKET, Key=PREFIX + file.name)["Body"].read() == file.read_bytes()


@pytest.mark.parametrize(
    ("name", "partition", "file", "says"),
    [
        ("flight", "1999-01", "b.csv", "declares a data set flight. The data sets are "),
        ("flights", "January", "b.csv", "'January' is not a month"),
        ("airlines", "1999-01", "b.csv", "airlines has no grain"),
        ("flights", "1999-01", "b.csv.gz", "b.csv.gz is not a .csv file"),
        ("flights", "1999-01", "_b.csv", "as a pattern or as a hidden file"),
        ("flights", "1999-01", "missing.csv", "missing.csv cannot be read: No such file"),
        ("flights", "1999-01", "folder.csv", "folder.csv cannot be read: Is a directory"),
        ("flights", "1999-01", "again/a.csv", "have the same name"),
    ],
)
def test_what_no_job_would_read_is_refused_and_no_file_is_put(
    platform: Platform, tmp_path: Path, name: str, partition: str, file: str, says: str
) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "folder.csv").mkdir()
    for some in ("a.csv", "b.csv", "b.csv.gz", "_b.csv", "again/a.csv"):
        (tmp_path / some).write_text("k\n1\n")
    done = platform.trilake("put", name, partition, str(tmp_path / "a.csv"), str(tmp_path / file))
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert there(platform) == []


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("k\n1\n")
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
    environ = {"TRILAKE_PROJECT": str(platform.home.project), "NO_PROXY": "example.org", **proxy}
    for command in (["put", "flights", "1999-01", str(file)], ["publications"], ["migrate", "--plan"]):
        done = run_trilake(platform.home.path, *command, **environ)
        assert done.returncode == 0, done.stderr
