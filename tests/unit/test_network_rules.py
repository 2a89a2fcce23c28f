"""docs/operations/network.md and the hosts' nftables files say the same."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.network_flows import HOSTS, PROJECT, NotAFlowError, Rule, file_of, flows_of, required, rules, table

TEXTS = {host: file_of(host).read_text(encoding="utf-8") for host in HOSTS}
FIREWALL = PROJECT / "docker" / "host" / "firewall"


def everything(texts: dict[str, str]) -> set[Rule]:
    return {rule for host, text in texts.items() for rule in rules(host, text)}


def flow_lines() -> list[tuple[str, str]]:
    found = [(host, line.strip()) for host, text in TEXTS.items() for line in text.splitlines()]
    return [(host, line) for host, line in found if re.search(r"(tcp|udp) dport .* accept$", line)]


def test_the_rules_let_through_what_the_table_says_and_nothing_else() -> None:
    let_through, said = everything(TEXTS), required(table())

    assert sorted(let_through - said) == []
    assert sorted(said - let_through) == []


@pytest.mark.parametrize(("host", "line"), flow_lines())
def test_a_rule_that_is_taken_away_is_missed(host: str, line: str) -> None:
    without = {**TEXTS, host: TEXTS[host].replace(f"        {line}\n", "")}

    assert everything(without) < required(table())


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "line",
    [
        "accept",
        "tcp dport 22 accept",
        "ip saddr $ENGINEER tcp dport 22 accept",  # not through the tunnel
        'iifname "eth0" accept',
        "tcp dport 1-65535 accept",
        "meta l4proto tcp accept",
        "jump elsewhere",
    ],
)
def test_a_rule_that_is_added_is_seen(host: str, line: str) -> None:
    """Into every chain, before its last line."""
    for chain in ("input", "forward", "output"):
        head, mark, tail = TEXTS[host].partition(f"    chain {chain} {{\n")
        body, end, rest = tail.partition("\n    }\n")
        lines = body.splitlines()
        texts = {**TEXTS, host: f"{head}{mark}{chr(10).join([*lines[:-1], f'        {line}', lines[-1]])}{end}{rest}"}
        with suppress(NotAFlowError):
            assert everything(texts) != required(table())


def test_a_row_that_is_added_to_the_table_or_taken_from_it_is_seen() -> None:
    text = (PROJECT / "docs" / "operations" / "network.md").read_text(encoding="utf-8")
    row = "| agent | vps-1 | 8080/tcp 7070/tcp | Airflow, S3 |\n"
    assert row in text

    for other in ("", row.replace("7070/tcp", "7070/tcp 5432/tcp"), f"{row}| agent | vps-2 | 6443/tcp | no |\n"):
        assert required(table(text.replace(row, other))) != everything(TEXTS)
    with pytest.raises(NotAFlowError):
        table(text.replace(row, row.replace("8080/tcp", "8080")))
    with pytest.raises(NotAFlowError):
        table(text.replace(row, row.replace("agent", "agents")))


@given(
    source=st.sampled_from(["ADMIN", "ENGINEER", "AGENT"]),
    target=st.sampled_from([2, 3]),
    protocol=st.sampled_from(["tcp", "udp"]),
    ports=st.lists(st.integers(1, 65535), min_size=1, max_size=5, unique=True),
)
def test_a_line_says_each_of_its_ports(source: str, target: int, protocol: str, ports: list[int]) -> None:
    listed = str(ports[0]) if len(ports) == 1 else f"{{ {', '.join(map(str, ports))} }}"
    line = f'iifname "tun0" ip saddr ${source} ip daddr $VPS_{target}_ADDRESS {protocol} dport {listed} accept'

    expected = {Rule("vps-1", "forward", source.lower(), f"vps-{target}", protocol, port) for port in ports}
    assert flows_of("vps-1", "forward", line) == expected


@given(line=st.text(max_size=80))
def test_a_line_of_anything_else_is_refused(line: str) -> None:
    with pytest.raises(NotAFlowError):
        flows_of("vps-1", "input", line)


@pytest.mark.parametrize("file", sorted((PROJECT / "docker").glob("vps_*/*.nft")), ids=lambda file: str(file.name))
def test_no_file_touches_another_table(file: Path) -> None:
    """A flush would take Docker's and kube-proxy's rules with it."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.strip().startswith("#"))

    assert "flush" not in text
    assert set(re.findall(r"(?:table|rule) (\w+ \w+)", text)) == {"inet trilake"}


GOOD = {
    "VPS_1_ADDRESS": "10.77.0.11",
    "VPS_2_ADDRESS": "10.77.0.12",
    "VPS_3_ADDRESS": "10.77.0.13",
    "VPN_NETWORK": "10.99.0.0/16",
}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"VPS_2_ADDRESS": ""}, "VPS_2_ADDRESS is not set"),
        ({"VPS_3_ADDRESS": "vps-3"}, "VPS_3_ADDRESS=vps-3 is not an IPv4 address"),
        ({"VPS_3_ADDRESS": "10.77.0.256"}, "VPS_3_ADDRESS=10.77.0.256 is not an IPv4 address"),
        ({"VPS_3_ADDRESS": "10.77.0.1; accept"}, "is not an IPv4 address"),
        ({"VPN_NETWORK": "10.99.0.0/24"}, "VPN_NETWORK=10.99.0.0/24 is not a /16"),
        ({"VPN_NETWORK": "10.99.1.0/16"}, "VPN_NETWORK=10.99.1.0/16 is not a /16"),
        ({"VPN_NETWORK": ""}, "VPN_NETWORK= is not an IPv4 network"),
        ({"POD_NETWORK": "10.42.0.0/33"}, "POD_NETWORK=10.42.0.0/33 is not an IPv4 network"),
        ({"VPS_2_NODES": "10.77.0.12,any"}, "VPS_2_NODES: any is not an IPv4 address"),
    ],
)
def test_a_wrong_address_is_named_before_anything_is_loaded(wrong: dict[str, str], says: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **GOOD, **wrong}

    done = subprocess.run([FIREWALL, "load"], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_mended_rules_are_loaded_however_often_they_were_refused() -> None:
    """A start of Docker while nft refuses starts the unit again: systemd refused it for that, too."""
    assert "\nStartLimitIntervalSec=0\n" in (FIREWALL.parent / "trilake-firewall.service").read_text()


def test_the_document_loads_rules_that_the_way_back_took_away() -> None:
    """The unit is active still: to start it does nothing."""
    text = (PROJECT / "docs" / "operations" / "network.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("systemctl ") and "trilake-firewall" in line]
    assert commands == ["systemctl enable trilake-firewall", "systemctl reload-or-restart trilake-firewall"]
