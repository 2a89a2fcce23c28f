"""The three hosts' network: of a replica that runs, or of host containers and the VPN alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.network_flows import HOSTS, PROJECT, table
from trilake.platform.hosts import environment
from trilake.platform.hosts.vpn import Vpn

HOST_IMAGE = "trilake/host:0.1.0"
VPN_IMAGE = "trilake/openvpn:0.1.0"
PROBE = (Path(__file__).parent / "probe.py").read_text(encoding="utf-8")
VPN_PORT = 1194
# What the table names, and what it does not: other services of the hosts, and what is often found open
PORTS = sorted({flow.port for flow in table()} - {VPN_PORT} | {53, 80, 111, 443, 2375, 5433, 9000, 9001, 9009, 9010})
UP_SECONDS = 600  # with the images built

Target = tuple[str, str, int]  # address, protocol, port


def docker(*arguments: str, stdin: str | None = None, seconds: float = 60) -> str:
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(arguments[:3])}: {done.stderr.strip()} {done.stdout[-500:]}"
    return done.stdout.strip()


def why_no_docker() -> str:
    """Empty, if there is one."""
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"there is no Docker here: {e}"
    return "" if done.returncode == 0 else f"there is no Docker here: {(done.stderr.strip() or '?').splitlines()[-1]}"


def await_true(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


@dataclass
class Container:
    """One of the tests' own."""

    id: str

    def run(self, *command: str, stdin: str | None = None, seconds: float = 60) -> str:
        return docker("exec", *(["-i"] if stdin is not None else []), self.id, *command, stdin=stdin, seconds=seconds)

    def address(self, network: str) -> str:
        return docker(
            "inspect", self.id, "--format", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}'
        )

    def tried(self, targets: Iterable[Target]) -> dict[Target, str]:
        """``open``, ``refused`` or ``silent``, by target."""
        wanted = list(targets)
        told = self.run("python3", "-c", PROBE, "try", stdin=json.dumps(wanted))
        return dict(zip(wanted, json.loads(told), strict=True))

    def reached(self, targets: Iterable[Target]) -> set[Target]:
        return {target for target, how in self.tried(targets).items() if how != "silent"}


@dataclass
class Network:
    """The project's hosts, and containers of the tests beside them.

    :param listening: whether something listens at all of `PORTS` of every host, TCP and UDP; in a whole replica it is
        the services that do, and UDP is not tried.
    """

    project: str
    listening: bool
    containers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host_container = {host: self.service(host.replace("-", "_")) for host in HOSTS}
        told = json.loads(docker("inspect", self.host_container["vps-1"]))[0]
        settings = dict(line.split("=", 1) for line in told["Config"]["Env"])
        self.address = {f"vps-{n}": settings[f"VPS_{n}_ADDRESS"] for n in (1, 2, 3)}
        networks = told["NetworkSettings"]["Networks"]
        self.private = next(name for name, one in networks.items() if one["IPAddress"] == self.address["vps-1"])
        self.edge = next(name for name in networks if name != self.private)
        self.edge_address: str = networks[self.edge]["IPAddress"]
        self.vpn = Vpn(self.project)

    def service(self, name: str) -> str:
        labels = {"project": self.project, "service": name}
        found = docker("ps", "-q", *(f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items())).split()
        assert len(found) == 1, f"{len(found)} containers of service {name} run in project {self.project}"
        return found[0]

    def container(self, network: str, *options: str, image: str = VPN_IMAGE) -> Container:
        """One that stays, until the tests end. `network`: a name, or ``container:...``."""
        command = ["run", "-d", "--init", "--network", network, *options, "--entrypoint", "sleep", image, "infinity"]
        self.containers.append(docker(*command))
        return Container(self.containers[-1])

    def on(self, host: str) -> Container:
        """Inside a host's network."""
        return self.container(f"container:{self.host_container[host]}")

    def ip(self, container: str, *arguments: str) -> None:
        """``ip ...`` in a container's network."""
        rights = ["--cap-add", "NET_ADMIN", "--network", f"container:{container}"]
        docker("run", "--rm", *rights, "--entrypoint", "ip", HOST_IMAGE, *arguments)

    def listen(self) -> None:
        for host in HOSTS:
            listener = self.on(host)
            docker("exec", "-d", listener.id, "python3", "-c", PROBE, "listen", *map(str, PORTS))
        for host in HOSTS:
            address, probe = self.address[host], self.on(host)
            everything = [(address, protocol, port) for port in PORTS for protocol in ("tcp", "udp")]
            await_true(
                lambda probe=probe, everything=everything: set(probe.tried(everything).values()) == {"open"},  # type: ignore[misc]
                30,
                f"listeners on {host}",
            )

    def targets(self, *hosts: str) -> list[Target]:
        protocols = ("tcp", "udp") if self.listening else ("tcp",)
        return [(self.address[host], protocol, port) for host in hosts for protocol in protocols for port in PORTS]

    def allowed(self, *sources: str, to: Iterable[str]) -> set[Target]:
        """What the table lets these sources reach, among `targets`."""
        flows = {flow for flow in table() if flow.source in sources and flow.target in to and flow.port != VPN_PORT}
        found = {(self.address[flow.target], flow.protocol, flow.port) for flow in flows}
        return found if self.listening else {target for target in found if target[1] == "tcp"}

    def end(self) -> None:
        if self.containers:
            docker("rm", "-f", *self.containers)


@contextmanager
def running(project: str) -> Iterator[Network]:
    """A replica that runs; it is left as it is."""
    network = Network(project, listening=False)
    try:
        yield network
    finally:
        network.end()


@contextmanager
def holders_and_vpn(project: str, subnet: str, folder: Path) -> Iterator[Network]:
    """The host containers and the VPN, of the compose files of the whole, and listeners at every port of the table."""
    env = folder / ".env"
    environment.write(env, environment.replica_settings(subnet))
    with env.open("a") as file:
        file.write(f"VPN_PORT=0\nUI_PORT=0\nCOMPOSE_PROJECT_NAME={project}\n")  # 0: one that is free
    compose = ["compose", "--project-directory", str(PROJECT), "--env-file", str(env), "-p", project]
    network = None
    try:
        docker(*compose, "up", "-d", "--build", "--wait", "vps_1", "vps_2", "vps_3", "openvpn", seconds=UP_SECONDS)
        network = Network(project, listening=True)
        network.listen()
        yield network
    finally:
        if network is not None:
            network.end()
        docker(*compose, "down", "--volumes", "--timeout", "3", seconds=UP_SECONDS)
