"""The platform of this machine with its Spark jobs on the Kubernetes that KUBECONFIG names.

That cluster's namespace `spark` gets k8s/ for the session. Pods reach this machine's S3, PostgreSQL and ClickHouse by
the hosts' names and ports, through relays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from airflow_run import Airflow
from cluster import Cluster, await_true, jobs_environment, write_overlay

from support.rotation import describe_turn, keep_turn
from support.running_platform import Platform, running_platform
from support.tcp_proxy import TcpProxy
from trilake.endpoints import Endpoints
from trilake.platform.airflow_api import AirflowApi, AirflowError
from trilake.platform.embedded.airflow import administrator
from trilake.platform.embedded.connections import KUBECONFIG_VARIABLE

# Port of the hosts -> the embedded service behind it
RELAYS = {7070: "s3", 5432: "postgres", 8123: "clickhouse", 8124: "clickhouse"}


def _cluster() -> Cluster | str:
    """The cluster, or why there is none."""
    file = os.environ.get("KUBECONFIG")
    if not file:
        return "KUBECONFIG names no cluster"
    if shutil.which("kubectl") is None:
        return "kubectl is not in PATH"
    cluster = Cluster(Path(file))
    try:
        return cluster.why_not() or cluster
    except (OSError, subprocess.SubprocessError) as e:
        return f"{file}: {e}"


def pytest_report_header() -> list[str]:
    found = _cluster()
    if isinstance(found, str) and os.environ.get("TRILAKE_KUBERNETES_IS_THERE"):
        pytest.exit(f"kubernetes: {found}", returncode=pytest.ExitCode.USAGE_ERROR)
    where = f"kubernetes: {'skipped, ' + found if isinstance(found, str) else found.kubeconfig}"
    return [where, describe_turn()]


@pytest.hookimpl(trylast=True)  # what is marked full is deselected by then, if it is
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keep_turn(config, items, Path(__file__).parent)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster, as its administrator."""
    found = _cluster()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def overlay(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """k8s/ on the cluster: the overlay `replica` with this machine as vps_1 and vps_3. Jobs have no connections yet."""
    own = cluster.own_address()
    hosts = {"vps_1": own, "vps_2": own, "vps_3": own}
    overlay = write_overlay(tmp_path_factory.mktemp("k8s"), "replica", hosts, [])
    cluster.apply(overlay)
    try:
        yield overlay
    finally:
        cluster.kubectl("delete", "sparkapplications", "--all", "--wait")
        cluster.remove(overlay)


@pytest.fixture(scope="session")
def airflow_kubeconfig(cluster: Cluster, overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that Airflow has."""
    return cluster.airflow_kubeconfig(tmp_path_factory.mktemp("airflow") / "kubeconfig")


def _add_probes(project: Path) -> None:
    shutil.copytree(Path(__file__).parent / "project", project, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def platform(cluster: Cluster, overlay: Path, airflow_kubeconfig: Path) -> Iterator[Platform]:
    """The embedded platform, its Spark jobs on the cluster."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(KUBECONFIG_VARIABLE, str(airflow_kubeconfig))
        platform = stack.enter_context(running_platform(os.environ.get("TRILAKE_TEST_HOME"), _add_probes))
        ports = platform.home.ports()
        for port, service in RELAYS.items():
            stack.enter_context(TcpProxy("127.0.0.1", ports[service], port=port, bind=cluster.own_address()))
        jobs = "".join(f"{line}\n" for line in jobs_environment(platform.env))
        (overlay / "jobs.env").write_text(jobs)
        cluster.apply(overlay)
        yield platform


@pytest.fixture(scope="session")
def endpoints(platform: Platform) -> Endpoints:
    return platform.endpoints


def _knows_dags(api: AirflowApi) -> bool:
    try:
        api.wait_for_dags("flights", "reference_snapshot", "probe")
    except AirflowError:  # on a loaded machine a file may take longer than Airflow gives it: it is parsed again
        return False
    return True


@pytest.fixture(scope="session")
def airflow_session(platform: Platform, cluster: Cluster) -> Iterator[Airflow]:
    url, user, password = administrator(platform.home)
    with AirflowApi(url, user, password) as api:
        await_true(lambda: _knows_dags(api), 900, "Airflow to know the DAGs")
        yield Airflow(api, cluster, platform.endpoints)


@pytest.fixture
def airflow(airflow_session: Airflow, cluster: Cluster) -> Iterator[Airflow]:
    """Airflow, over a namespace that is empty before a test and has to be so again after it."""
    cluster.await_nothing_left()
    yield airflow_session
    cluster.await_nothing_left()
