#!/usr/bin/env python3
"""The VPN of vps-1: its certificates and the server itself. Called by `trilake vpn`; answers in JSON.

All there is to know lies in one folder, ``/pki/current``: easy-rsa's PKI, ``people.json``, a file for each profile
that may connect (``ccd/``), the revocation list. A change is made in a copy of it, and one rename of a link makes the
copy the current one: whoever is killed on the way has changed nothing, and the next change removes what he left.

A profile's common name is ``<name>.<number>``: a name can be given anew, and a session tells which profile it has.
A session of a profile that is not valid (any more) is ended, by the one who revokes and by the server's own watch.
"""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

PKI = Path("/pki")
CURRENT = PKI / "current"
RUN = Path("/run/openvpn")
MANAGEMENT = RUN / "management.sock"
SERVER = "vps-1"
# Third number of a role's addresses: VPN_NETWORK is a /16. docker/host/firewall knows the same.
ROLES = {"admin": 1, "engineer": 2, "agent": 3}
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")

CA_DAYS = SERVER_DAYS = 3650
PROFILE_DAYS = 730
# With a list that has expired nobody gets in: it is renewed when less than half of its time is left.
CRL_DAYS = 30
CRL_LEFT_DAYS = 15
# How long a session can live on that should have been cut (its handshake was under way when its profile was revoked)
WATCH_SECONDS = 2
# Renewing is tried again after so long, should it fail
RENEW_SECONDS = 60
MANAGEMENT_SECONDS = 5


class VpnError(Exception):
    """What is wrong, and the next step."""


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class State:
    """A folder with all that there is: the current one, or the copy that a change is made in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.people: list[dict[str, Any]] = json.loads((folder / "people.json").read_text())

    @property
    def valid(self) -> dict[str, dict[str, Any]]:
        """The profiles that are not revoked, by common name."""
        return {person["cn"]: person for person in self.people if person["revoked_at"] is None}

    def find(self, name: str) -> dict[str, Any] | None:
        return next((person for person in self.valid.values() if person["name"] == name), None)

    def easyrsa(self, *arguments: str, **settings: str) -> None:
        run("/usr/share/easy-rsa/easyrsa", *arguments, EASYRSA_PKI=str(self.folder), **settings)

    def read(self, file: str) -> str:
        return (self.folder / file).read_text()

    def certificate(self, cn: str) -> str:
        text = self.read(f"issued/{cn}.crt")
        return text[text.index("-----BEGIN") :]

    def secrets(self, cn: str) -> list[Path]:
        """What only the person has, once the profile is delivered."""
        return [self.folder / "private" / f"{cn}.key", self.folder / "private" / f"{cn}.tls"]

    def renew_crl(self, days: int) -> None:
        self.easyrsa("gen-crl", EASYRSA_CRL_DAYS=str(days))
        (self.folder / "crl.pem").chmod(0o644)

    def crl_expires(self) -> datetime:
        line = run("openssl", "crl", "-in", str(self.folder / "crl.pem"), "-noout", "-nextupdate")
        return datetime.strptime(line.strip(), "nextUpdate=%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)

    def save(self) -> None:
        (self.folder / "people.json").write_text(json.dumps(self.people, indent=1))


def run(*command: str, **environment: str) -> str:
    """What a program said; its last words, if it fails."""
    settings = {"EASYRSA_BATCH": "1", "EASYRSA_ALGO": "ec", "EASYRSA_CURVE": "secp384r1", "EASYRSA_DIGEST": "sha384"}
    settings = {**os.environ, **settings, **environment}
    done = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())[-400:]
        raise VpnError(f"{Path(command[0]).name} {command[1]} failed: {words}")
    return done.stdout


# --- changes: all or nothing -----------------------------------------------------------------------------------------


@contextmanager
def locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """One at a time, or readers among themselves; a lock goes with its process."""
    with file.open("a") as lock:
        fcntl.flock(lock, how)
        yield


@contextmanager
def current() -> Iterator[State]:
    """The state, which stays while it is read."""
    with locked(PKI / "lock", fcntl.LOCK_SH):
        if not CURRENT.exists():
            raise VpnError("There is no PKI yet: `trilake vpn init` makes one.")
        yield State(CURRENT.resolve())


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("state-").removesuffix(".part"))


def _clear(number: int) -> None:
    """Remove every state but that one: what a killed change left, and what lies there of keys delivered or revoked."""
    for folder in PKI.glob("state-*"):
        if folder.name != f"state-{number}":
            shutil.rmtree(folder)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def tidy() -> None:
    with locked(PKI / "lock"):
        _clear(_number(CURRENT.resolve()))


@contextmanager
def change() -> Iterator[State]:
    """A copy of the current state that becomes current when the block ends without an error. The first one is empty."""
    with locked(PKI / "lock"):
        before = _number(CURRENT.resolve()) if CURRENT.exists() else 0
        _clear(before)
        part = PKI / f"state-{before + 1}.part"
        if before:
            shutil.copytree(CURRENT.resolve(), part)
        else:
            part.mkdir()
            (part / "people.json").write_text("[]")
        state = State(part)
        yield state
        state.save()
        part.chmod(0o711)  # OpenVPN reads ccd/ and crl.pem as nobody
        folder = part.with_suffix("")
        part.rename(folder)
        link = PKI / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        _to_disk(*folder.rglob("*"), folder, PKI)
        link.replace(CURRENT)
        _to_disk(PKI)


# --- what `trilake vpn` asks for -------------------------------------------------------------------------------------


def init() -> dict[str, Any]:
    """Make the PKI, if there is none."""
    made = False
    PKI.chmod(0o711)
    if not CURRENT.exists():
        with change() as state:
            if not (state.folder / "ca.crt").exists():  # else another one was first
                _make(state)
                made = True
    with current() as state:
        told = run("openssl", "x509", "-in", str(state.folder / "ca.crt"), "-noout", "-fingerprint", "-sha256")
        return {
            "made": made,
            "fingerprint": told.strip().partition("=")[2],
            "crl_expires_at": state.crl_expires().isoformat(),
        }


def _make(state: State) -> None:
    state.easyrsa("init-pki")
    state.easyrsa("build-ca", "nopass", EASYRSA_REQ_CN="Trilake VPN", EASYRSA_CA_EXPIRE=str(CA_DAYS))
    state.easyrsa("build-server-full", SERVER, "nopass", EASYRSA_CERT_EXPIRE=str(SERVER_DAYS))
    run("openvpn", "--genkey", "tls-crypt-v2-server", str(state.folder / "private" / "tls-crypt-v2.key"))
    (state.folder / "ccd").mkdir(mode=0o755)
    (state.folder / "ccd").chmod(0o755)
    state.renew_crl(CRL_DAYS)


def add(name: str, role: str, remote: str) -> dict[str, Any]:
    """A profile: made, or once more the one that has not been delivered yet."""
    if not NAME.fullmatch(name):
        raise VpnError(f"{name!r} is no name for a profile: small letters, digits and -, at most 31, a letter first.")
    if role not in ROLES:
        raise VpnError(f"{role!r} is no role: it is one of {', '.join(ROLES)}.")
    with current() as state:
        person = state.find(name)
    if person is None:
        with change() as state:
            person = state.find(name) or _issue(state, name, role)
    if person["delivered"]:
        raise VpnError(
            f"{name} has a profile since {person['created_at']}, and its key is not kept here: "
            f"`trilake vpn revoke {name}`, then add the name again."
        )
    if person["role"] != role:
        raise VpnError(f"{name} was added as {person['role']}: add it so, or `trilake vpn revoke {name}` first.")
    with current() as state:
        return {**person, "profile": _profile(state, person["cn"], remote)}


def _issue(state: State, name: str, role: str) -> dict[str, Any]:
    number = 1 + sum(person["name"] == name for person in state.people)
    cn = f"{name}.{number}"
    network = vpn_network()
    taken = {person["address"] for person in state.valid.values()}
    addresses = (str(network.network_address + ROLES[role] * 256 + host) for host in range(1, 255))
    address = next((one for one in addresses if one not in taken), None)
    if address is None:
        raise VpnError(f"All 254 addresses of the role {role} are taken: revoke profiles that nobody uses.")
    state.easyrsa("build-client-full", cn, "nopass", EASYRSA_CERT_EXPIRE=str(PROFILE_DAYS))
    server_key = str(state.folder / "private" / "tls-crypt-v2.key")
    client_key = str(state.folder / "private" / f"{cn}.tls")
    run("openvpn", "--tls-crypt-v2", server_key, "--genkey", "tls-crypt-v2-client", client_key)
    ccd = state.folder / "ccd" / cn
    ccd.write_text(f"ifconfig-push {address} {network.netmask}\n")
    ccd.chmod(0o644)
    person = {
        "name": name,
        "role": role,
        "address": address,
        "cn": cn,
        "created_at": now().isoformat(),
        "expires_at": (now() + timedelta(days=PROFILE_DAYS)).isoformat(),
        "revoked_at": None,
        "delivered": False,
    }
    state.people.append(person)
    return person


def _profile(state: State, cn: str, remote: str) -> str:
    host, _, port = remote.partition(":")
    key, tls = (path.read_text() for path in state.secrets(cn))
    inline = {"ca": state.read("ca.crt"), "cert": state.certificate(cn), "key": key, "tls-crypt-v2": tls}
    blocks = "".join(f"<{tag}>\n{text.strip()}\n</{tag}>\n" for tag, text in inline.items())
    return f"""# Trilake, profile {cn}: it is a key, keep it as one
client
dev tun
proto udp
remote {host} {port or 1194}
resolv-retry infinite
nobind
persist-key
persist-tun
remote-cert-tls server
verify-x509-name {SERVER} name
tls-version-min 1.3
tls-ciphersuites TLS_AES_256_GCM_SHA384
data-ciphers AES-256-GCM
auth-nocache
verb 3
{blocks}"""


def delivered(name: str) -> dict[str, Any]:
    """The person has the profile: its keys are kept here no longer."""
    with change() as state:
        person = state.find(name)
        if person is None:
            raise VpnError(f"There is no profile {name}: `trilake vpn list` shows all.")
        person["delivered"] = True
        for file in state.secrets(person["cn"]):
            file.unlink(missing_ok=True)
    tidy()
    return person


def revoke(name: str) -> dict[str, Any]:
    """End a profile, and its session if it has one."""
    with current() as state:
        known = [person for person in state.people if person["name"] == name]
        revoked = state.find(name)
    if not known:
        raise VpnError(f"There is no profile {name}: `trilake vpn list` shows all.")
    if revoked is not None:
        with change() as state:
            revoked = state.find(name)
            if revoked is not None:  # else another one was first
                _revoke(state, revoked)
    cut()  # also when it was revoked before: whoever did it may have been killed before this
    return revoked or known[-1]


def _revoke(state: State, person: dict[str, Any]) -> None:
    cn = person["cn"]
    person["revoked_at"] = now().isoformat()
    state.easyrsa("revoke", cn, "cessationOfOperation")
    for file in [*state.secrets(cn), state.folder / "ccd" / cn]:
        file.unlink(missing_ok=True)
    state.renew_crl(CRL_DAYS)


def people() -> list[dict[str, Any]]:
    """Every profile there was, and whether it is connected."""
    sessions = connected()
    with current() as state:
        return [{**person, "connected_from": sessions.get(person["cn"])} for person in state.people]


def renew_crl(days: int = CRL_DAYS) -> dict[str, Any]:
    with change() as state:
        if not (state.folder / "ca.crt").exists():
            raise VpnError("There is no PKI yet: `trilake vpn init` makes one.")
        state.renew_crl(days)
        return {"crl_expires_at": state.crl_expires().isoformat()}


# --- the server's sessions -------------------------------------------------------------------------------------------


@contextmanager
def management() -> Iterator[Any]:
    """Ask the server: a function from a command to its answer's lines. It talks to one at a time."""
    with locked(RUN / "management.lock"), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(MANAGEMENT_SECONDS)
        connection.connect(str(MANAGEMENT))
        with connection.makefile("rw", encoding="utf-8") as stream:

            def ask(command: str) -> list[str]:
                stream.write(f"{command}\n")
                stream.flush()
                lines: list[str] = []
                for line in stream:
                    if line.startswith(">"):  # something it tells by itself
                        continue
                    lines.append(line.rstrip())
                    if lines[-1] == "END" or lines[-1].startswith(("SUCCESS:", "ERROR:")):
                        break
                return lines

            yield ask


def _sessions(ask: Any) -> dict[str, str]:
    """Real addresses by common name; without handshakes that are under way."""
    rows = [line.split(",") for line in ask("status 2")]
    # the last row is cut off if the server dies as it answers
    return {row[1]: row[2] for row in rows if row[0] == "CLIENT_LIST" and len(row) > 2 and row[1] != "UNDEF"}


def connected() -> dict[str, str]:
    """The sessions; none when there is no server."""
    try:
        with management() as ask:
            return _sessions(ask)
    except OSError:
        return {}


def cut() -> list[str]:
    """End every session whose profile is not valid: their common names."""
    try:
        with management() as ask:
            sessions = _sessions(ask)  # before the profiles: one that comes meanwhile is none that is not valid
            with current() as state:
                ended = [cn for cn in sessions if cn not in state.valid]
            for cn in ended:
                ask(f"kill {cn}")
            return ended
    except (ConnectionError, FileNotFoundError):  # no server, no sessions
        return []


def check() -> dict[str, Any]:
    """Healthy: the server takes connections, and its revocation list holds."""
    with management() as ask:
        state = next(iter(ask("state")), "it said nothing")
    if ",CONNECTED," not in state:
        raise VpnError(f"OpenVPN is not ready: {state}")
    with current() as pki:
        expires = pki.crl_expires()
    if expires <= now():
        raise VpnError("The revocation list has expired, nobody gets in: `trilake vpn renew-crl`, and see the log.")
    return {"crl_expires_at": expires.isoformat()}


# --- the server ------------------------------------------------------------------------------------------------------


def vpn_network() -> ipaddress.IPv4Network:
    text = os.environ.get("VPN_NETWORK", "")
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as e:
        raise VpnError(f"VPN_NETWORK={text} is not an IPv4 network, such as 10.99.0.0/16.") from e
    if network.prefixlen != 16:
        raise VpnError(f"VPN_NETWORK={text} is not a /16, such as 10.99.0.0/16.")
    return network


def configuration() -> str:
    """OpenVPN's configuration. It drops its rights after reading the keys, hence persist-*."""
    network = vpn_network()
    routes = "".join(f'push "route {os.environ[f"VPS_{n}_ADDRESS"]} 255.255.255.255"\n' for n in (1, 2, 3))
    return f"""port 1194
proto udp4
dev tun0
dev-type tun
disable-dco
mode server
tls-server
topology subnet
ifconfig {network.network_address + 1} {network.netmask}
push "topology subnet"
push "route-gateway {network.network_address + 1}"
{routes}ca {CURRENT}/ca.crt
cert {CURRENT}/issued/{SERVER}.crt
key {CURRENT}/private/{SERVER}.key
tls-crypt-v2 {CURRENT}/private/tls-crypt-v2.key
dh none
crl-verify {CURRENT}/crl.pem
client-config-dir {CURRENT}/ccd
ccd-exclusive
remote-cert-tls client
tls-version-min 1.3
tls-ciphersuites TLS_AES_256_GCM_SHA384
data-ciphers AES-256-GCM
keepalive 10 60
push "ping 10"
push "ping-restart 60"
explicit-exit-notify 1
persist-key
persist-tun
user nobody
group nogroup
management {MANAGEMENT} unix
verb 2
"""


def serve() -> int:
    """Run OpenVPN until it ends or is told to; meanwhile cut sessions and renew the revocation list when due."""
    made = init()
    print(f"vpn: certificate authority {made['fingerprint']}, {'new' if made['made'] else 'as before'}", flush=True)
    RUN.mkdir(parents=True, exist_ok=True)
    file = RUN / "server.conf"
    file.write_text(configuration())
    MANAGEMENT.unlink(missing_ok=True)
    server = subprocess.Popen(["openvpn", "--config", str(file)])
    ending = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    looked_at, look_again = "", 0.0
    while True:
        try:
            return server.wait(timeout=WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            if ending:  # asked, not signalled: it is nobody's process by now, and we have no right to signal others'
                with management() as ask:
                    ask("signal SIGTERM")
                continue
            for cn in cut():
                print(f"vpn: {cn} is not valid: its session is ended", flush=True)
            if (name := CURRENT.resolve().name) != looked_at or time.monotonic() > look_again:
                looked_at, look_again = name, time.monotonic() + RENEW_SECONDS
                tidy()
                with current() as pki:
                    left = pki.crl_expires() - now()
                if left < timedelta(days=CRL_LEFT_DAYS):
                    print(f"vpn: revocation list renewed, until {renew_crl()['crl_expires_at']}", flush=True)
        except (OSError, VpnError) as e:  # the server goes on; the next round tries again
            print(f"vpn: {e}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="vpn")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("serve", "check", "init", "list"):
        commands.add_parser(command)
    adding = commands.add_parser("add")
    adding.add_argument("name")
    adding.add_argument("role")
    adding.add_argument("--remote", default="")
    for command in ("delivered", "revoke"):
        commands.add_parser(command).add_argument("name")
    commands.add_parser("renew-crl").add_argument("--days", type=int, default=CRL_DAYS)
    given = parser.parse_args()
    os.umask(0o077)
    remote = f"{os.environ.get('VPN_PUBLIC_ADDRESS') or '127.0.0.1'}:{os.environ.get('VPN_PUBLIC_PORT') or 1194}"
    try:
        match given.command:
            case "serve":
                return serve()
            case "add":
                answer: Any = add(given.name, given.role, given.remote or remote)
            case "renew-crl":
                answer = renew_crl(given.days)
            case "delivered" | "revoke":
                answer = {"delivered": delivered, "revoke": revoke}[given.command](given.name)
            case command:
                answer = {"check": check, "init": init, "list": people}[command]()
    except (VpnError, OSError) as e:
        print(e, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
