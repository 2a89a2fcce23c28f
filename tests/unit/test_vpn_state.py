"""The VPN's state changes as a whole: a kill between any two lines leaves it as it was, or changed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from trilake_vpn import pki, server

# A change runs so many lines at most; the test says if it does not
MOST_LINES = 400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of ours in place of /pki, with one state with one person."""
    monkeypatch.setattr(pki, "PKI", tmp_path)
    monkeypatch.setattr(pki, "CURRENT", tmp_path / "current")
    # it is for a loss of power: a kill loses nothing of what was written
    monkeypatch.setattr(pki, "_to_disk", lambda *_: None)
    with pki.change() as state:
        state.people.append({"cn": "first"})


def killed_after(lines: int, name: str) -> bool:
    """Add a person in a process that kills itself after so many lines of pki.py; whether it was through before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal seen
            if frame.f_code.co_filename != pki.__file__:
                return None
            if event == "line" and (seen := seen + 1) > lines:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        with pki.change() as state:
            state.people.append({"cn": name})
            (state.folder / name).write_text(name)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status)


def people() -> list[str]:
    """As a reader finds them; everybody but the first has a file, or there is half a change."""
    with pki.current() as state:
        names = [person["cn"] for person in state.people]
        assert [name for name in names if not (state.folder / name).exists()] == ["first"]
        assert sorted(file.name for file in state.folder.iterdir()) == sorted([*names[1:], "people.json"])
    return names


def test_who_is_killed_between_any_two_lines_changed_nothing_or_all() -> None:
    outcomes = []
    for lines in range(MOST_LINES):
        before = people()

        through = killed_after(lines, f"p{lines}")

        after = people()
        assert after in (before, [*before, f"p{lines}"])
        outcomes.append(after != before)
        if through:
            break
    assert outcomes[-1]
    assert outcomes.count(False) > 20
    assert outcomes.count(True) > 1, "it dies after the change was made, too"


def test_what_a_killed_change_left_is_removed_by_the_next(tmp_path: Path) -> None:
    for lines in range(5, MOST_LINES, 7):
        if killed_after(lines, f"p{lines}"):
            break

        with pki.change() as state:
            state.people.append({"cn": f"after-{lines}"})
            (state.folder / f"after-{lines}").touch()
        pki.tidy()

        left = {file.name for file in tmp_path.iterdir()} - {"lock", "current", "current.new"}
        assert left == {pki.CURRENT.readlink().name}
        assert people()[-1] == f"after-{lines}"


def test_an_error_in_a_change_changes_nothing() -> None:
    with pytest.raises(AttributeError), pki.change() as state:
        state.people.append(state.nobody)

    assert people() == ["first"]


def test_a_state_without_its_people_is_an_error_and_not_an_empty_one() -> None:
    """Else the watch would end everybody's session."""
    (pki.CURRENT / "people.json").unlink()

    with pytest.raises(FileNotFoundError), pki.current():
        pass


@pytest.mark.parametrize("network", ["", "10.99.0.0/24", "10.99.1.0/16", "any"])
def test_a_wrong_network_is_named(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    monkeypatch.setenv("VPN_NETWORK", network)

    with pytest.raises(pki.VpnError, match=f"VPN_NETWORK={network} is not"):
        server.configuration()


def test_the_server_takes_tls_1_3_and_known_profiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"VPN_NETWORK": "10.99.0.0/16", **{f"VPS_{n}_ADDRESS": f"10.77.0.1{n}" for n in (1, 2, 3)}}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    lines = server.configuration().splitlines()

    assert {
        "tls-version-min 1.3",
        "tls-ciphersuites TLS_AES_256_GCM_SHA384",
        "data-ciphers AES-256-GCM",
        "remote-cert-tls client",
        "ccd-exclusive",
        "user nobody",
        f"crl-verify {pki.CURRENT}/crl.pem",
        f"tls-crypt-v2 {pki.CURRENT}/private/tls-crypt-v2.key",
        'push "route 10.77.0.13 255.255.255.255"',
    } <= set(lines)
    assert not {"client-to-client", "duplicate-cn"} & set(lines)
    assert json.dumps(lines).count("10.99.0.1 ") == 1
