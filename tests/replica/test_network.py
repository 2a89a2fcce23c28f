"""Who reaches whom in the replica: what docs/operations/network.md says, and nothing else."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from hosts_network import HOST_IMAGE, PORTS, PROBE, Container, Network, await_true, docker

from support.network_flows import HOSTS, NODES

# Where UDP services are often found; 1194 is the VPN's
UDP = (53, 67, 68, 69, 88, 111, 123, 137, 138, 161, 389, 500, 514, 1900, 4500, 5353, 8472, 11211, 51820)


def published(container: str) -> set[str]:
    ports = json.loads(docker("inspect", container))[0]["NetworkSettings"]["Ports"]
    return {
        f"{'loopback' if one['HostIp'] == '127.0.0.1' else 'everywhere'} {port}"
        for port, bindings in ports.items()
        for one in bindings or []
    }


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_reaches_on_the_others_what_the_table_names(
    network: Network, inside: dict[str, Container], host: str
) -> None:
    others = [other for other in HOSTS if other != host]

    reached = inside[host].reached(network.targets(*others))

    assert reached == network.allowed(*({host, NODES} if host == "vps-2" else {host}), to=others)


def test_names_of_hosts_are_private_addresses(network: Network, inside: dict[str, Container]) -> None:
    for container in inside.values():
        for name, address in network.address.items():
            assert container.run("getent", "ahostsv4", name).split()[0] == address


def test_only_the_vpn_is_published_and_the_ui_on_loopback(network: Network) -> None:
    assert published(network.host_container["vps-1"]) == {"everywhere 1194/udp", "loopback 8080/tcp"}
    for host in ("vps-2", "vps-3"):
        assert published(network.host_container[host]) == set()


def test_the_ui_answers_on_this_machines_loopback(network: Network) -> None:
    port = docker("port", network.host_container["vps-1"], "8080/tcp").rpartition(":")[2]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection:
        connection.sendall(b"GET /api/v2/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.recv(100)


def test_no_tcp_port_answers_from_outside(network: Network, outside: Container) -> None:
    """All 65,535 of every host; without refusals either, which would tell that somebody is there."""
    addresses = [network.edge_address, *network.address.values()]

    told = json.loads(outside.run("python3", "-c", PROBE, "scan", *addresses, seconds=200))

    assert told == {address: [] for address in addresses}


@pytest.mark.rotates(6)
def test_the_scan_sees_who_refuses(network: Network) -> None:
    """A host sees all of its own ports: they are open or refuse. So silence elsewhere is the rules' doing."""
    address = network.address["vps-3"]
    own = network.container(f"container:{network.host_container['vps-3']}", "--ulimit", "nofile=40000")

    told = json.loads(own.run("python3", "-c", PROBE, "scan", address, seconds=200))

    assert told == {address: list(range(1, 65536))}


@pytest.mark.rotates(6)
def test_no_known_udp_port_answers_from_outside(network: Network, outside: Container) -> None:
    addresses = (network.edge_address, *network.address.values())
    assert outside.reached([(address, "udp", port) for address in addresses for port in {*UDP, *PORTS}]) == set()


@pytest.mark.rotates(6)
def test_the_vpns_port_does_not_answer_who_has_no_key(network: Network, outside: Container) -> None:
    assert outside.reached([(network.edge_address, "udp", 1194)]) == set()


@pytest.fixture
def world(network: Network) -> Iterator[str]:
    """An address on the edge network where port 80 answers: what lies outside, as vps-1 sees it."""
    somebody = network.container(network.edge)
    docker("exec", "-d", somebody.id, "python3", "-c", PROBE, "listen", "80")
    address = somebody.address(network.edge)
    await_true(lambda: somebody.reached([(address, "tcp", 80)]), 180, "a listener outside")
    yield address
    docker("rm", "-f", somebody.id)
    network.containers.remove(somebody.id)


def test_vps_1_gets_out_and_the_others_do_not(network: Network, inside: dict[str, Container], world: str) -> None:
    outward = [(world, "tcp", 80), (world, "udp", 80)]

    assert inside["vps-1"].reached(outward) == set(outward)
    assert inside["vps-2"].reached(outward) == set()
    assert inside["vps-3"].reached(outward) == set()


@pytest.mark.rotates(6)
def test_vps_1_is_no_way_out_for_the_private_network(network: Network, world: str) -> None:
    """Not even for a machine there without rules of its own, which does not reach anything on the hosts either."""
    stranger = network.container(network.private)
    network.ip(stranger.id, "route", "replace", "default", "via", network.address["vps-1"])

    assert stranger.reached([(world, "tcp", 80), (world, "udp", 80), *network.targets(*HOSTS)]) == set()


@pytest.mark.rotates(6)
@pytest.mark.parametrize("host", ["vps-2", "vps-3"])
def test_a_host_without_a_way_out_asks_for_no_names(network: Network, inside: dict[str, Container], host: str) -> None:
    """Docker's resolver would ask the world for it: it knows the other containers' names, and is not asked."""
    asked = ["docker", "exec", inside[host].id, "timeout", "8", "getent", "hosts", "vps_1"]

    assert inside["vps-1"].run("getent", "hosts", "vps_2")
    assert subprocess.run(asked, capture_output=True, check=False).returncode != 0


@pytest.mark.rotates(6)
def test_an_address_of_the_vpn_or_of_a_host_does_not_help_outside_of_it(
    network: Network, inside: dict[str, Container]
) -> None:
    liar = network.container(network.edge)
    targets = network.targets("vps-1")
    for lie in ("10.99.1.7", network.address["vps-2"], network.address["vps-3"]):
        network.ip(liar.id, "address", "replace", f"{lie}/32", "dev", "eth0")
        network.ip(liar.id, "route", "replace", network.address["vps-1"], "via", network.edge_address, "src", lie)
        assert liar.reached(targets) == set()


@pytest.mark.rotates(6)
def test_rules_that_nft_refuses_change_nothing(network: Network) -> None:
    host_container = network.host_container["vps-3"]
    before = docker("exec", host_container, "nft", "--stateless", "list", "table", "inet", "trilake")
    script = (
        "sed 's/policy drop/policy dorp/' /etc/trilake/nftables.nft > /tmp/broken.nft; firewall load /tmp/broken.nft"
    )

    done = subprocess.run(
        ["docker", "exec", host_container, "sh", "-c", script], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "Rules that were loaded before are still active" in done.stderr
    assert docker("exec", host_container, "nft", "--stateless", "list", "table", "inet", "trilake") == before


@pytest.mark.rotates(6)
def test_a_holder_without_rules_does_not_start() -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", "--cap-add", "NET_ADMIN", "-e", "VPS_1_ADDRESS=10.77.0.11", HOST_IMAGE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "VPS_2_ADDRESS is not set" in done.stderr
