"""The object store, through boto3."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from trilake.endpoints import S3Endpoint
from trilake.errors import ConfigurationError, RefusedError, TrilakeError, UnreachableError

if TYPE_CHECKING:
    from datetime import datetime

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CONNECT_TIMEOUT_S = 5  # the store is at most one private network away
READ_TIMEOUT_S = 60  # the store fsyncs a large object before it answers
ATTEMPTS = 5  # boto3's standard mode backs off exponentially: about 15 s in all
KEYS_PER_REQUEST = 1_000  # S3's limit of a bulk request
PART_BYTES = 5 << 20  # the least that S3 takes, at most 10,000 times: an object of 48 GiB


_URI = re.compile(r"s3a?://(?P<bucket>[^/]+)/(?P<key>.*)", re.DOTALL)


class S3Error(TrilakeError):
    """The object store could not do something with an object."""


def client(endpoint: S3Endpoint) -> S3Client:
    """A boto3 client of this store. It addresses buckets by path, and repeats requests that failed for a moment.

    Its listings leave out objects that are not written yet (see `S3Endpoint.unfinished_keys`).

    Its methods raise `UnreachableError` if the store does not answer, `S3Error` if the store itself fails, both after
    `ATTEMPTS` tries; and `RefusedError` at once if the key may not do this.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError

    def unanswered(exception: Exception, **_: Any) -> None:
        # boto3's message has the address of the request, but does not say that it is S3
        if isinstance(exception, HTTPClientError | NoConnectionError):
            raise UnreachableError(f"S3 ({endpoint.url}) does not answer ({type(exception).__name__}).") from None

    def failed(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
        status = http_response.status_code
        error = parsed.get("Error") or {}
        # an answer to HEAD has no text; boto3 repeats the status as its code
        code = error.get("Code") or ""
        code = "" if code == str(status) else code
        message = (error.get("Message") or "").rstrip(".")  # an empty element is None
        said = ": ".join(filter(None, (f"{status} {code}".rstrip(), message)))
        if status >= 500:
            raise S3Error(
                f"S3 ({endpoint.url}) fails at {model.name}: {said}.",
                hint="See its log (`trilake logs s3`); its disk may be full.",
            )
        if status in (401, 403):
            address = http_response.url.partition("?")[0]
            raise RefusedError(
                f"S3 refuses {model.name} of {address} to key {endpoint.access_key_id}: {said}.",
                hint="Check the secret key and this identity's bucket policy.",
            )

    unfinished = re.compile(endpoint.unfinished_keys, re.DOTALL) if endpoint.unfinished_keys else None

    def leave_out_unfinished(parsed: Any, **_: Any) -> None:
        if unfinished and "Contents" in parsed:
            parsed["Contents"] = [
                item for item in parsed["Contents"] if item.get("ETag") or not unfinished.fullmatch(item["Key"])
            ]

    made = boto3.client(
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
    made.meta.events.register("after-call-error.s3", unanswered)
    made.meta.events.register("after-call.s3", failed)
    made.meta.events.register("after-call.s3.ListObjectsV2", leave_out_unfinished)
    return made


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``, or of the same with Hadoop's ``s3a://``.

    :raises ConfigurationError: it is not such an address.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"{uri!r} is not an address in S3.", hint="Write it as s3://bucket/key.")
    return match["bucket"], match["key"]


def list_keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    """The keys of all objects below a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def etag_of(bucket: str, key: str, found: Mapping[str, Any]) -> str:
    """The ETag, without its quotes, of an object that was listed or asked for.

    :raises S3Error: it has none: the store had no room left for the object's attributes when it was put.
    """
    if etag := found.get("ETag"):
        return str(etag).strip('"')
    raise S3Error(
        f"s3://{bucket}/{key} has no ETag, so a change of it could not be noticed.",
        hint="The store's disk may have been full when the object was put. Make room, and put it again.",
    )


def remove(client: S3Client, bucket: str, keys: Sequence[str]) -> None:
    """Remove objects. An object that does not exist is not an error.

    :raises S3Error: an object could not be removed.
    """
    for start in range(0, len(keys), KEYS_PER_REQUEST):
        block = keys[start : start + KEYS_PER_REQUEST]
        answer = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in block]})
        if errors := answer.get("Errors"):
            raise S3Error(f"s3://{bucket}/{errors[0].get('Key')} cannot be removed ({errors[0].get('Code')}).")


def list_uploads(
    client: S3Client, bucket: str, prefix: str, *, before: datetime | None = None
) -> list[tuple[str, str]]:
    """(key, upload id) of uploads that were begun and not completed, below a prefix that ends in ``/``, or of one key.

    :param prefix: empty: the whole bucket.
    :param before: only uploads that were begun earlier than this.
    """
    below = not prefix or prefix.endswith("/")
    return [
        (found["Key"], found["UploadId"])
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        for found in page.get("Uploads", [])
        if (below or found["Key"] == prefix) and (before is None or found["Initiated"] < before)
    ]


def abort_uploads(client: S3Client, bucket: str, prefix: str, *, before: datetime | None = None) -> int:
    """Abort the uploads that `list_uploads` finds, so that no process can complete them. Gives their number."""
    found = list_uploads(client, bucket, prefix, before=before)
    for key, upload in found:
        with suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    return len(found)


class ObjectWriter(io.RawIOBase):
    """A file that becomes an object when it is committed, and leaves nothing otherwise. One part is in memory.

    As a context manager it is aborted at the end of the block, unless it was committed.

    It aborts other uploads of the same key that are not complete. So the later of two writers wins, and the rest of a
    killed writer is removed.

    :ivar size: bytes written so far.
    """

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        super().__init__()
        abort_uploads(client, bucket, key)
        self._client, self._bucket, self._key = client, bucket, key
        # one buffer for all parts: memory that is allocated and freed by megabytes is not given back to the system
        self._buffer = bytearray(PART_BYTES)
        self._held = 0
        self._upload = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._md5 = hashlib.md5(usedforsecurity=False)  # what an ETag is made of
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        sent = 0
        while sent < len(piece):
            taken = piece[sent : sent + PART_BYTES - self._held]
            self._buffer[self._held : self._held + len(taken)] = taken
            self._held += len(taken)
            sent += len(taken)
            if self._held == PART_BYTES:
                self._send(self._buffer)
        self.size += sent
        return sent

    def commit(self) -> str:
        """Make the object, in place of an earlier one. Gives its ETag.

        :raises S3Error: the upload was ended, or the object replaced, by a later writer of the same key.
        """
        if not self._upload:
            answer = self._client.put_object(Bucket=self._bucket, Key=self._key, Body=bytes(self._buffer[: self._held]))
            return answer["ETag"].strip('"')
        with self._not_ended():
            if self._held:
                self._send(self._buffer[: self._held])
            done = self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
            )
        self._upload = ""
        # As readers will see it: some stores answer with the digest of the parts, and later show that of the content.
        head = self._client.head_object(Bucket=self._bucket, Key=self._key)
        etag = etag_of(self._bucket, self._key, head)
        if etag not in (done["ETag"].strip('"'), self._md5.hexdigest()):
            raise S3Error(f"s3://{self._bucket}/{self._key} was replaced by a later writer.")
        return etag

    def abort(self) -> None:
        """Leave nothing. Does nothing after `commit`."""
        if self._upload:
            with suppress(self._client.exceptions.NoSuchUpload):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._upload)
            self._upload = ""

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _send(self, part: bytearray) -> None:
        if not self._upload:
            self._upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key)["UploadId"]
        number = len(self._parts) + 1
        with self._not_ended():
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload,
                PartNumber=number,
                Body=part,  # type: ignore[arg-type]  # boto3 takes it
            )
        self._md5.update(part)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._held = 0

    @contextmanager
    def _not_ended(self) -> Iterator[None]:
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("NoSuchUpload", "NoSuchKey"):
                raise
            raise S3Error(f"The upload of s3://{self._bucket}/{self._key} was ended by a later writer.") from None
