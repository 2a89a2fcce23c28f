"""Who may reach whom: as docs/operations/network.md says, and as the hosts' nftables files do.

The files are read strictly: a line of a chain is one of `FRAME`, which every host has or the chain's own, or it is a
flow. Anything else is an error, so that no rule goes unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HOSTS = ("vps-1", "vps-2", "vps-3")
ROLES = ("admin", "engineer", "agent")
NODES = "vps-2 nodes"
_NAMES = {
    "VPS_1_ADDRESS": "vps-1",
    "VPS_2_ADDRESS": "vps-2",
    "VPS_2_NODES": "vps-2",
    "VPS_3_ADDRESS": "vps-3",
    "PODS": "pods",
    "ADMIN": "admin",
    "ENGINEER": "engineer",
    "AGENT": "agent",
}
_RULE = re.compile(
    r'(?P<vpn>iifname "tun0" )?(ip saddr \$(?P<source>\w+) )?(ip daddr \$(?P<target>\w+) )?'
    r"(?P<protocol>tcp|udp) dport (?P<ports>\d+|\{ \d+(, \d+)* \}) accept"
)
_PORT = re.compile(r"(\d+)/(tcp|udp)")


@dataclass(frozen=True, order=True)
class Flow:
    """A row of the table, for one port. `source` is a host, `NODES`, a role or ``anywhere``."""

    source: str
    target: str
    protocol: str
    port: int


@dataclass(frozen=True, order=True)
class Rule:
    """A flow that one chain of one host lets through, from a host, a role, ``pods`` or ``anywhere``."""

    host: str
    chain: str
    source: str
    target: str
    protocol: str
    port: int


class NotAFlowError(ValueError):
    """A line that is neither a flow nor known."""


def table(text: str | None = None) -> set[Flow]:
    """The flows of docs/operations/network.md."""
    text = text if text is not None else (PROJECT / "docs" / "operations" / "network.md").read_text(encoding="utf-8")
    lines = text[text.index("| from | to | ports | for |") :].splitlines()[2:]
    flows: set[Flow] = set()
    for line in lines:
        if not line.startswith("|"):
            break
        source, target, ports, _ = (cell.strip() for cell in line.strip("|").split("|"))
        if source not in (*HOSTS, *ROLES, NODES, "anywhere") or target not in HOSTS:
            raise NotAFlowError(line)
        for port in ports.split():
            match = _PORT.fullmatch(port)
            if match is None:
                raise NotAFlowError(line)
            flows.add(Flow(source, target, match[2], int(match[1])))
    return flows


def required(flows: set[Flow]) -> set[Rule]:
    """What the hosts' chains have to let through for these flows, and nothing else."""
    return {rule for flow in flows for rule in _required(flow)}


def _required(flow: Flow) -> Iterator[Rule]:
    what = (flow.protocol, flow.port)
    source = "vps-2" if flow.source == NODES else flow.source
    if source in ROLES and flow.target != "vps-1":  # forwarded, and known there by vps-1's address
        yield Rule("vps-1", "forward", source, flow.target, *what)
        yield Rule(flow.target, "input", "vps-1", flow.target, *what)
        return
    yield Rule(flow.target, "input", source, flow.target, *what)
    if source in HOSTS:
        yield Rule(source, "output", source, flow.target, *what)
    if flow.source == "vps-2":
        yield Rule("vps-2", "forward", "pods", flow.target, *what)
        if flow.target == "vps-2":
            yield Rule("vps-2", "input", "pods", "vps-2", *what)


# Rules that are not flows, by chain and in this order; FLOWS marks the place of the flows. docs/operations/network.md
# has the reasons.
FLOWS = "flows"
_SPOOFED = (
    "type filter hook prerouting priority raw; policy accept;",
    'iifname != "lo" fib saddr . iif oif missing counter drop',
)
_INPUT = (
    "type filter hook input priority filter; policy drop;",
    "ct state established,related accept",
    "ct state invalid counter drop",
    'iifname "lo" accept',
    FLOWS,
    'limit rate 10/minute log prefix "trilake input: "',
    "counter drop",
)
_FORWARD_HEAD = (
    "type filter hook forward priority filter; policy drop;",
    "ct state established,related accept",
    "ct state invalid counter drop",
)
_FORWARD_TAIL = ('limit rate 10/minute log prefix "trilake forward: "', "counter drop")
_OUTPUT_HEAD = (
    "type filter hook output priority filter; policy drop;",
    "ct state established,related accept",
    'oifname "lo" ip daddr != 127.0.0.11 accept',
)
_OUTPUT_TAIL = ('limit rate 10/minute log prefix "trilake output: "', "counter drop")
FRAME: dict[str, dict[str, tuple[str, ...]]] = {
    "vps-1": {
        "spoofed": _SPOOFED,
        "input": _INPUT,
        "forward": (
            *_FORWARD_HEAD,
            FLOWS,
            'iifname "docker0" ip daddr != { $VPS_2_NODES, $VPS_3_ADDRESS, $VPN } accept',
            *_FORWARD_TAIL,
        ),
        "output": (
            "type filter hook output priority filter; policy accept;",
            "ct state established,related accept",
            'oifname "lo" accept',
            FLOWS,
            "ip daddr { $VPS_2_NODES, $VPS_3_ADDRESS, $VPN } counter drop",
        ),
        "translated": (
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr $VPN ip daddr { $VPS_2_ADDRESS, $VPS_3_ADDRESS } masquerade",
        ),
    },
    "vps-2": {
        "spoofed": _SPOOFED,
        "input": _INPUT,
        "forward": (*_FORWARD_HEAD, "ip saddr $PODS ip daddr $PODS accept", FLOWS, *_FORWARD_TAIL),
        "output": (
            *_OUTPUT_HEAD,
            "ip daddr { $VPS_2_ADDRESS, $PODS, $SERVICES } accept",
            FLOWS,
            *_OUTPUT_TAIL,
        ),
    },
    "vps-3": {
        "spoofed": _SPOOFED,
        "input": _INPUT,
        "forward": ("type filter hook forward priority filter; policy drop;", "counter drop"),
        "output": (*_OUTPUT_HEAD, FLOWS, *_OUTPUT_TAIL),
    },
}


def file_of(host: str) -> Path:
    return PROJECT / "docker" / host.replace("-", "_") / "nftables.nft"


def chains(text: str) -> dict[str, list[str]]:
    """The lines of each chain of a host's file, which replaces the table `inet trilake` as a whole and does no more."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    frame = ["table inet trilake", "delete table inet trilake", "table inet trilake {"]
    if lines[:3] != frame or lines[-1] != "}":
        raise NotAFlowError(f"not {'; '.join(frame)} ... }}: {lines[:3]} ... {lines[-1]}")
    found: dict[str, list[str]] = {}
    inside = ""
    for line in lines[3:-1]:
        if (match := re.fullmatch(r"chain (\w+) \{", line)) and not inside and match[1] not in found:
            inside = match[1]
            found[inside] = []
        elif line == "}" and inside:
            inside = ""
        elif inside:
            found[inside].append(line)
        else:
            raise NotAFlowError(line)
    return found


def rules(host: str, text: str) -> set[Rule]:
    """The flows that a host's file lets through.

    :raises NotAFlowError: there is anything else than flows in the places of `FRAME`.
    """
    found = chains(text)
    if found.keys() != FRAME[host].keys():
        raise NotAFlowError(f"{host} has the chains {sorted(found)}")
    let_through: set[Rule] = set()
    for chain, lines in found.items():
        frame = FRAME[host][chain]
        at = frame.index(FLOWS) if FLOWS in frame else len(frame)
        tail = frame[at + 1 :]
        middle = lines[at : len(lines) - len(tail)]
        if (*lines[:at], *lines[len(lines) - len(tail) :]) != (*frame[:at], *tail) or (middle and FLOWS not in frame):
            raise NotAFlowError(f"{host}, chain {chain}: {lines} is not {frame}")
        for line in middle:
            let_through |= flows_of(host, chain, line)
    return let_through


def flows_of(host: str, chain: str, line: str) -> set[Rule]:
    """What one line lets through."""
    match = _RULE.fullmatch(line)
    if match is None:
        raise NotAFlowError(f"{host}, chain {chain}: {line}")
    own = chain in ("input", "output")
    source = host if chain == "output" else _NAMES.get(match["source"] or "", "anywhere")
    target = _NAMES.get(match["target"] or "", host if chain == "input" else "anywhere")
    wrong = (
        (chain == "output" and match["source"])
        or (chain == "input" and target != host)
        or (chain != "input" and target not in HOSTS)
        or (not own and source == "anywhere")
        or ((source in ROLES) != bool(match["vpn"]))  # a client with such an address comes through the tunnel
        or (match["source"] and match["source"] not in _NAMES)
    )
    if wrong:
        raise NotAFlowError(f"{host}, chain {chain}: {line}")
    ports = [int(port) for port in re.findall(r"\d+", match["ports"])]
    return {Rule(host, chain, source, target, match["protocol"], port) for port in ports}
