"""Access to the object store with boto3."""

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

CONNECT_TIMEOUT_S = 5  # the store is on the same machine or in the same private network
READ_TIMEOUT_S = 60  # the store fsyncs a large object before it answers
ATTEMPTS = 5  # boto3's standard mode backs off exponentially: about 15 s in total
KEYS_PER_REQUEST = 1_000  # S3's limit for a bulk request
PART_BYTES = 5 << 20  # S3's minimum; with S3's maximum of 10,000 parts, an object can have 48 GiB


_URI = re.compile(r"s3a?://(?P<bucket>[^/]+)/(?P<key>.*)", re.DOTALL)


class S3Error(TrilakeError):
    """The object store failed, or could not process an object."""


def client(endpoint: S3Endpoint) -> S3Client:
    """A boto3 client for this store. It addresses buckets by path, and repeats requests after transient errors.

    Its listings leave out objects that are not completely written yet (see `S3Endpoint.unfinished_keys`).

    Its methods raise `UnreachableError` if the store does not answer, and `S3Error` if the store itself fails, both
    after `ATTEMPTS` attempts. They raise `RefusedError` at once if the access key does not have the permission.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError

    def unanswered(exception: Exception, **_: Any) -> None:
        # boto3's message has the address, but does not say that it is the address of S3
        if isinstance(exception, HTTPClientError | NoConnectionError):
            raise UnreachableError(f"S3 ({endpoint.url}) does not answer ({type(exception).__name__}).") from None

    def failed(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
        status = http_response.status_code
        error = parsed.get("Error") or {}
        # A response to HEAD has no body. Then boto3 uses the status as the error code.
        code = error.get("Code") or ""
        code = "" if code == str(status) else code
        message = (error.get("Message") or "").rstrip(".")  # None if the XML element is empty
        reason = ": ".join(filter(None, (f"{status} {code}".rstrip(), message)))
        if status >= 500:
            raise S3Error(
                f"S3 ({endpoint.url}) fails at {model.name}: {reason}.",
                hint="See its log (`trilake logs s3`); its disk may be full.",
            )
        if status in (401, 403):
            address = http_response.url.partition("?")[0]
            raise RefusedError(
                f"S3 refuses {model.name} on {address} for key {endpoint.access_key_id}: {reason}.",
                hint="Check the secret key and this identity's bucket policy.",
            )

    unfinished = re.compile(endpoint.unfinished_keys, re.DOTALL) if endpoint.unfinished_keys else None

    def leave_out_unfinished(parsed: Any, **_: Any) -> None:
        if unfinished and "Contents" in parsed:
            parsed["Contents"] = [
                item for item in parsed["Contents"] if item.get("ETag") or not unfinished.fullmatch(item["Key"])
            ]

    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key_id,
        aws_secret_access_key=endpoint.secret_access_key,
        region_name=endpoint.region,
        config=Config(
            signature_version="s3v4",  # presigned addresses have an older one by default
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path"},
        ),
    )
    s3.meta.events.register("after-call-error.s3", unanswered)
    s3.meta.events.register("after-call.s3", failed)
    s3.meta.events.register("after-call.s3.ListObjectsV2", leave_out_unfinished)
    return s3


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key`` or of Hadoop's ``s3a://bucket/key``.

    :raises ConfigurationError: `uri` is not such an address.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"{uri!r} is not an address in S3.", hint="Write it as s3://bucket/key.")
    return match["bucket"], match["key"]


def list_keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    """The keys of all objects below a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def etag_of(bucket: str, key: str, found: Mapping[str, Any]) -> str:
    """The ETag of an object, without its quotes.

    :param found: the object's entry in a listing, or the response to HEAD.
    :raises S3Error: it has no ETag: the store's disk had no space for the object's attributes when it was written.
    """
    if etag := found.get("ETag"):
        return str(etag).strip('"')
    raise S3Error(
        f"s3://{bucket}/{key} has no ETag, so a later change could not be detected.",
        hint="The store's disk may have been full when the object was written. Free disk space, and write it again.",
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
    """(key, upload id) of uploads that were started and not completed.

    :param prefix: a prefix that ends in ``/``, or one key; empty: the whole bucket.
    :param before: only uploads that were started earlier than this.
    """
    below = not prefix or prefix.endswith("/")
    return [
        (upload["Key"], upload["UploadId"])
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        for upload in page.get("Uploads", [])
        if (below or upload["Key"] == prefix) and (before is None or upload["Initiated"] < before)
    ]


def abort_uploads(client: S3Client, bucket: str, prefix: str, *, before: datetime | None = None) -> int:
    """Abort the uploads that `list_uploads` finds, so that no process can complete them. Returns their number."""
    uploads = list_uploads(client, bucket, prefix, before=before)
    for key, upload in uploads:
        with suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    return len(uploads)


class ObjectWriter(io.RawIOBase):
    """A file that becomes an object when it is committed. Without a commit, nothing is left.

    It keeps one part in memory.

    As a context manager, it aborts the upload at the end of the block, unless it was committed.

    At its start it aborts other incomplete uploads of the same key. So of two writers, the one that began later
    wins, and the parts that a killed writer has sent are removed.

    :ivar size: bytes written so far.
    """

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        super().__init__()
        # A key that may only use one prefix cannot list uploads. What a killed writer has sent with it then stays.
        with suppress(RefusedError):
            abort_uploads(client, bucket, key)
        self._client, self._bucket, self._key = client, bucket, key
        # One buffer for all parts: if each part allocated megabytes, the process would not return them to the system.
        self._buffer = bytearray(PART_BYTES)
        self._filled = 0
        self._upload = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._md5 = hashlib.md5(usedforsecurity=False)  # some stores use it as the ETag
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        sent = 0
        while sent < len(piece):
            block = piece[sent : sent + PART_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(block)] = block
            self._filled += len(block)
            sent += len(block)
            if self._filled == PART_BYTES:
                self._send(self._buffer)
        self.size += sent
        return sent

    def commit(self) -> str:
        """Creates the object, or replaces an earlier one. Returns its ETag.

        :raises S3Error: a later writer of the same key has aborted the upload or replaced the object.
        """
        if not self._upload:
            content = bytes(self._buffer[: self._filled])
            answer = self._client.put_object(Bucket=self._bucket, Key=self._key, Body=content)
            return answer["ETag"].strip('"')
        with self._aborted_is_an_error():
            if self._filled:
                self._send(self._buffer[: self._filled])
            done = self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
            )
        self._upload = ""
        # Use the ETag that readers will get. Some stores answer here with a digest of the parts, but later with a
        # digest of the content.
        head = self._client.head_object(Bucket=self._bucket, Key=self._key)
        etag = etag_of(self._bucket, self._key, head)
        if etag not in (done["ETag"].strip('"'), self._md5.hexdigest()):
            raise S3Error(f"s3://{self._bucket}/{self._key} was replaced by a later writer.")
        return etag

    def abort(self) -> None:
        """Aborts the upload and leaves nothing. Does nothing after `commit`."""
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
        with self._aborted_is_an_error():
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload,
                PartNumber=number,
                Body=part,  # type: ignore[arg-type]  # boto3 accepts it
            )
        self._md5.update(part)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._filled = 0

    @contextmanager
    def _aborted_is_an_error(self) -> Iterator[None]:
        """:raises S3Error: another writer has aborted the upload."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("NoSuchUpload", "NoSuchKey"):
                raise
            raise S3Error(f"The upload of s3://{self._bucket}/{self._key} was aborted by a later writer.") from None


class ObjectReader(io.RawIOBase):
    """The bytes of an object, read in parts. A reader that seeks, such as one of Parquet, gets only what it asks for.

    :param size: of the object, in bytes.
    :param etag: without quotes. Parts of another object are refused with an error of S3.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, size: int, etag: str) -> None:
        super().__init__()
        self._client, self._object = client, {"Bucket": bucket, "Key": key, "IfMatch": f'"{etag}"'}
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        part = self._client.get_object(**self._object, Range=f"bytes={self._at}-{end - 1}")["Body"].read()  # type: ignore[arg-type]
        self._at += len(part)
        return part
