"""A kubeconfig of somebody's own, for the Spark jobs of an embedded platform."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from trilake.endpoints import as_environment
from trilake.errors import ConfigurationError
from trilake.platform.embedded.connections import _NOT_FOR_JOBS, KUBECONFIG_VARIABLE, connections

WHOLE = """
clusters: [{name: c, cluster: {server: "https://vps-2:6443", certificate-authority-data: Q0E=}}]
users: [{name: u, user: {token: open-sesame}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: jobs}}]
current-context: x
"""


def kubernetes(environ: dict[str, str]) -> Any:
    ports, secrets = defaultdict(lambda: 1), defaultdict(lambda: "generated")
    return connections(ports, secrets, environ)["kubernetes_default"]["extra"]


def test_without_one_jobs_run_on_the_platforms_own_server() -> None:
    extra = kubernetes({})
    assert json.loads(extra["kube_config"])["clusters"][0]["cluster"]["server"] == "http://127.0.0.1:1"


def test_with_one_jobs_run_on_its_cluster_in_its_namespace(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(WHOLE)
    extra = kubernetes({KUBECONFIG_VARIABLE: str(file)})
    config = json.loads(extra["kube_config"])
    assert (config["clusters"][0]["cluster"]["server"], extra["namespace"]) == ("https://vps-2:6443", "jobs")
    assert config["users"][0]["user"] == {"token": "open-sesame"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (WHOLE.replace("token: open-sesame", "token: open-sesame, client-key: /k.pem"), "it has client-key"),
        (WHOLE.replace("authority-data: Q0E=", "authority: /ca.pem"), "it has certificate-authority"),
        (WHOLE.replace("current-context: x", "current-context: y"), "not a kubeconfig with a current context"),
        (WHOLE + "}", "not a kubeconfig with a current context"),
        ("open-sesame", "not a kubeconfig with a current context"),
        (None, "not a kubeconfig with a current context"),
    ],
)
def test_one_that_is_not_whole_by_itself_is_refused_and_not_shown(tmp_path: Path, text: str | None, why: str) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=why) as refused:
        kubernetes({KUBECONFIG_VARIABLE: str(file)})
    assert "open-sesame" not in str(refused.value)
    assert str(file) in str(refused.value)


def test_agents_questions_have_connections_of_their_own_which_no_job_gets() -> None:
    made = connections(defaultdict(lambda: 1), defaultdict(lambda: "generated"), {})
    assert made["clickhouse_agents"] == made["clickhouse_cluster_default"]
    assert made["aws_agents"] == made["aws_default"]
    assert made["kubernetes_agents"] == made["kubernetes_default"]
    given = {name for name in as_environment(made) if name not in _NOT_FOR_JOBS}
    names = ("aws_default", "clickhouse_cluster_default", "postgres_lake", "postgres_oltp")
    assert given == {f"AIRFLOW_CONN_{name.upper()}" for name in names}
