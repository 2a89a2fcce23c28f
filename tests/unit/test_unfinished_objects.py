"""The rest of a write to the embedded S3 that failed on a full disk is not an object; the next start removes it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trilake.platform.embedded import s3
from trilake.platform.embedded.home import Home
from trilake.s3 import is_unfinished

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectTypeDef


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"Key": f"flights/2013-01/flights.csv-{uuid.uuid4()}"}, True),
        ({"Key": f"flights/2013-01/of\na\nproducer-{uuid.uuid4()}"}, True),
        ({"Key": f"flights/2013-01/flights.csv-{uuid.uuid4()}", "ETag": '"e"'}, False),
        ({"Key": "flights/2013-01/flights.csv"}, False),
        ({"Key": f"{uuid.uuid4()}"}, False),
        ({"Key": f"flights/2013-01/{uuid.uuid4()}.csv"}, False),
    ],
)
def test_what_is_no_object_is_told_by_its_name_and_by_the_etag_that_it_lacks(
    found: ObjectTypeDef, expected: bool
) -> None:
    assert is_unfinished(found) == expected


def test_it_goes_and_whatever_has_an_etag_stays(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path)
    folder = home.data(s3.SERVICE) / "raw" / "flights"
    folder.mkdir(parents=True)
    whole, unfinished = (folder / f"flights.csv-{uuid.uuid4()}" for _ in range(2))
    plain = folder / "flights.csv"
    for path in (whole, unfinished, plain):
        path.write_bytes(b"rows")
    try:
        os.setxattr(whole, "user.user.content-md5", b"0" * 16)
    except OSError as e:
        pytest.skip(f"no attributes of files in {tmp_path}: {e}")
    s3.remove_unfinished(home)
    assert sorted(folder.iterdir()) == sorted([whole, plain])
