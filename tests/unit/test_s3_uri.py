"""Addresses in S3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.s3 import split_uri


@given(
    scheme=st.sampled_from(["s3", "s3a"]),
    bucket=st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True),
    key=st.text(max_size=30),
)
def test_an_address_is_split_into_its_bucket_and_its_key(scheme: str, bucket: str, key: str) -> None:
    assert split_uri(f"{scheme}://{bucket}/{key}") == (bucket, key)


@pytest.mark.parametrize(
    "text", ["", "bucket/key", "s3://", "s3://bucket", "http://bucket/key", "s3:///key", "/s3://b/k"]
)
def test_what_is_not_an_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address in S3"):
        split_uri(text)
