"""An object that the embedded S3 is still writing is left out of listings; the next start removes it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from trilake import s3 as core
from trilake.endpoints import S3Endpoint
from trilake.platform.embedded import s3
from trilake.platform.embedded.home import Home


def _listed(content: dict[str, Any], unfinished_keys: str) -> bool:
    """Whether a listing that the store answers like this shows the object."""
    client = core.client(S3Endpoint("http://127.0.0.1:1", "who", "secret", unfinished_keys=unfinished_keys))
    answer = {"Contents": [content], "IsTruncated": False}
    client.meta.events.emit(
        "after-call.s3.ListObjectsV2",
        parsed=answer,
        http_response=type("Answer", (), {"status_code": 200}),
        model=None,
        context={},
    )
    return bool(answer["Contents"])


@pytest.mark.parametrize(
    ("content", "listed"),
    [
        ({"Key": f"flights/2013-01/flights.csv-{uuid.uuid4()}"}, False),
        ({"Key": f"flights/2013-01/of\na\nproducer-{uuid.uuid4()}"}, False),
        ({"Key": f"flights/2013-01/flights.csv-{uuid.uuid4()}", "ETag": '"e"'}, True),
        ({"Key": "flights/2013-01/flights.csv"}, True),
        ({"Key": f"{uuid.uuid4()}"}, True),
        ({"Key": f"flights/2013-01/{uuid.uuid4()}.csv"}, True),
    ],
)
def test_a_listing_leaves_out_what_has_such_a_key_and_no_etag(content: dict[str, Any], listed: bool) -> None:
    assert _listed(content, s3.UNFINISHED_KEYS) == listed
    assert _listed(content, "")


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
