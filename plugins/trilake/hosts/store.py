"""S3 on vps_1: its buckets, its identities, and who may do what in which bucket.

The gateway (versitygw) knows users and bucket policies. A user without a policy may do nothing; `RIGHTS` is the whole
of what each may, and docs/hosts.md shows it. Identities are made by the gateway's administration interface, which
listens on loopback alone.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from trilake import s3
from trilake.endpoints import S3Endpoint
from trilake.errors import TrilakeError, UnreachableError
from trilake.hosts.connections import S3_PORT, required
from trilake.lake.data_set import (
    ARTIFACTS_BUCKET,
    BACKUPS_BUCKET,
    BUCKETS,
    EVENTS_BUCKET,
    EXPORTS_BUCKET,
    LAKE_BUCKET,
    LOGS_BUCKET,
    RAW_BUCKET,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = "root"
IDENTITIES = ("airflow", "spark", "clickhouse", "agents")
ADMINISTRATION_PORT = 7071
_TIMEOUT_S = 10

# read, write (what is there included), delete
_OF_OBJECTS = {
    "r": ("s3:GetObject",),
    "w": ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
    "d": ("s3:DeleteObject",),
}
_OF_BUCKETS = {"r": ("s3:ListBucket", "s3:GetBucketLocation"), "w": ("s3:ListBucketMultipartUploads",), "d": ()}

# Bucket -> identity -> rights. Nobody but root gets to a bucket that has no entry for it.
RIGHTS: Mapping[str, Mapping[str, str]] = {
    # what sources gave: Airflow ingests, everybody else reads
    RAW_BUCKET: {"airflow": "rwd", "spark": "r", "clickhouse": "r"},
    # Iceberg: Spark's and PyIceberg's commits, and what expiry takes away; ClickHouse pulls files
    LAKE_BUCKET: {"airflow": "rwd", "spark": "rwd", "clickhouse": "r", "agents": "r"},
    # job code, reports, results of runs
    ARTIFACTS_BUCKET: {"airflow": "rwd", "spark": "rw", "agents": "r"},
    LOGS_BUCKET: {"airflow": "rwd"},
    # Spark renames a log when it ends, which is a copy and a delete
    EVENTS_BUCKET: {"airflow": "r", "spark": "rwd"},
    # each shard writes what Airflow or a Spark driver ordered; who ordered it removes what is stale
    EXPORTS_BUCKET: {"airflow": "rwd", "spark": "rwd", "clickhouse": "rw", "agents": "r"},
    BACKUPS_BUCKET: {"clickhouse": "rwd"},
}


class StoreError(TrilakeError):
    """What the gateway refused."""


def secret(env: Mapping[str, str], identity: str) -> str:
    """:raises EnvironmentFileError: it is not set."""
    return required(env, f"S3_{identity.upper()}_SECRET")


def policy(bucket: str) -> dict[str, Any]:
    """The bucket's policy, as S3 writes it."""
    statements = []
    for identity, rights in RIGHTS[bucket].items():
        for actions, resource in (
            ([action for right in rights for action in _OF_BUCKETS[right]], f"arn:aws:s3:::{bucket}"),
            ([action for right in rights for action in _OF_OBJECTS[right]], f"arn:aws:s3:::{bucket}/*"),
        ):
            statements.append(
                {"Effect": "Allow", "Principal": {"AWS": [identity]}, "Action": actions, "Resource": [resource]}
            )
    return {"Version": "2012-10-17", "Statement": statements}


def set_up(env: Mapping[str, str], host: str = "vps-1") -> None:
    """Make what is not there: identities with the secrets of ``.env``, buckets, policies. Safe twice.

    :raises UnreachableError: the gateway does not answer.
    :raises StoreError: it refuses us, or what it is asked.
    """
    root = S3Endpoint(f"http://{host}:{S3_PORT}", ROOT, secret(env, ROOT))
    known = _identities(root)
    for identity in IDENTITIES:
        _set_identity(root, identity, secret(env, identity), known=identity in known)
    client = s3.client(root)
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in there:
            client.create_bucket(Bucket=bucket)
        _set_policy(client, bucket)


def _set_policy(client: S3Client, bucket: str) -> None:
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy(bucket)))


# --- the administration interface: requests as S3's, signed likewise, with bodies in XML


def _identities(root: S3Endpoint) -> set[str]:
    answer = _administer(root, "/list-users")
    names = (element.text for element in ElementTree.fromstring(answer).iter() if element.tag.endswith("Access"))  # noqa: S314  our own gateway's
    return {name for name in names if name}


def _set_identity(root: S3Endpoint, name: str, secret_key: str, *, known: bool) -> None:
    document = ElementTree.Element("MutableProps" if known else "Account")
    values = {"Secret": secret_key, "Role": "user"}
    for tag, text in (values if known else {"Access": name, **values}).items():
        ElementTree.SubElement(document, tag).text = text
    path = f"/update-user?access={quote(name)}" if known else "/create-user"
    _administer(root, path, ElementTree.tostring(document))


def _administer(root: S3Endpoint, path: str, body: bytes = b"") -> bytes:
    """:raises UnreachableError: it does not answer. :raises StoreError: it refuses; its words, never ours."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    url = f"http://127.0.0.1:{ADMINISTRATION_PORT}{path}"
    request = AWSRequest("PATCH", url, data=body)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(Credentials(root.access_key_id, root.secret_access_key), "s3", root.region).add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", ADMINISTRATION_PORT, timeout=_TIMEOUT_S)
    try:
        target = urlsplit(url)
        full = f"{target.path}?{target.query}" if target.query else target.path
        connection.request("PATCH", full, body, dict(request.headers.items()))
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as e:
        raise UnreachableError(
            f"The S3 gateway's administration on 127.0.0.1:{ADMINISTRATION_PORT} does not answer ({type(e).__name__}).",
            hint="Is the service s3 up on this host?",
        ) from None
    finally:
        connection.close()
    if answer.status >= 300:
        raise StoreError(
            f"The S3 gateway refused {path.partition('?')[0]} for {root.access_key_id} ({answer.status}: "
            f"{_message(text)}).",
            hint="S3_ROOT_SECRET has to be the one that the service s3 was started with.",
        )
    return text


def _message(text: bytes) -> str:
    try:
        found = ElementTree.fromstring(text)  # noqa: S314  our own gateway's
    except ElementTree.ParseError:
        return "no reason given"
    return next((element.text or "" for element in found.iter() if element.tag.endswith("Code")), "no reason given")
