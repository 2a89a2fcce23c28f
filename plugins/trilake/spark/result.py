"""A job's result for its submitter: a JSON object in S3, at the address in ``--result``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trilake import s3
from trilake.endpoints import Endpoints


def write_result(endpoints: Endpoints, address: str, document: Mapping[str, Any]) -> None:
    """Writes the result as JSON.

    :param address: ``s3://bucket/key``.
    """
    bucket, key = s3.split_uri(address)
    s3.client(endpoints.s3).put_object(Bucket=bucket, Key=key, Body=json.dumps(document).encode())
