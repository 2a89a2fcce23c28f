"""Who comes in through the VPN, where he gets to, and how he is shut out."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from hosts_network import PROBE, VPN_IMAGE, Container, Network, await_true, docker
from vpn_client import Client, profile_of

from support.network_flows import HOSTS, PROJECT, ROLES
from trilake.platform.hosts.vpn import VpnError

NOBODY = 65534
KILLS = 5
_numbers = count(1)


@pytest.fixture
def name(network: Network) -> Iterator[str]:
    """Of somebody new, who is shut out after the test."""
    one = f"test-{datetime.now(UTC):%H%M%S}-{next(_numbers)}"
    yield one
    if any(person["name"] == one and person["revoked_at"] is None for person in network.vpn.people()):
        network.vpn.revoke(one)


@pytest.fixture
def server(network: Network) -> Container:
    return Container(network.service("openvpn"))


def person(network: Network, name: str) -> dict[str, object]:
    return next(one for one in reversed(network.vpn.people()) if one["name"] == name)


FIND = r"""
import os
for number in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{number}/comm").read() == "openvpn\n":
        print(number, os.stat(f"/proc/{number}").st_uid)
"""


def process_of(server: Container) -> tuple[int, int]:
    """OpenVPN's number and user."""
    number, user = server.run("python3", "-c", FIND).split()
    return int(number), int(user)


def everywhere(network: Network) -> list[tuple[str, str, int]]:
    return [*network.targets(*HOSTS), *((network.edge_address, "tcp", port) for port in (22, 5432, 8080))]


@pytest.mark.parametrize("role", [r if r == "agent" else pytest.param(r, marks=pytest.mark.rotates(6)) for r in ROLES])
def test_a_role_reaches_what_the_table_names(
    network: Network, client: Client, tmp_path: Path, name: str, role: str
) -> None:
    assert client.reached(everywhere(network)) == set()

    client.connect(profile_of(network, tmp_path, name, role))

    assert client.reached(everywhere(network)) == network.allowed(role, to=HOSTS)
    client.disconnect()
    assert client.reached(network.targets("vps-1")) == set()


@pytest.mark.rotates(6)
def test_two_at_once_do_not_reach_each_other(
    network: Network, client: Client, another_client: Client, tmp_path: Path, name: str
) -> None:
    other = f"{name}-b"
    client.connect(profile_of(network, tmp_path, name, "engineer"))
    another_client.connect(profile_of(network, tmp_path, other, "admin"))
    docker("exec", "-d", another_client.id, "python3", "-c", PROBE, "listen", "9999")
    there = str(person(network, other)["address"])
    await_true(lambda: another_client.reached([(there, "tcp", 9999)]), 120, "a listener at the other one")

    ui = (network.address["vps-1"], "tcp", 8080)
    assert client.reached([ui]) == another_client.reached([ui]) == {ui}
    assert client.reached([(there, "tcp", 9999), (there, "udp", 9999)]) == set()

    network.vpn.revoke(other)


@pytest.mark.rotates(6)
def test_a_profile_is_tls_1_3_and_aes_256_gcm(network: Network, client: Client, tmp_path: Path, name: str) -> None:
    client.connect(profile_of(network, tmp_path, name, "agent"))

    log = client.log()
    assert "Control Channel: TLSv1.3, cipher TLSv1.3 TLS_AES_256_GCM_SHA384" in log
    assert "384 bits ECsecp384r1" in log or "secp384r1" in log
    assert "Data Channel: cipher 'AES-256-GCM'" in log


@pytest.mark.rotates(6)
@pytest.mark.parametrize("without", ["tls-crypt-v2", "cert"])
def test_a_profile_with_a_key_of_somebody_else_is_refused(
    network: Network, client: Client, tmp_path: Path, name: str, without: str
) -> None:
    """With the wrong key of tls-crypt-v2 nothing is answered at all; a certificate needs its own key."""
    mine = profile_of(network, tmp_path, name, "agent")
    client.run("openvpn", "--genkey", "tls-crypt-v2-server", "/tmp/s.key")
    client.run("openvpn", "--tls-crypt-v2", "/tmp/s.key", "--genkey", "tls-crypt-v2-client", "/tmp/c.key")
    other = client.run("cat", "/tmp/c.key") if without == "tls-crypt-v2" else client.run(*SELF_SIGNED)
    block = rf"(?s)<{without}>.*?</{without}>"
    wrong = re.sub(block, f"<{without}>\n{other}\n</{without}>", mine)
    if without == "cert":
        wrong = re.sub(r"(?s)<key>.*?</key>", f"<key>\n{client.run('cat', '/tmp/k.pem')}\n</key>", wrong)

    assert client.is_refused(wrong)
    client.connect(mine)


@pytest.mark.rotates(6)
def test_a_client_that_has_tls_1_2_alone_is_refused(
    network: Network, client: Client, tmp_path: Path, name: str
) -> None:
    profile = profile_of(network, tmp_path, name, "agent")
    assert "tls-version-min 1.3" in profile

    assert client.is_refused(profile.replace("tls-version-min 1.3", "tls-version-max 1.2"))


SELF_SIGNED = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes", "-days", "1"),
    *("-subj", "/CN=test.1", "-addext", "extendedKeyUsage=clientAuth", "-keyout", "/tmp/k.pem"),
)


def test_revoking_ends_the_session_and_keeps_out(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    profile = profile_of(network, tmp_path, name, "engineer")
    database = (network.address["vps-1"], "tcp", 5432)
    client.connect(profile)
    assert client.reached([database]) == {database}
    assert person(network, name)["connected_from"]
    process = process_of(server)[0]

    network.vpn.revoke(name)

    assert client.reached([database]) == set()
    assert person(network, name)["connected_from"] is None
    client.disconnect()
    assert client.is_refused(profile)
    assert client.reached([database]) == set()
    assert process_of(server)[0] == process
    again = profile_of(network, tmp_path / "..", f"{name}-new", "engineer")
    client.connect(again)
    network.vpn.revoke(f"{name}-new")


@pytest.mark.rotates(6)
def test_a_revocation_that_was_killed_before_it_cut_the_session_is_completed_by_the_server(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    client.connect(profile_of(network, tmp_path, name, "engineer"))
    only_revoke = f"import os; from trilake_vpn import pki; os.umask(0o077); pki.revoke('{name}')"

    server.run("python3", "-c", only_revoke)

    await_true(lambda: person(network, name)["connected_from"] is None, 120, "the session to end")
    assert client.reached([(network.address["vps-1"], "tcp", 5432)]) == set()


@pytest.mark.rotates(6)
def test_a_name_can_have_a_new_profile_and_the_old_one_stays_out(
    network: Network, client: Client, tmp_path: Path, name: str
) -> None:
    old = profile_of(network, tmp_path, name, "admin")
    network.vpn.revoke(name)
    (tmp_path / f"{name}.ovpn").rename(tmp_path / "old.ovpn")
    new = profile_of(network, tmp_path, name, "agent")

    assert client.is_refused(old)
    client.connect(new)
    assert client.reached(network.targets("vps-1")) == network.allowed("agent", to=["vps-1"])


@pytest.mark.rotates(6)
def test_a_revocation_list_that_is_about_to_expire_is_renewed_without_a_restart(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    profile = profile_of(network, tmp_path, name, "agent")
    process = process_of(server)[0]
    server.run("vpn", "renew-crl", "--days", "10")

    def left() -> timedelta:
        expires = datetime.fromisoformat(json.loads(server.run("vpn", "check"))["crl_expires_at"])
        return expires - datetime.now(UTC)

    await_true(lambda: left() > timedelta(days=25), 180, "a new revocation list")
    assert process_of(server)[0] == process
    client.connect(profile)


@pytest.mark.rotates(6)
def test_nobody_alone_reads_the_list_and_no_key(server: Container) -> None:
    readable = "import os; os.setgid(65534); os.setuid(65534); open('/pki/current/{}').read()"
    server.run("python3", "-c", readable.format("crl.pem"))
    for file in ("private/ca.key", "private/vps-1.key", "people.json"):
        with pytest.raises(AssertionError, match="PermissionError"):
            server.run("python3", "-c", readable.format(file))
    assert process_of(server)[1] == NOBODY


@pytest.mark.rotates(6)
def test_a_server_that_dies_comes_back_with_the_same_keys(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    profile = profile_of(network, tmp_path, name, "agent")

    docker("exec", "-u", str(NOBODY), server.id, "python3", "-c", f"import os; os.kill({process_of(server)[0]}, 9)")

    health = ("inspect", server.id, "--format", "{{.State.Health.Status}} {{.RestartCount}}")
    await_true(lambda: re.fullmatch(r"healthy [1-9]\d*", docker(*health)), 300, "the server to come back")
    client.connect(profile)


@pytest.mark.rotates(6)
def test_a_backup_is_put_back_as_the_documentation_says(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    text = (PROJECT / "docs" / "operations" / "network.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"--entrypoint sh trilake/openvpn:0.1.0 -ceu '\n(.*?)' < /run/pki.tar", text, re.DOTALL)
    profile = profile_of(network, tmp_path, name, "agent")
    saved = subprocess.run(
        ["docker", "exec", server.id, "tar", "-C", "/pki", "-ch", "current"], capture_output=True, check=False
    )
    assert saved.returncode == 0, saved.stderr
    later = f"{name}-later"
    of_later = profile_of(network, tmp_path, later, "agent")

    volume = ["--network", "none", "-v", f"{network.project}_vpn_pki:/pki", "--entrypoint", "sh", VPN_IMAGE]
    back = subprocess.run(["docker", "run", "--rm", "-i", *volume, "-ceu", script], input=saved.stdout, check=False)
    assert back.returncode == 0
    docker("restart", server.id)

    health = ("inspect", server.id, "--format", "{{.State.Health.Status}}")
    await_true(lambda: docker(*health) == "healthy", 300, "the server to come back")
    assert later not in {person["name"] for person in network.vpn.people()}
    assert client.is_refused(of_later)
    client.connect(profile)
    client.disconnect()
    network.vpn.revoke(name)
    assert client.is_refused(profile)


@pytest.mark.rotates(6)
def test_who_is_killed_anywhere_while_he_changes_the_pki_calls_again(
    network: Network, client: Client, tmp_path: Path, name: str, server: Container
) -> None:
    """Both `add` and `revoke`, by SIGKILL to all their processes, later each time, until they are through."""

    def killed(seconds: float, *arguments: str) -> None:
        command = ("timeout", "-s", "KILL", f"{seconds:.2f}", "vpn", *arguments)
        subprocess.run(["docker", "exec", server.id, *command], capture_output=True, check=False, timeout=60)

    profile = ""
    for step in range(KILLS):
        killed(0.05 + 0.25 * step, "add", name, "engineer")
        file = tmp_path / f"{step}.ovpn"
        network.vpn.add(name, "engineer", file, remote=f"{network.edge_address}:1194")
        profile = file.read_text()
        if step < KILLS - 1:
            killed(0.05 + 0.25 * step, "revoke", name)
            network.vpn.revoke(name)

    client.connect(profile)
    everybody = network.vpn.people()
    index = server.run("cat", "/pki/current/index.txt").splitlines()
    certificates = {(line[0], line.rpartition("CN=")[2]) for line in index}
    assert len(index) == len(certificates)
    assert certificates == {("V", "vps-1")} | {("R" if one["revoked_at"] else "V", one["cn"]) for one in everybody}
    valid = {one["cn"] for one in everybody if not one["revoked_at"]}
    assert set(server.run("ls", "/pki/current/ccd").split()) == valid
    addresses = [one["address"] for one in everybody if not one["revoked_at"]]
    assert len(addresses) == len(set(addresses))
    undelivered = {one["cn"] for one in everybody if not one["revoked_at"] and not one["delivered"]}
    kept = {file.rpartition(".")[0] for file in server.run("ls", "/pki/current/private").split()}
    assert kept == {"ca", "vps-1", "tls-crypt-v2", *undelivered}


def trilake(network: Network, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"import sys, os; os.chdir({str(folder)!r}); from trilake.cli import main; main()"
    project = str(Path(__file__).parents[2])
    environment = {
        "COMPOSE_PROJECT_NAME": network.project,
        "TRILAKE_PROJECT": project,
        "PYTHONPATH": f"{project}/plugins",
    }
    return subprocess.run(
        [sys.executable, "-c", program, "vpn", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.rotates(6)
def test_the_command_line_gives_one_file_and_tells_what_it_did(network: Network, tmp_path: Path, name: str) -> None:
    added = trilake(network, "add", name, "--role", "agent", "--json", folder=tmp_path)
    file = tmp_path / f"{name}.ovpn"

    assert added.returncode == 0, added.stderr
    assert "PRIVATE KEY" not in added.stdout
    told = json.loads(added.stdout)
    assert told["address"].startswith("10.99.3.")
    assert told["file"] == f"{name}.ovpn"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    assert re.findall(r"<(\S+?)>", file.read_text())[::2] == ["ca", "cert", "key", "tls-crypt-v2"]

    shown = trilake(network, "list", folder=tmp_path).stdout
    assert re.search(rf"^{name} +agent +{told['address']} +valid ", shown, re.MULTILINE)
    revoked = trilake(network, "revoke", name, folder=tmp_path)
    assert revoked.stdout.startswith(f"{name} (agent, {told['address']}) was revoked at ")
    assert trilake(network, "revoke", name, folder=tmp_path).returncode == 0
    assert trilake(network, "init", folder=tmp_path).stdout.startswith(
        "The certificate authority exists already: SHA-256 "
    )
    assert json.loads(trilake(network, "renew-crl", "--json", folder=tmp_path).stdout)["crl_expires_at"]


@pytest.mark.rotates(6)
def test_a_profile_is_never_written_over(network: Network, tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.ovpn"
    file.write_text("mine")

    with pytest.raises(VpnError, match="never overwritten"):
        network.vpn.add(name, "agent", file)

    assert file.read_text() == "mine"
    assert all(one["name"] != name for one in network.vpn.people())


@pytest.mark.rotates(6)
def test_a_delivery_that_was_killed_after_the_file_is_completed(network: Network, tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.ovpn"
    file.write_text(network.vpn._ask("add", name, "agent")["profile"])
    assert person(network, name)["delivered"] is False

    network.vpn.add(name, "agent", file)

    assert person(network, name)["delivered"] is True
    with pytest.raises(VpnError, match="has had a profile since"):
        network.vpn.add(name, "agent", tmp_path / "another.ovpn")


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "Alice", "--role", "agent"), "'Alice' is not a valid name for a profile"),
        (("add", "alice", "--role", "root"), "'root' is not a role. The roles are admin, engineer, agent."),
        (("add", "alice", "--role", "agent", "--out", "no/where.ovpn"), "is not a folder"),
        (("revoke", "nobody-has-this"), "There is no profile nobody-has-this"),
    ],
)
def test_an_error_is_one_line_that_names_the_thing(
    network: Network, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = trilake(network, *arguments, folder=tmp_path)

    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
