"""The platform's home: what is chosen once is remembered, and what is secret is closed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.platform.embedded import home as homes
from trilake.platform.embedded.home import (
    PORT_NAMES,
    Home,
    format_environment,
    free_port,
    port_is_free,
    read_environment,
)
from trilake.platform.private_files import write_private

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home", PROJECT)
    made.prepare()
    return made


def test_ports_are_different_free_and_remembered(home: Home) -> None:
    ports = home.ports()
    assert list(ports) == list(PORT_NAMES)
    assert len(set(ports.values())) == len(PORT_NAMES)
    assert all(port_is_free(port) for port in ports.values())
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.values()) < lowest_outgoing, "an outgoing connection may take the port while the platform is down"
    assert Home(home.path, PROJECT).ports() == ports


def test_secrets_are_random_closed_and_remembered(home: Home, tmp_path: Path) -> None:
    secrets = home.secrets()
    assert stat.S_IMODE(home.config("secrets.json").stat().st_mode) == 0o600
    assert Home(home.path, PROJECT).secrets() == secrets
    other = Home(tmp_path / "other", PROJECT)
    other.prepare()
    assert not set(other.secrets().values()) & set(secrets.values())
    assert min(len(secret) for secret in secrets.values()) >= 16


def test_a_newer_versions_secret_is_added_to_those_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(home.secrets())
    monkeypatch.setattr(homes, "_SECRETS", {**homes._SECRETS, "later": lambda: "fresh"})
    assert home.secrets() == {**before, "later": "fresh"}


def test_a_damaged_file_is_named_and_never_replaced(home: Home) -> None:
    home.config("secrets.json").write_text('{"postgres_superuser": "hidden')
    with pytest.raises(ConfigurationError, match=r"secrets\.json cannot be read or is damaged") as caught:
        home.secrets()
    assert "hidden" not in str(caught.value)
    assert "hidden" in home.config("secrets.json").read_text()


def test_a_new_home_is_closed_to_others(home: Home) -> None:
    as_root = os.geteuid() == 0
    assert stat.S_IMODE(home.path.stat().st_mode) == (0o711 if as_root else 0o700)
    for folder in (home.config(""), home.run, home.path / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_socket_fits_into_an_address_however_deep_the_home_is(tmp_path: Path) -> None:
    assert Home(Path("/srv/trilake"), PROJECT).socket == Path("/srv/trilake/run/supervisor.sock")
    deep, other = (Home(tmp_path / ("d" * 100) / name, PROJECT) for name in ("one", "two"))
    assert len(os.fsencode(deep.socket)) < 100
    assert deep.socket != other.socket
    assert deep.socket == Home(deep.path, PROJECT).socket


def test_a_foreign_socket_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have made the folder in /tmp before us, to listen in."""
    monkeypatch.setattr(homes, "_SHORT_FOLDER", tmp_path)
    deep = Home(tmp_path / ("d" * 100) / "home", PROJECT)
    deep.socket.parent.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        deep.prepare()


def test_the_home_is_the_projects_unless_named(tmp_path: Path) -> None:
    assert Home.locate({}, PROJECT).path == PROJECT / ".trilake"
    assert Home.locate({"TRILAKE_HOME": str(tmp_path)}, PROJECT).path == tmp_path.resolve()


def test_a_private_file_is_written_only_when_it_says_something_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_private(path, "one")
    assert not write_private(path, "one")
    path.chmod(0o644)
    assert write_private(path, "one"), "an open file was left open"
    assert write_private(path, "two")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("two", 0o600)
    assert list(tmp_path.iterdir()) == [path]


names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,12}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=("Cs",)), max_size=40)


@given(st.dictionaries(names, values, max_size=5))
def test_the_environment_file_says_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("env") / "connections.env"
    path.write_text(format_environment(variables), newline="")
    assert read_environment(path) == variables


@settings(max_examples=20, deadline=None)
@given(values)
def test_a_shell_reads_the_environment_file_as_we_do(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    path = tmp_path_factory.mktemp("env") / "connections.env"
    path.write_text(format_environment({"VALUE": value}), newline="")
    done = subprocess.run(
        ["/bin/sh", "-c", f'. "{path}"; printf %s "$VALUE"'], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == value


@pytest.mark.parametrize("name", ["my home", "100%", "a;b", "schön", "back\\slash", "quo'te", "new\nline"])
def test_a_path_that_not_every_service_can_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="Set TRILAKE_HOME to a path that"):
        Home(tmp_path / name, PROJECT).prepare()
    assert not (tmp_path / name).exists()


def test_no_port_is_given_twice() -> None:
    taken: list[int] = []
    for _ in range(20):
        taken.append(free_port(taken))
    assert len(set(taken)) == len(taken)
