"""When a replica is up: what `docker compose ps` tells of its containers, as `make replica` waits for them."""

from __future__ import annotations

import json

import pytest

from trilake.cli.replica import Service, read_services


def printed(name: str, state: str, health: str = "", exit_code: int = 0) -> dict[str, object]:
    return {"Service": name, "State": state, "Health": health, "ExitCode": exit_code, "Image": "example"}


@pytest.mark.parametrize(
    ("service", "ready", "failed"),
    [
        (Service("s3", "running", "healthy", 0, job=False), True, False),
        (Service("s3", "running", "starting", 0, job=False), False, False),
        (Service("s3", "running", "unhealthy", 0, job=False), False, False),
        (Service("s3", "restarting", "", 1, job=False), False, False),
        # Docker starts it anew
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
