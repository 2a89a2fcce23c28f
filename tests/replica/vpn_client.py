"""A machine with OpenVPN, somewhere outside."""

from __future__ import annotations

import time
from pathlib import Path

from hosts_network import VPN_PORT, Container, Network, await_true, docker

CONNECT_SECONDS = 180
# A refused client may hear nothing at all; one that is let in is so within a second
REFUSED_SECONDS = 5


class Client(Container):
    def __init__(self, network: Network) -> None:
        self.network = network
        rights = ["--cap-add", "NET_ADMIN", "--device", "/dev/net/tun"]
        super().__init__(network.container(network.edge, *rights).id)

    def start(self, profile: str) -> None:
        self.run("sh", "-c", "cat > /tmp/profile.ovpn && : > /tmp/log", stdin=profile)
        retry = ["--connect-retry", "1", "1", "--server-poll-timeout", "4", "--writepid", "/tmp/pid"]
        docker("exec", "-d", self.id, "openvpn", "--config", "/tmp/profile.ovpn", *retry, "--log", "/tmp/log")

    def log(self) -> str:
        return self.run("cat", "/tmp/log")

    def is_up(self) -> bool:
        return "Initialization Sequence Completed" in self.log()

    def connect(self, profile: str) -> None:
        self.start(profile)
        await_true(self.is_up, CONNECT_SECONDS, "the VPN to come up")

    def is_refused(self, profile: str) -> bool:
        """Tries for a while, and gives up."""
        self.start(profile)
        time.sleep(REFUSED_SECONDS)
        refused = not self.is_up()
        self.disconnect()
        return refused

    def disconnect(self) -> None:
        self.run("sh", "-c", "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done")

    def end(self) -> None:
        docker("rm", "-f", self.id)
        self.network.containers.remove(self.id)


def profile_of(network: Network, folder: Path, name: str, role: str) -> str:
    """A new one, for a client on the edge network."""
    file = folder / f"{name}.ovpn"
    network.vpn.add(name, role, file, remote=f"{network.edge_address}:{VPN_PORT}")
    return file.read_text()
