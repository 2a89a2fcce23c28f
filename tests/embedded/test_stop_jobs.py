"""What a restore does on vps_2: no Spark job that began before the loss goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kubernetes_api import KubernetesServer, kubernetes_server
from trilake.errors import UnreachableError
from trilake.platform.hosts.jobs import stop_all


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubernetesServer]:
    with kubernetes_server(tmp_path, max_running=4) as server:
        yield server


def test_all_applications_are_deleted_and_their_pods_have_ended(server: KubernetesServer, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(server.kubeconfig))
    for name in ("one", "two"):
        server.create(name, "sleep", "60")
        server.await_state(name, "RUNNING")
    assert sorted(stop_all(kubeconfig)) == ["one", "two"]
    assert server.request("GET", server.pods("one-driver")).status_code == 404
    assert stop_all(kubeconfig) == []


def test_a_vps_2_that_does_not_answer_is_named_with_the_next_step(server: KubernetesServer, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(server.kubeconfig).replace(str(server.port), "1"))
    with pytest.raises(UnreachableError, match="could not be stopped") as raised:
        stop_all(kubeconfig)
    assert "delete sparkapplications --all" in str(raised.value)
