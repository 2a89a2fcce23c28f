"""The files of agents: objects in bucket ``exports``, which an agent gets and puts by presigned addresses.

An agent has a prefix of its own, ``agents/<agent>/``, and one that all agents can read, ``agents/shared/<agent>/``. A
tool names files below these: ``report.csv`` is the agent's own, ``shared/ada/report.csv`` is what ada shares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Literal

from trilake import s3
from trilake.agents.refusals import CallError
from trilake.endpoints import S3Endpoint
from trilake.lake.data_set import EXPORTS_BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SHARED = "shared"
ADDRESS_SECONDS = 900
MAX_LISTED = 500
# S3's limit for an object that is put by one request
MAX_PUT_BYTES = 5 << 30
_PREFIX = "agents"
_AGENT = re.compile(r"[a-z][a-z0-9-]{0,29}")
_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")
_MAX_NAME = 500


@dataclass(frozen=True)
class File:
    """:param name: as `Files.address` takes it. :param changed_at: in ISO 8601."""

    name: str
    bytes: int
    changed_at: str


@dataclass(frozen=True)
class Address:
    """A presigned address. For a put, exactly this number of bytes has to be sent, as ``Content-Length``.

    :param method: GET or PUT.
    :param expires_at: in ISO 8601.
    """

    url: str
    method: str
    expires_at: str


def is_agent_name(name: str) -> bool:
    """Whether an agent may have this name: it is a part of object keys, run ids and query ids."""
    return bool(_AGENT.fullmatch(name)) and name != SHARED


def prefix_of(agent: str) -> str:
    """What the keys of an agent's own files begin with, in bucket ``exports``."""
    return f"{_PREFIX}/{agent}/"


def own_key(agent: str, name: str) -> str:
    """The key of a file of an agent's own.

    :raises CallError: the name is not valid.
    """
    _check(name)
    return prefix_of(agent) + name


class Files:
    """:param endpoint: with an identity that can use the agents' prefix alone."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        self._endpoint = endpoint
        self._made: S3Client | None = None

    @property
    def _client(self) -> S3Client:
        if self._made is None:
            self._made = s3.client(self._endpoint)
        return self._made

    def listed(self, agent: str, below: str = "") -> tuple[list[File], bool]:
        """The files that an agent can get, by name, and whether there are more of them.

        :param below: list only names that begin so.
        :raises CallError: no name can begin so.
        """
        if below and not re.fullmatch(r"[A-Za-z0-9._=+/-]*", below):
            raise CallError("bad_name", f"{below!r} begins no file's name.", hint="Leave it out to list all.")
        if ".." in below.split("/"):
            raise CallError("bad_name", f"{below} leaves the prefix.", hint="A name has no part `..`.")
        found = list(islice(self._objects(agent, below), MAX_LISTED + 1))
        return found[:MAX_LISTED], len(found) > MAX_LISTED

    def address(self, agent: str, name: str, purpose: Literal["get", "put"], size: int = 0) -> Address:
        """A presigned address, valid for `ADDRESS_SECONDS`.

        :param size: bytes of the file that is put.
        :raises CallError: the agent may not do this, or there is no such file.
        """
        key = self._key(agent, name, purpose)
        expires_at = (datetime.now(UTC) + timedelta(seconds=ADDRESS_SECONDS)).isoformat(timespec="seconds")
        if purpose == "get":
            self._head(key, name)
            url = self._client.generate_presigned_url(
                "get_object", Params={"Bucket": EXPORTS_BUCKET, "Key": key}, ExpiresIn=ADDRESS_SECONDS
            )
            return Address(url, "GET", expires_at)
        if not 0 < size <= MAX_PUT_BYTES:
            raise CallError(
                "bad_size",
                f"A file has from 1 to {MAX_PUT_BYTES} bytes, and this one has {size}.",
                hint="Give the exact size as bytes. Split a larger file.",
            )
        url = self._client.generate_presigned_url(
            "put_object",
            Params={"Bucket": EXPORTS_BUCKET, "Key": key, "ContentLength": size},
            ExpiresIn=ADDRESS_SECONDS,
        )
        return Address(url, "PUT", expires_at)

    def _key(self, agent: str, name: str, purpose: str) -> str:
        _check(name)
        first, _, rest = name.partition("/")
        if first != SHARED:
            return own_key(agent, name)
        owner, _, file = rest.partition("/")
        if not file:
            raise CallError("bad_name", f"{name} names no file.", hint=f"Shared files are {SHARED}/<agent>/<file>.")
        if purpose == "put" and owner != agent:
            raise CallError("not_yours", f"{name} is not {agent}'s.", hint=f"Share it as {SHARED}/{agent}/<file>.")
        return f"{_PREFIX}/{SHARED}/{owner}/{file}"

    def _head(self, key: str, name: str) -> None:
        try:
            self._client.head_object(Bucket=EXPORTS_BUCKET, Key=key)
        except self._client.exceptions.ClientError as e:
            if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                raise
            raise CallError("no_file", f"There is no file {name}.", hint="files() lists them.") from None

    def _objects(self, agent: str, below: str) -> Iterator[File]:
        for told, prefix in (("", f"{_PREFIX}/{agent}/"), (f"{SHARED}/", f"{_PREFIX}/{SHARED}/")):
            if not below.startswith(told) and not told.startswith(below):
                continue
            wanted = prefix + below.removeprefix(told) if below.startswith(told) else prefix
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=EXPORTS_BUCKET, Prefix=wanted)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = told + item["Key"].removeprefix(prefix)
                    yield File(name, item["Size"], item["LastModified"].isoformat(timespec="seconds"))


def _check(name: str) -> None:
    """:raises CallError: the name is not valid."""
    if len(name) > _MAX_NAME or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise CallError(
            "bad_name",
            f"{name[:100]!r} is not a valid name of a file.",
            hint="Its parts, between slashes, have letters, digits and . _ = + -, and begin with a letter or a digit.",
        )
