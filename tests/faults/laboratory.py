"""The platform of all schedules: behind proxies, its data on disks of their own where that can be had."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runs import Runs
from state import EXPORT, EXPORTED, EXPORTER, MONTH, Holdings

from faults import Faults, ProxiedHome, proxies, small_disks
from support.running_platform import PROJECT, running_platform
from support.tcp_proxy import TcpProxy
from trilake.endpoints import Endpoints, as_environment
from trilake.platform.embedded.connections import connections

# What a DAG is triggered with
CONF = {"flights": {"start": MONTH}, EXPORT: {"sql": EXPORTED}}
# This one is started by what has arrived
ARRIVALS = "flights_arrivals"
# In this order each finds what it reads
DAGS = (
    *("reference_snapshot", "flights", ARRIVALS, EXPORT, "flights_report"),
    *("publication_housekeeping", "lake_maintenance"),
)

# They make all that is compared.
MAKERS = DAGS[:5]


@dataclass(frozen=True)
class Laboratory:
    """The platform, what may befall it, and how it is seen."""

    faults: Faults
    runs: Runs
    holdings: Holdings

    def undisturbed(self, dags: Collection[str]) -> Undisturbed:
        """Each of these DAGs once, one after the other, and those that make what is compared; nothing is at fault.

        A platform that is kept remembers what an earlier session found.
        """
        file = self.faults.home.run / "undisturbed.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        seconds: dict[str, dict[str, float]] = known.get("seconds", {})
        needed = [dag for dag in DAGS if dag not in seconds and (dag in dags or dag in MAKERS)]
        self.holdings.arrive()
        for dag in needed:
            seconds[dag] = self.runs.seconds(dag, self._run(dag))
        assert not needed or self.holdings.left() == {}, "runs that nothing disturbed leave something"
        found = Undisturbed(known.get("held") or self.holdings.held(), seconds)
        file.write_text(json.dumps(asdict(found)))
        return found

    def restore(self, undisturbed: Undisturbed) -> None:
        """What a schedule that failed has not made is made: its failure is not the next one's."""
        if self.holdings.held() == undisturbed.held:
            return
        for dag in MAKERS:
            self._run(dag)
        assert self.holdings.held() == undisturbed.held, "an earlier schedule has changed what no run sets right"

    def start(self, dag: str) -> str:
        """A run that has everything to make; gives its id."""
        before = self.runs.ids(dag)
        self.holdings.empty(dag)
        if dag == ARRIVALS:
            return self.runs.appears(dag, before)
        run_id = f"agent.{EXPORTER}.{secrets.token_hex(4)}" if dag == EXPORT else None
        return self.runs.trigger(dag, CONF.get(dag), run_id=run_id)

    def _run(self, dag: str) -> str:
        run_id = self.start(dag)
        assert self.runs.await_end(dag, run_id) == "success", f"{dag} failed without a fault"
        self.runs.await_quiet()
        return run_id


@dataclass(frozen=True)
class Undisturbed:
    """What runs that nothing disturbed made, and how long they took.

    :param seconds: by DAG and task.
    """

    held: dict[str, Any]
    seconds: dict[str, dict[str, float]]


@contextmanager
def laboratory(kept: str | None) -> Iterator[Laboratory]:
    """:param kept: the folder of a platform that is kept, see `running_platform`."""
    fronts: dict[str, TcpProxy] = {}
    with ExitStack() as stack:
        unfit = ""

        def home(path: Path, project: Path) -> ProxiedHome:
            nonlocal unfit
            bare = ProxiedHome(path, project)
            fronts.update(stack.enter_context(proxies(bare)))
            unfit = stack.enter_context(small_disks(bare, keep=kept is not None))
            return ProxiedHome(path, project, {name: proxy.port for name, proxy in fronts.items()})

        def add(project: Path) -> None:
            shutil.copy(PROJECT / "dags/publication_housekeeping.py", project / "dags")

        platform = stack.enter_context(running_platform(kept, add, home))
        # our own readings go past the proxies
        direct = as_environment(connections(platform.home.ports(), platform.home.secrets()))
        yield Laboratory(
            Faults(platform.home, fronts, unfit),
            Runs(platform.home),
            Holdings(platform.home, Endpoints.from_environment(direct)),
        )
