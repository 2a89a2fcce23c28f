"""The gateway's configuration (a JSON file), and the engine's (an XML file with secrets, so its mode is 0600)."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from trilake.errors import ConfigurationError
from trilake.platform.private_files import replace_private

MIB = 1 << 20
DEFAULT_MEMORY_BYTES = 1024 * MIB
MINIMUM_MEMORY_BYTES = 256 * MIB
"""Below this the engine cannot hold the blocks of one insert and a merge at the same time."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)

# In bytes. The engine's defaults are for a dedicated host (for example 5 GiB for one index cache). Here, all services
# share one small machine.
_CACHES = {
    "mark_cache_size": 32 * MIB,
    "primary_index_cache_size": 32 * MIB,
    "index_mark_cache_size": 8 * MIB,
    "parquet_metadata_cache_size": 16 * MIB,
    "iceberg_metadata_files_cache_size": 16 * MIB,
    "vector_similarity_index_cache_size": 1 * MIB,
    "text_index_tokens_cache_size": 1 * MIB,
    "text_index_header_cache_size": 1 * MIB,
    "text_index_postings_cache_size": 1 * MIB,
    "compiled_expression_cache_size": 16 * MIB,
    "query_condition_cache_size": 8 * MIB,
}
_QUERY_LOG_DAYS = 7
# The engine requires a native port for every replica, although no process listens on it.
_NATIVE_PORT = 9000


@dataclass(frozen=True)
class GatewayConfig:
    """One gateway: its address, its data folder, its users."""

    host: str
    port: int
    data: Path
    users: Mapping[str, str] = field(repr=False)
    cluster: str = "trilake"
    shards: tuple[str, ...] = ("shard_1", "shard_2")
    database: str = "analytics"
    named_collections: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES

    @property
    def lock_file(self) -> Path:
        return self.data / "gateway.lock"

    @property
    def engine_file(self) -> Path:
        """The engine's configuration file. The engine gets its name relative to the data folder."""
        return self.data / "engine.xml"

    @property
    def spool(self) -> Path:
        """The folder for answers that are complete before their first byte is sent."""
        return self.data / "spool"

    @classmethod
    def load(cls, path: Path) -> GatewayConfig:
        """Read the JSON file.

        :raises ConfigurationError: it cannot be read or is invalid. Messages do not show it: it has passwords.
        """
        try:
            document = json.loads(path.read_text())
        except OSError as e:
            raise ConfigurationError(
                f"The configuration {path} cannot be read ({e.strerror}).", hint="Write it with `trilake up`."
            ) from None
        except ValueError:
            raise ConfigurationError(
                f"The configuration {path} is not JSON.", hint="Remove it; `trilake up` writes it."
            ) from None
        if not isinstance(document, dict):
            raise ConfigurationError(f"The configuration {path} is not a JSON object.")
        unknown = sorted(set(document) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigurationError(f"The configuration {path} has unknown keys: {', '.join(unknown)}.")
        return cls._of(document, path)

    @classmethod
    def _of(cls, document: dict[str, Any], path: Path) -> GatewayConfig:
        def wrong(key: str, wanted: str) -> ConfigurationError:
            return ConfigurationError(f"{key} in {path} must be {wanted}.")

        for key in ("host", "port", "data", "users"):
            if key not in document:
                raise ConfigurationError(f"The configuration {path} has no {key}.")
        if not isinstance(document["host"], str):
            raise wrong("host", "an address")
        port = document["port"]
        if not isinstance(port, int) or not 0 < port < 65536:
            raise wrong("port", "a number from 1 to 65535")
        data = document["data"]
        if not isinstance(data, str) or not os.path.isabs(data):
            raise wrong("data", "an absolute path")
        users = document["users"]
        if not isinstance(users, dict) or not users or not all(isinstance(p, str) and p for p in users.values()):
            raise wrong("users", "an object of user names and passwords, none of them empty")
        shards = document.get("shards", cls.shards)
        identifiers = [*shards, document.get("database", cls.database), document.get("cluster", cls.cluster)]
        collections = document.get("named_collections", {})
        if not all(isinstance(n, str) and _IDENTIFIER.fullmatch(n) for n in [*identifiers, *collections]):
            raise wrong("Each of shards, database, cluster and named_collections", "a plain identifier")
        for values in collections.values():
            if not all(_IDENTIFIER.fullmatch(key) and isinstance(value, str) for key, value in values.items()):
                raise wrong("Each of named_collections", "an object of plain keys and strings")
        memory = document.get("max_memory_bytes", DEFAULT_MEMORY_BYTES)
        if not isinstance(memory, int) or memory < MINIMUM_MEMORY_BYTES:
            raise wrong("max_memory_bytes", f"at least {MINIMUM_MEMORY_BYTES}")
        return cls(**{**document, "data": Path(data), "shards": tuple(shards)})

    def engine_xml(self) -> bytes:
        """The content of the engine's configuration file."""
        root = ElementTree.Element("clickhouse")

        def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
            child = ElementTree.SubElement(parent, tag)
            child.text = None if text is None else str(text)
            return child

        add(root, "display_name", socket.gethostname())
        add(root, "tcp_port", _NATIVE_PORT)
        add(root, "max_server_memory_usage", self.max_memory_bytes)
        add(root, "background_pool_size", 2)
        for tag, size in _CACHES.items():
            add(root, tag, size)
        log = add(root, "query_log")
        add(log, "database", "system")
        add(log, "table", "query_log")
        add(log, "flush_interval_milliseconds", 1000)
        add(log, "ttl", f"event_date + INTERVAL {_QUERY_LOG_DAYS} DAY DELETE")
        cluster = add(add(root, "remote_servers"), self.cluster)
        for shard in self.shards:
            replica = add(add(cluster, "shard"), "replica")
            add(replica, "host", self.host)
            add(replica, "port", _NATIVE_PORT)
            add(replica, "default_database", shard)
        collections = add(root, "named_collections")
        for name, values in self.named_collections.items():
            collection = add(collections, name)
            for key, value in values.items():
                # a query cannot override the collection's values, so the secret key is never sent to another address
                add(collection, key, value).set("overridable", "0")
        return bytes(ElementTree.tostring(root, encoding="utf-8"))

    def write_engine_file(self) -> None:
        """Write the engine's configuration. No other user can read it at any time.

        :raises ConfigurationError: the data folder cannot be written.
        """
        try:
            replace_private(self.engine_file, self.engine_xml())
        except OSError as e:
            raise ConfigurationError(
                f"The data folder {self.data} cannot be written ({e.strerror}).", hint="Make it writable for this user."
            ) from None
