"""The VPN's certificates and profiles, and the folder that they are kept in.

Everything is in one folder, ``/pki/current``: easy-rsa's PKI, ``people.json``, one file for each profile that may
connect (``ccd/``) and the revocation list. A change works on a copy of this folder, and renaming one link
makes the copy the current folder. A change that is killed has changed nothing; the next change removes what it left.

A profile's common name is ``<name>.<number>``: a name can be used again, and a session's common name says which profile
it belongs to.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PKI = Path("/pki")
CURRENT = PKI / "current"
SERVER = "vps-1"
# Third number of a role's addresses: VPN_NETWORK is a /16. docker/host/firewall uses the same numbers.
ROLES = {"admin": 1, "engineer": 2, "agent": 3}
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")

CA_DAYS = SERVER_DAYS = 3650
PROFILE_DAYS = 730
CRL_DAYS = 30


class VpnError(Exception):
    """A request failed. The message says why and gives the next step."""


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class State:
    """One folder with everything: the current one, or the copy that a change works on."""

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
        """The files that only the person has after the profile is delivered."""
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
    """Run a program and return what it printed.

    :raises VpnError: the program failed. The message has the end of its output.
    """
    settings = {"EASYRSA_BATCH": "1", "EASYRSA_ALGO": "ec", "EASYRSA_CURVE": "secp384r1", "EASYRSA_DIGEST": "sha384"}
    settings = {**os.environ, **settings, **environment}
    done = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        output = " ".join((done.stdout + done.stderr).split())[-400:]
        raise VpnError(f"{Path(command[0]).name} {command[1]} failed: {output}")
    return done.stdout


# --- changes: all or nothing -----------------------------------------------------------------------------------------


@contextmanager
def locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock: exclusive, or shared between readers. It is released when its process ends."""
    with file.open("a") as lock:
        fcntl.flock(lock, how)
        yield


@contextmanager
def current() -> Iterator[State]:
    """The current state. It does not change while it is read."""
    with locked(PKI / "lock", fcntl.LOCK_SH):
        if not CURRENT.exists():
            raise VpnError("There is no PKI yet. `trilake vpn init` makes one.")
        yield State(CURRENT.resolve())


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("state-").removesuffix(".part"))


def _clear(number: int) -> None:
    """Remove every state but this one: what a killed change left, and keys that were delivered or revoked since."""
    for folder in PKI.glob("state-*"):
        if folder.name != f"state-{number}":
            shutil.rmtree(folder)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def tidy() -> None:
    """Remove every state but the current one."""
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


# --- certificates and profiles --------------------------------------------------------------------------------------


def vpn_network() -> ipaddress.IPv4Network:
    text = os.environ.get("VPN_NETWORK", "")
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as e:
        raise VpnError(f"VPN_NETWORK={text} is not an IPv4 network, such as 10.99.0.0/16.") from e
    if network.prefixlen != 16:
        raise VpnError(f"VPN_NETWORK={text} is not a /16, such as 10.99.0.0/16.")
    return network


def init() -> dict[str, Any]:
    """Make the PKI, if there is none."""
    created = False
    PKI.chmod(0o711)
    if not CURRENT.exists():
        with change() as state:
            if not (state.folder / "ca.crt").exists():  # otherwise another process was faster
                _make_pki(state)
                created = True
    with current() as state:
        output = run("openssl", "x509", "-in", str(state.folder / "ca.crt"), "-noout", "-fingerprint", "-sha256")
        return {
            "made": created,
            "fingerprint": output.strip().partition("=")[2],
            "crl_expires_at": state.crl_expires().isoformat(),
        }


def _make_pki(state: State) -> None:
    state.easyrsa("init-pki")
    state.easyrsa("build-ca", "nopass", EASYRSA_REQ_CN="Trilake VPN", EASYRSA_CA_EXPIRE=str(CA_DAYS))
    state.easyrsa("build-server-full", SERVER, "nopass", EASYRSA_CERT_EXPIRE=str(SERVER_DAYS))
    run("openvpn", "--genkey", "tls-crypt-v2-server", str(state.folder / "private" / "tls-crypt-v2.key"))
    (state.folder / "ccd").mkdir(mode=0o755)
    (state.folder / "ccd").chmod(0o755)
    state.renew_crl(CRL_DAYS)


def add(name: str, role: str, remote: str) -> dict[str, Any]:
    """Make a profile. If the name has one that is not delivered yet, return that one again."""
    if not NAME.fullmatch(name):
        raise VpnError(
            f"{name!r} is not a valid name for a profile. "
            "A name has at most 31 lower-case letters, digits and hyphens, and starts with a letter."
        )
    if role not in ROLES:
        raise VpnError(f"{role!r} is not a role. The roles are {', '.join(ROLES)}.")
    with current() as state:
        person = state.find(name)
    if person is None:
        with change() as state:
            person = state.find(name) or _issue(state, name, role)
    if person["delivered"]:
        raise VpnError(
            f"{name} has had a profile since {person['created_at']}. Its key is not kept here. "
            f"Run `trilake vpn revoke {name}`, then add the name again."
        )
    if person["role"] != role:
        raise VpnError(
            f"{name} was added with the role {person['role']}. Use this role, or run `trilake vpn revoke {name}` first."
        )
    with current() as state:
        return {**person, "profile": _profile(state, person["cn"], remote)}


def _issue(state: State, name: str, role: str) -> dict[str, Any]:
    number = 1 + sum(person["name"] == name for person in state.people)
    cn = f"{name}.{number}"
    network = vpn_network()
    taken = {person["address"] for person in state.valid.values()}
    addresses = (str(network.network_address + ROLES[role] * 256 + host) for host in range(1, 255))
    address = next((candidate for candidate in addresses if candidate not in taken), None)
    if address is None:
        raise VpnError(f"All 254 addresses of the role {role} are taken. Revoke profiles that nobody uses.")
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
    return f"""# Trilake, profile {cn}: it holds a private key, keep it secret
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
    """Record that the person has the profile, and remove its keys from here."""
    with change() as state:
        person = state.find(name)
        if person is None:
            raise VpnError(f"There is no profile {name}. `trilake vpn list` shows all.")
        person["delivered"] = True
        for file in state.secrets(person["cn"]):
            file.unlink(missing_ok=True)
    tidy()
    return person


def revoke(name: str) -> dict[str, Any]:
    """Revoke a profile: put it on the revocation list. An open session of it continues."""
    with current() as state:
        known = [person for person in state.people if person["name"] == name]
        revoked = state.find(name)
    if not known:
        raise VpnError(f"There is no profile {name}. `trilake vpn list` shows all.")
    if revoked is not None:
        with change() as state:
            revoked = state.find(name)
            if revoked is not None:  # otherwise another process was faster
                _revoke(state, revoked)
    return revoked or known[-1]


def _revoke(state: State, person: dict[str, Any]) -> None:
    cn = person["cn"]
    person["revoked_at"] = now().isoformat()
    state.easyrsa("revoke", cn, "cessationOfOperation")
    for file in [*state.secrets(cn), state.folder / "ccd" / cn]:
        file.unlink(missing_ok=True)
    state.renew_crl(CRL_DAYS)


def renew_crl(days: int = CRL_DAYS) -> dict[str, Any]:
    """Renew the revocation list. It is valid for `days` days."""
    with change() as state:
        if not (state.folder / "ca.crt").exists():
            raise VpnError("There is no PKI yet. `trilake vpn init` makes one.")
        state.renew_crl(days)
        return {"crl_expires_at": state.crl_expires().isoformat()}
