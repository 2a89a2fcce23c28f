"""S3 on vps_1: its buckets, its identities, and the rights of each identity in each bucket.

The gateway (versitygw) knows users and bucket policies. A user without a policy has no rights. `RIGHTS` has all rights
of each identity, and docs/operations/hosts.md shows them. A producer can only put objects below one data set's prefix
of bucket raw. A person's key (`trilake access`) has the rights of its role. The gateway's list of users is also the
list of producers and of people's keys. Identities are made through the gateway's administration interface, which
listens on loopback only.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from trilake import s3
from trilake.endpoints import S3Endpoint
from trilake.errors import RefusedError, TrilakeError, UnreachableError
from trilake.lake.data_set import (
    ARTIFACTS_BUCKET,
    BUCKETS,
    EVENTS_BUCKET,
    EXPORTS_BUCKET,
    LAKE_BUCKET,
    LOGS_BUCKET,
    RAW_BUCKET,
)
from trilake.platform.hosts.connections import S3_PORT, required

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = "root"
# A producer's key is <data set>.<name>. No other key has a dot, and the name of a data set has none either.
PRODUCER = re.compile(r"(?P<data_set>[a-z][a-z0-9_]{0,39})\.(?P<name>[a-z0-9][a-z0-9-]{0,29})")
# A person's key is <role>-<name>. No identity below begins with such a role, and a producer's key has a dot.
PERSON = re.compile(r"(?P<role>engineer|admin)-(?P<name>[a-z][a-z0-9-]{0,29})")
IDENTITIES = ("airflow", "spark", "clickhouse", "agents", "agents-spark")
ADMINISTRATION_PORT = 7071
_TIMEOUT_S = 10

# r: read; w: write, also over an existing object; d: delete
_OF_OBJECTS = {
    "r": ("s3:GetObject",),
    "w": ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
    "d": ("s3:DeleteObject",),
}
# The right to put an object includes replacing it, and uploading a large one in parts.
_OF_PRODUCERS = ("s3:PutObject", "s3:AbortMultipartUpload")
_OF_BUCKETS = {"r": ("s3:ListBucket", "s3:GetBucketLocation"), "w": ("s3:ListBucketMultipartUploads",), "d": ()}


@dataclass(frozen=True)
class Below:
    """Rights to the objects below one prefix of a bucket. A listing must ask for a prefix below it, too."""

    prefix: str
    rights: str

    def __str__(self) -> str:
        return f"{self.rights} below {self.prefix}"


# Bucket -> identity -> rights. An identity without an entry cannot use the bucket. Only root needs no entry.
RIGHTS: Mapping[str, Mapping[str, str | Below]] = {
    # files from the sources: Airflow writes them, the others read them
    RAW_BUCKET: {"airflow": "rwd", "spark": "r", "clickhouse": "r"},
    # Iceberg: Spark and PyIceberg commit, and expiry removes files; ClickHouse pulls files
    LAKE_BUCKET: {"airflow": "rwd", "spark": "rwd", "clickhouse": "r", "agents-spark": "r"},
    # job code, reports, results of runs
    ARTIFACTS_BUCKET: {"airflow": "rwd", "spark": "rw", "agents-spark": Below("jobs/", "r")},
    LOGS_BUCKET: {"airflow": "rwd"},
    # Spark renames a log when it ends, which is a copy and a delete
    EVENTS_BUCKET: {"airflow": "r", "spark": "rwd", "agents-spark": "rwd"},
    # Airflow or a Spark driver starts an export and removes its stale files; each shard writes. Airflow presigns
    # agents' files with the key `agents`.
    EXPORTS_BUCKET: {
        "airflow": "rwd",
        "spark": "rwd",
        "clickhouse": "rw",
        "agents": Below("agents/", "rwd"),
        "agents-spark": Below("agents/", "rwd"),
    },
}
# Role -> rights of a person's key in each of `OF_PEOPLE`.
RIGHTS_OF_PEOPLE: Mapping[str, str] = {"engineer": "r", "admin": "rw"}
OF_PEOPLE = (RAW_BUCKET, LAKE_BUCKET, ARTIFACTS_BUCKET, EXPORTS_BUCKET)


class StoreError(TrilakeError):
    """The gateway refused a request."""


def secret(env: Mapping[str, str], identity: str) -> str:
    """:raises EnvironmentFileError: the secret is not set."""
    return required(env, f"S3_{identity.upper().replace('-', '_')}_SECRET")


def policy(bucket: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The bucket's policy, in S3's format.

    :param keys: the keys of producers, which have rights in bucket raw only, and of people. Others are left out.
    """
    statements: list[dict[str, Any]] = []
    keys = sorted(keys)
    of_people = {key: RIGHTS_OF_PEOPLE[match["role"]] for key in keys if (match := PERSON.fullmatch(key))}
    for identity, rights in {**RIGHTS[bucket], **(of_people if bucket in OF_PEOPLE else {})}.items():
        statements += _statements(bucket, identity, rights if isinstance(rights, Below) else Below("", rights))
    for key in filter(PRODUCER.fullmatch, keys) if bucket == RAW_BUCKET else ():
        statements.append(_allow(key, _OF_PRODUCERS, f"arn:aws:s3:::{bucket}/{key.partition('.')[0]}/*"))
    return {"Version": "2012-10-17", "Statement": statements}


def _statements(bucket: str, identity: str, below: Below) -> Iterator[dict[str, Any]]:
    whole, objects = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{below.prefix}*"
    if not below.prefix:
        yield _allow(identity, [action for right in below.rights for action in _OF_BUCKETS[right]], whole)
    elif "r" in below.rights:
        # not ListBucketMultipartUploads: it would show the keys of other prefixes
        listed = {"StringLike": {"s3:prefix": [f"{below.prefix}*"]}}
        yield {**_allow(identity, ["s3:ListBucket"], whole), "Condition": listed}
    yield _allow(identity, [action for right in below.rights for action in _OF_OBJECTS[right]], objects)


def _allow(key: str, actions: Iterable[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": {"AWS": [key]}, "Action": list(actions), "Resource": [resource]}


def set_up(env: Mapping[str, str], host: str = "vps-1") -> None:
    """Create what is missing: identities with the secrets of ``.env``, buckets, policies. It can be repeated.

    :raises UnreachableError: the gateway does not answer.
    :raises StoreError: it refuses the root key or a request.
    """
    root = root_of(secret(env, ROOT), host)
    existing = _identities(root)
    for identity in IDENTITIES:
        _set_identity(root, identity, secret(env, identity), known=identity in existing)
    client = s3.client(root)
    existing_buckets = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in existing_buckets:
            client.create_bucket(Bucket=bucket)
        if bucket not in OF_PEOPLE:
            _set_policy(client, bucket)
    _set_policies(root, OF_PEOPLE)


def root_of(secret_key: str, host: str = "vps-1") -> S3Endpoint:
    """The S3 store, with the key root."""
    return S3Endpoint(f"http://{host}:{S3_PORT}", ROOT, secret_key)


def producers(root: S3Endpoint) -> list[str]:
    """The producers' keys."""
    return sorted(name for name in _identities(root) if PRODUCER.fullmatch(name))


def add_producer(root: S3Endpoint, key: str, secret_key: str) -> None:
    """Add a producer.

    :param key: ``<data set>.<name>``.
    :raises StoreError: the key exists. Its secret is not replaced. If two add it at once, the gateway accepts one.
    """
    if key in _identities(root):
        raise StoreError(f"There is a producer {key} already.", hint="Revoke it first, then add it again.")
    _set_identity(root, key, secret_key, known=False)
    _set_policies(root)


def resume_producer(root: S3Endpoint, key: str, secret_key: str) -> bool:
    """Whether the producer has this secret. If so, grant its rights: the process that added it may have been killed
    before that.
    """
    if key not in _identities(root):
        return False
    try:
        # the gateway answers this request for every known key, whatever its rights
        s3.client(S3Endpoint(root.url, key, secret_key)).list_buckets()
    except RefusedError:
        return False
    _set_policies(root)
    return True


def revoke_producer(root: S3Endpoint, key: str) -> None:
    """Revoke a producer's key at once. The files that it uploaded are kept."""
    _delete_identity(root, key)
    _set_policies(root)


def set_person(root: S3Endpoint, name: str, role: str, secret_key: str) -> str:
    """Make a person's key, or give it this secret. Can be repeated. Returns the key."""
    key = f"{role}-{name}"
    if not PERSON.fullmatch(key):
        raise StoreError(f"{key!r} is not a valid key for a person.", hint="Roles: engineer, admin.")
    _set_identity(root, key, secret_key, known=key in _identities(root))
    _set_policies(root, OF_PEOPLE)
    return key


def revoke_person(root: S3Endpoint, name: str) -> list[str]:
    """Delete a person's keys at once. Can be repeated. Returns those that there were."""
    keys = sorted(f"{role}-{name}" for role in RIGHTS_OF_PEOPLE)
    found = [key for key in keys if _delete_identity(root, key)]
    _set_policies(root, OF_PEOPLE)
    return found


def _delete_identity(root: S3Endpoint, key: str) -> bool:
    if key not in _identities(root):
        return False
    _administer(root, f"/delete-user?access={quote(key)}")
    return True


def _set_policies(root: S3Endpoint, buckets: Iterable[str] = (RAW_BUCKET,)) -> None:
    """Write the buckets' policies for all keys. Repeat it if another process has added or revoked one meanwhile."""
    client, written = s3.client(root), None
    while written != (keys := _keys(root)):
        for bucket in buckets:
            _set_policy(client, bucket, keys)
        written = keys


def _keys(root: S3Endpoint) -> list[str]:
    """The keys of producers and people."""
    return sorted(name for name in _identities(root) if PRODUCER.fullmatch(name) or PERSON.fullmatch(name))


def _set_policy(client: S3Client, bucket: str, keys: Iterable[str] = ()) -> None:
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy(bucket, keys)))


# --- the administration interface: requests are signed like S3's, and bodies are XML


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
    """:raises UnreachableError: no answer. :raises StoreError: refused; the message never has the request's body."""
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
            hint="Check that the service s3 runs on this host.",
        ) from None
    finally:
        connection.close()
    if answer.status >= 300:
        raise StoreError(
            f"The S3 gateway refused {path.partition('?')[0]} for {root.access_key_id} ({answer.status}: "
            f"{_message(text)}).",
            hint="S3_ROOT_SECRET must be the one that the service s3 was started with.",
        )
    return text


def _message(text: bytes) -> str:
    try:
        document = ElementTree.fromstring(text)  # noqa: S314  our own gateway's
    except ElementTree.ParseError:
        return "no reason given"
    return next((element.text or "" for element in document.iter() if element.tag.endswith("Code")), "no reason given")
