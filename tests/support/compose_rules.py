"""What every service of the compose files has to be, as a function from a file's text to what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
FILES = [PROJECT / "docker-compose.yml", *sorted(PROJECT.glob("docker/vps_*/*.yml"))]
# Who may not keep to a rule, and why.
_HOSTS_FILE = "Docker makes /etc/hosts read-only with it, and the hosts' names stand there"
_NODE = "a Kubernetes node starts containers; a real vps_2 has no Docker and none of this"
EXEMPT = {
    "vps_1": {"read_only": _HOSTS_FILE},
    "vps_2": {"read_only": _HOSTS_FILE},
    "vps_3": {"read_only": _HOSTS_FILE},
    "k3s": {"read_only": _NODE, "capabilities": _NODE, "privileges": _NODE},
    "setup-volumes": {"user": "makes a folder another user's"},
    "setup-overlay": {"user": "its volume is root's; it has no capability and no network"},
}
# These have their health check in the image that is built here.
_OWN_IMAGES = {"trilake/host": "docker/host/Dockerfile", "trilake/openvpn": "docker/openvpn/Dockerfile"}
_SECRET = re.compile(r"PASSWORD|SECRET|_KEY$")
_NOT_SECRET = {"ROOT_ACCESS_KEY"}
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<rest>:?[-?+][^}]*)?\}")


class _Loader(yaml.SafeLoader):
    """Compose's own tags mean what their value says."""


_Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_sequence(node))


def read(text: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(text, _Loader)  # a SafeLoader
    return document


def variables(text: str) -> Iterator[tuple[str, str]]:
    """Each use of a variable: its name, and what stands if it is not set (`:-...`, `:?...`, `-`, or nothing)."""
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield from ((m["name"], m["rest"] or "") for m in _VARIABLE.finditer(line))


def problems(text: str, exempt: dict[str, dict[str, str]] = EXEMPT) -> list[str]:
    """A line for each rule that a service breaks."""
    services = read(text).get("services") or {}
    found = [line for name, service in services.items() for line in problems_of(name, service, exempt)]
    required = {name for name, rest in variables(text) if rest.startswith(":?")}
    for name, rest in variables(text):
        if _SECRET.search(name) and (re.match(":?-.", rest) or name not in required):
            found.append(f"{name}: secret: has a default, or is nowhere required with a message")
    return found


def problems_of(name: str, service: dict[str, Any], exempt: dict[str, dict[str, str]] = EXEMPT) -> list[str]:
    """A line for each rule that one service breaks."""
    broken = (*_problems_of_running(service), *_problems_of_rights(service), *_problems_of_secrets(service))
    return [f"{name}: {rule}: {what}" for rule, what in broken if rule not in exempt.get(name, {})]


def problems_of_rendered(name: str, service: dict[str, Any]) -> list[str]:
    """The same of a service as `docker compose config` prints it: its secrets are there, which the files require."""
    ports = [f"{p.get('host_ip', '')}:{p['published']}:{p['target']}/{p['protocol']}" for p in service.get("ports", [])]
    return problems_of(name, {**service, "ports": ports, "environment": {}})


def _problems_of_running(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    image, _, tag = str(service.get("image", "")).rpartition(":")
    if not re.search(r"\d", tag) or tag == "latest":
        yield "tag", f"{image}:{tag} is not pinned"
    once = service.get("restart") == "no"
    if not once and service.get("restart") != "unless-stopped":
        yield "restart", "neither unless-stopped nor a job that ends"
    checked = "healthcheck" in service or (
        image in _OWN_IMAGES and "HEALTHCHECK" in (PROJECT / _OWN_IMAGES[image]).read_text()
    )
    if not once and not checked:
        yield "healthcheck", "there is none"
    if "mem_limit" not in service:
        yield "memory", "there is no limit"
    options = (service.get("logging") or {}).get("options") or {}
    if not {"max-size", "max-file"} <= set(options):
        yield "logging", "nothing rotates the log"


def _problems_of_rights(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if service.get("cap_drop") != ["ALL"] or service.get("privileged"):
        yield "capabilities", "not all are dropped"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "privileges", "new ones can be had"
    if service.get("read_only") is not True:
        yield "read_only", "its root can be written to"
    if service.get("user", "") in ("root", "0", "0:0"):
        yield "user", "it runs as root"
    for port in service.get("ports", []):
        if not (str(port).startswith("127.0.0.1:") or str(port).endswith(":1194/udp")):
            yield "ports", f"{port} is open to everybody"


def _problems_of_secrets(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for variable, value in (service.get("environment") or {}).items():
        if _SECRET.search(variable) and variable not in _NOT_SECRET and not str(value).startswith("${"):
            yield "secret", f"{variable} stands in the file"
