"""The namespace's objects: kept in memory, saved to disk before a client can read them, and watched by clients."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trilake.platform.embedded.kubernetes.driver_process import write_atomically
from trilake.platform.embedded.kubernetes.objects import event_of, now
from trilake.platform.embedded.kubernetes.status import StatusError

log = logging.getLogger(__name__)

Kind = Literal["sparkapplications", "pods", "events"]
Change = Literal["ADDED", "MODIFIED", "DELETED"]

_RECORD_FILE = "application.json"
# Kubernetes removes events after an hour. Here, the newest of each application are kept as long as the application.
_EVENTS_KEPT = 50
# How many changes back a watch may start. A client that asks for older ones gets 410 Gone and lists again.
_CHANGES_KEPT = 1_000


@dataclass
class Record:
    """An application with its pod and events. All its files are in one folder, which is removed with it."""

    folder: Path
    application: dict[str, Any]
    pod: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    # The application is deleted and can no longer be read; its pod may still be ending.
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.application["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.application["metadata"]["uid"])

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.application.setdefault("status", {})
        return status

    @property
    def state(self) -> str:
        """The application's state, with the operator's names; empty while it is new."""
        return str((self.application.get("status") or {}).get("applicationState", {}).get("state", ""))

    @property
    def attempt_folder(self) -> Path:
        """The folder of the current attempt's driver."""
        return self.folder / f"attempt-{self.status.get('executionAttempts', 0)}"


@dataclass(frozen=True)
class Changed:
    """A change of an object, as a watch sends it."""

    version: int
    kind: Kind
    change: Change
    document: dict[str, Any]


class KubernetesObjects:
    """All objects of one namespace. Use it from one event loop only."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.namespace = namespace
        self._folder = folder / "applications"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._records: dict[str, Record] = {}
        # Versions must always grow, also after a restart, when the versions of deleted objects are unknown.
        self._version = int(time.time() * 1000)
        self._changes: deque[Changed] = deque(maxlen=_CHANGES_KEPT)
        self._oldest = self._version
        self._watching: set[asyncio.Event] = set()
        for path in sorted(self._folder.iterdir()):
            self._load(path)

    def _load(self, folder: Path) -> None:
        try:
            document = json.loads((folder / _RECORD_FILE).read_text())
        except FileNotFoundError:
            # the server was killed before it answered the creation, or before it finished the deletion
            shutil.rmtree(folder, ignore_errors=True)
            return
        record = Record(folder, document["application"], document["pod"], document["events"], document["gone"])
        self._records[record.uid] = record
        newest = int(record.application["metadata"]["resourceVersion"])
        self._version = max(self._version, newest + 1)

    # --- reading

    @property
    def version(self) -> str:
        return str(self._version)

    def records(self) -> list[Record]:
        """Oldest first."""
        return sorted(self._records.values(), key=lambda r: (r.application["metadata"]["creationTimestamp"], r.uid))

    def application(self, name: str) -> Record | None:
        return next((r for r in self._records.values() if r.name == name and not r.gone), None)

    def pod(self, name: str) -> Record | None:
        return next((r for r in self._records.values() if r.pod and r.pod["metadata"]["name"] == name), None)

    def objects(self, kind: Kind) -> Iterator[dict[str, Any]]:
        for record in self.records():
            if kind == "sparkapplications" and not record.gone:
                yield record.application
            elif kind == "pods" and record.pod:
                yield record.pod
            elif kind == "events":
                yield from record.events

    async def watch(self, kind: Kind, since: int) -> AsyncIterator[Changed]:
        """The changes after version `since`, and then new ones as they happen.

        :raises StatusError: 410, the changes after `since` are no longer kept.
        """
        if since < self._oldest:
            raise StatusError(410, f"too old resource version: {since} ({self._oldest})")
        awake = asyncio.Event()
        self._watching.add(awake)
        try:
            while True:
                awake.clear()
                for changed in [c for c in self._changes if c.version > since]:
                    since = changed.version
                    if changed.kind == kind:
                        yield changed
                await awake.wait()
        finally:
            self._watching.discard(awake)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true. It is checked after every change of an object."""
        awake = asyncio.Event()
        self._watching.add(awake)
        try:
            while not condition():
                awake.clear()
                await awake.wait()
        finally:
            self._watching.discard(awake)

    # --- writing

    def create(self, application: dict[str, Any]) -> Record:
        """Add a new application and save it. The caller has checked that its name is free."""
        metadata = application["metadata"]
        uid = str(uuid.uuid4())
        metadata |= {"uid": uid, "namespace": self.namespace, "creationTimestamp": now(), "generation": 1}
        folder = self._folder / uid
        folder.mkdir(mode=0o700)
        record = Record(folder, application)
        self._records[uid] = record
        try:
            self.save(record, "sparkapplications", "ADDED")
        except OSError:
            del self._records[uid]
            raise
        return record

    def save(self, record: Record, kind: Kind | None = None, change: Change = "MODIFIED") -> None:
        """Save the record, then send the change to watches."""
        document = {"sparkapplications": record.application, "pods": record.pod}.get(kind or "")
        if document is not None:
            self._version += 1
            document["metadata"]["resourceVersion"] = str(self._version)
        if record.pod is not None:
            record.pod["metadata"].setdefault("resourceVersion", str(self._version))
        write_atomically(
            record.folder / _RECORD_FILE,
            {
                "application": record.application,
                "pod": record.pod,
                "events": record.events,
                "gone": record.gone,
            },
        )
        if document is not None and kind is not None:
            self._notify(kind, change, document)

    def note(
        self, record: Record, about: Mapping[str, Any], reason: str, message: str, *, warning: bool = False
    ) -> None:
        """Record an event. It is saved with the next `save` of the record."""
        event = event_of(about, "Warning" if warning else "Normal", reason, message)
        self._version += 1
        event["metadata"]["resourceVersion"] = str(self._version)
        record.events = [*record.events, event][-_EVENTS_KEPT:]
        self._notify("events", "ADDED", event)
        log.info("%s %s: %s: %s", about["kind"], about["metadata"]["name"], reason, message)

    def forget_application(self, record: Record) -> None:
        """Mark the application as deleted: it can no longer be read, while its driver and pod may still be ending."""
        record.gone = True
        try:
            self.save(record, "sparkapplications", "DELETED")
        except OSError:
            record.gone = False  # the deletion may not be saved: the caller must repeat it
            raise

    def forget_pod(self, record: Record) -> None:
        pod, record.pod = record.pod, None
        if pod is not None:
            self._version += 1
            pod["metadata"]["resourceVersion"] = str(self._version)
            self.save(record)
            self._notify("pods", "DELETED", pod)

    def forget(self, record: Record) -> None:
        """Remove everything of an application. First its record: the next start removes a folder without one."""
        self.forget_pod(record)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record.folder / _RECORD_FILE)
        # Rename first, so that all files disappear at once: a starting driver then finds the claim or no folder.
        renamed = record.folder.with_name(f"{record.folder.name}.gone")
        with contextlib.suppress(OSError):
            record.folder.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)
        self._records.pop(record.uid, None)

    def _notify(self, kind: Kind, change: Change, document: dict[str, Any]) -> None:
        if len(self._changes) == self._changes.maxlen:
            self._oldest = self._changes[0].version
        # a copy, because the object will change later
        self._changes.append(Changed(self._version, kind, change, copy.deepcopy(document)))
        for awake in self._watching:
            awake.set()
