"""When a replica is up: what `docker compose ps` tells of its containers, as `make replica` waits for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trilake.cli.replica import Service, _profile, read_services


def printed(name: str, state: str, health: str = "", exit_code: int = 0) -> dict[str, object]:
    return {"Service": name, "State": state, "Health": health, "ExitCode": exit_code, "Image": "example"}


@pytest.mark.parametrize(
    ("service", "ready", "failed"),
    [
        (Service("s3", "running", "healthy", 0, job=False), True, False),
        (Service("s3", "running", "starting", 0, job=False), False, False),
        (Service("s3", "running", "unhealthy", 0, job=False), False, False),
        (Service("s3", "restarting", "", 1, job=False), False, False),
        # Docker starts it again
        (Service("s3", "exited", "", 0, job=False), False, False),
        (Service("setup-s3", "created", "", 0, job=True), False, False),
        (Service("setup-s3", "running", "", 0, job=True), False, False),
        (Service("setup-s3", "exited", "", 0, job=True), True, False),
        (Service("setup-s3", "exited", "", 1, job=True), False, True),
    ],
)
def test_a_service_is_ready_when_it_is_healthy_and_a_job_when_it_has_ended_well(
    service: Service, ready: bool, failed: bool
) -> None:
    assert (service.ready, service.failed) == (ready, failed)


def test_both_forms_that_compose_prints_are_read() -> None:
    documents = [printed("s3", "running", "healthy"), printed("setup-s3", "exited", exit_code=2)]
    lines = "\n".join(json.dumps(document) for document in documents)
    found = read_services(lines, {"setup-s3"})
    assert found == read_services(json.dumps(documents), {"setup-s3"})
    assert (found["s3"].ready, found["setup-s3"].failed, str(found["setup-s3"])) == (True, True, "exit code 2")
    assert read_services("", set()) == {}


MADE = {"name": "laptop", "delivered": False, "revoked_at": None}


@pytest.mark.parametrize(
    ("people", "left", "written"),
    [
        ([], "", True),
        ([{**MADE, "name": "alice", "delivered": True}], "", True),
        ([MADE], "", True),  # killed before the file
        ([MADE], "profile", True),  # killed after it
        ([{**MADE, "delivered": True}], "profile", False),
        ([{**MADE, "delivered": True}], "", False),
        ([{**MADE, "revoked_at": "2026-01-01T00:00:00+00:00"}], "", False),
        ([], "of a PKI that is gone", False),
    ],
)
def test_the_replica_gives_one_profile_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: list[dict[str, Any]], left: str, written: bool
) -> None:
    added = []

    class Vpn:
        def __init__(self, project: str) -> None:
            pass

        def people(self) -> list[dict[str, Any]]:
            return people

        def add(self, name: str, role: str, file: Path) -> None:
            added.append((name, role, file.name))

    monkeypatch.setitem(_profile.__globals__, "Vpn", Vpn)
    if left:
        (tmp_path / "laptop.ovpn").write_text(left)
    _profile(tmp_path)
    assert added == ([("laptop", "admin", "laptop.ovpn")] if written else [])
