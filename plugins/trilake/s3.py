"""The object store, through boto3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.endpoints import S3Endpoint

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5  # the store is at most one private network away
READ_TIMEOUT_S = 60  # the store fsyncs a large object before it answers
ATTEMPTS = 5  # boto3's standard mode backs off exponentially: about 15 s in all


def client(endpoint: S3Endpoint) -> S3Client:
    """A boto3 client of this store: addressed by path, retrying what S3 calls transient."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key_id,
        aws_secret_access_key=endpoint.secret_access_key,
        region_name=endpoint.region,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path"},
        ),
    )
