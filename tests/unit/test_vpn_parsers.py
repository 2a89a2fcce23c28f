"""What the VPN reads: its state, profiles, its network and what its server says, for any text."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilake_vpn import pki, sessions

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
# a line of an answer: no end within, and no sign of one
LINES = st.from_regex(r"[A-DF-Ra-z]([ -~]{0,20}[!-~])?", fullmatch=True)
PEOPLE = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "role": TEXT, "address": TEXT, "revoked_at": st.none() | TEXT, "delivered": st.booleans()}
    ),
    max_size=5,
).map(lambda people: [{**person, "cn": f"{person['name']}.{n}"} for n, person in enumerate(people)])


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of ours in place of /run/openvpn."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sessions, "RUN", tmp_path_factory.mktemp("run"))
        patched.setattr(sessions, "MANAGEMENT", sessions.RUN / "management.sock")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    for name in ("issued", "private"):
        (folder / name).mkdir()
    return folder


@given(PEOPLE)
def test_a_state_is_the_same_when_it_is_read_again(folder: Path, people: list[dict[str, Any]]) -> None:
    (folder / "people.json").write_text("[]")
    state = pki.State(folder)
    state.people += people
    state.save()
    again = pki.State(folder)
    assert again.people == people
    assert list(again.valid.values()) == [person for person in people if person["revoked_at"] is None]
    for person in people:
        named = [one for one in people if one["name"] == person["name"] and one["revoked_at"] is None]
        assert again.find(person["name"]) == (named[0] if named else None)


PEM = st.from_regex(r"-----BEGIN [A-Z]{1,5}-----\n[A-Za-z0-9+/=\n]{0,30}\n-----END [A-Z]{1,5}-----", fullmatch=True)


@given(NAMES, PEM, PEM, PEM, PEM, st.from_regex(r"[a-z0-9.]{1,12}", fullmatch=True), st.none() | st.integers(1, 65535))
def test_a_profile_holds_its_keys_and_where_to_go(
    folder: Path, name: str, ca: str, cert: str, key: str, tls: str, host: str, port: int | None
) -> None:
    (folder / "people.json").write_text("[]")
    cn = f"{name}.1"
    for file, text in (("ca.crt", ca), (f"private/{cn}.key", key), (f"private/{cn}.tls", tls)):
        (folder / file).write_text(f"{text}\n")
    (folder / f"issued/{cn}.crt").write_text(f"Certificate:\n    Data: -- {name}\n{cert}\n")
    made = pki._profile(pki.State(folder), cn, host if port is None else f"{host}:{port}")
    lines = made.splitlines()
    assert f"remote {host} {port or 1194}" in lines
    for tag, text in (("ca", ca), ("cert", cert), ("key", key), ("tls-crypt-v2", tls)):
        assert made.count(f"<{tag}>\n") == 1
        assert made.partition(f"<{tag}>\n")[2].partition(f"\n</{tag}>\n")[0] == text


@given(TEXT | st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}", fullmatch=True))
def test_any_text_is_a_network_of_65536_addresses_or_refused_by_name(text: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pki.os, "environ", {"VPN_NETWORK": text})
        try:
            network = pki.vpn_network()
        except pki.VpnError as e:
            told = str(e)
        else:
            assert (network.prefixlen, network.num_addresses) == (16, 65536)
            assert ipaddress.IPv4Network(text) == network
            told = f"VPN_NETWORK={text}"
    assert f"VPN_NETWORK={text}" in told


@given(TEXT | st.text("abz09-A.\n", max_size=34))
def test_a_name_is_a_label_of_dns_that_begins_with_a_letter(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    is_one = 0 < len(text) <= 31 and set(text) <= allowed and text[0] in allowed - set("0123456789-")
    assert bool(pki.NAME.fullmatch(text)) == is_one


# --- what the server says

SESSIONS = st.dictionaries(
    NAMES.map(lambda name: f"{name}.1"), st.from_regex(r"[0-9.]{7,12}:[0-9]{1,5}", fullmatch=True)
)


def rows_of(sessions: dict[str, str]) -> list[str]:
    header = ["TITLE,OpenVPN", "TIME,now,1", "HEADER,CLIENT_LIST,Common Name,Real Address"]
    rows = [f"CLIENT_LIST,{cn},{address},10.99.1.1,,1,2,then,3,UNDEF,4,5,AES" for cn, address in sessions.items()]
    return [
        *header,
        *rows,
        "CLIENT_LIST,UNDEF,1.2.3.4:5,,,0,0,then,3,UNDEF,4,5,",
        "ROUTING_TABLE,10.99.1.1,x.1,1.1.1.1:1",
    ]


@given(SESSIONS, st.integers(0, 400))
def test_sessions_are_those_of_the_answer_as_far_as_it_came(connected: dict[str, str], cut: int) -> None:
    rows = rows_of(connected)
    assert sessions._sessions(lambda _: [*rows, "END"]) == connected
    found = sessions._sessions(lambda _: "\n".join(rows)[:cut].splitlines())
    assert list(found) == list(connected)[: len(found)]


@given(st.lists(TEXT | st.sampled_from(["CLIENT_LIST", "CLIENT_LIST,", "CLIENT_LIST,a", ",", ""]), max_size=5))
def test_any_answer_has_sessions_or_none(answer: list[str]) -> None:
    assert all(isinstance(address, str) for address in sessions._sessions(lambda _: answer).values())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(LINES, max_size=4),
    st.sampled_from(["END", "SUCCESS: x", "ERROR: x", ""]),
    st.lists(st.from_regex(r">[A-Z]{1,5}:[ -~]{0,9}", fullmatch=True), max_size=3),
)
def test_an_answer_is_told_from_what_the_server_says_by_itself(
    lines: list[str], end: str, by_itself: list[str]
) -> None:
    """It ends where it says so, or with the server."""
    sessions.MANAGEMENT.unlink(missing_ok=True)
    mixed = [*by_itself, *(text for line in lines for text in (line, *by_itself)), *([end] if end else [])]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sessions.MANAGEMENT))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall("".join(f"{line}\r\n" for line in mixed).encode())

        thread = threading.Thread(target=serve)
        thread.start()
        with sessions.management() as ask:
            assert ask("state") == [*lines, *([end] if end else [])]
        thread.join()
