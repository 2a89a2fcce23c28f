"""The file of a producer's key: one secret, written once, that no later command brings back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trilake.cli import producer as command
from trilake.errors import ConfigurationError
from trilake.platform.hosts import s3_admin
from trilake.platform.hosts.producers import ProducerError, Producers
from trilake.platform.hosts.s3_admin import StoreError


class Kept(Producers):
    """Their keys are here, and not in a gateway."""

    def __init__(self) -> None:
        super().__init__("p", "root")
        self.keys: dict[str, str] = {}

    def _ask(self, verb: str, *arguments: str) -> Any:
        if verb == "add":
            assert arguments[0] not in self.keys, "the gateway refuses it"
            self.keys[arguments[0]] = arguments[1]
        elif verb == "revoke":
            del self.keys[arguments[0]]
        elif verb == "resume":
            return self.keys.get(arguments[0]) == arguments[1]
        return list(self.keys)

    def die_adding(self, file: Path, *, made: bool) -> str:
        """An add is killed before its key was made, or after. Gives the secret that it leaves."""

        def die(verb: str, *arguments: str) -> Any:
            if verb != "add" or made:
                found = Kept._ask(self, verb, *arguments)
            if verb == "add":
                raise KeyboardInterrupt
            return found

        with pytest.MonkeyPatch.context() as dying:
            dying.setattr(self, "_ask", die)
            with pytest.raises(KeyboardInterrupt):
                self.add("acme", "flights", file)
        assert not file.exists()
        return secret(file.with_name(f"{file.name}.part"))


def secret(file: Path) -> str:
    return file.read_text().split("AWS_SECRET_ACCESS_KEY=")[1].strip()


@pytest.mark.parametrize("made", [False, True])
def test_an_add_that_was_killed_is_completed_by_the_next_one(tmp_path: Path, made: bool) -> None:
    producers, file = Kept(), tmp_path / "k"
    left = producers.die_adding(file, made=made)
    producers.add("acme", "flights", file)
    assert producers.keys == {"flights.acme": secret(file)}
    assert (secret(file) == left) is made
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_add_left_is_of_no_use_when_its_key_was_revoked(tmp_path: Path) -> None:
    producers, file = Kept(), tmp_path / "k"
    left = producers.die_adding(file, made=True)
    producers.revoke("acme", "flights")
    producers.add("acme", "flights", file)
    assert producers.keys == {"flights.acme": secret(file)}
    assert secret(file) != left
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("made", [False, True])
def test_what_a_killed_add_left_does_not_replace_the_secret_of_a_later_one(tmp_path: Path, made: bool) -> None:
    producers, file, other = Kept(), tmp_path / "k", tmp_path / "other"
    producers.die_adding(file, made=made)
    if made:
        producers.revoke("acme", "flights")
    producers.add("acme", "flights", other)
    with pytest.raises(ProducerError, match="has a key for flights already"):
        producers.add("acme", "flights", file)
    assert producers.keys == {"flights.acme": secret(other)}
    assert not file.exists()


def test_the_gateway_is_not_asked_to_replace_a_producers_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_admin, "_identities", lambda _root: {"flights.acme"})
    monkeypatch.setattr(s3_admin, "_administer", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(StoreError, match=r"a producer flights\.acme already"):
        s3_admin.add_producer(s3_admin.root_of("root"), "flights.acme", "another")


def test_the_secret_of_a_revoked_key_never_comes_back(tmp_path: Path) -> None:
    producers, file = Kept(), tmp_path / "k"
    producers.add("acme", "flights", file)
    old = secret(file)
    producers.revoke("acme", "flights")
    with pytest.raises(ProducerError, match="never overwritten"):
        producers.add("acme", "flights", file)
    assert not producers.keys
    file.unlink()
    producers.add("acme", "flights", file)
    assert producers.keys["flights.acme"] == secret(file) != old


def test_a_data_set_that_no_dag_declares_has_no_producer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    producers = Kept()
    monkeypatch.setattr(command, "producers_here", lambda: producers)
    with pytest.raises(ConfigurationError, match=r"declares a data set fligths.*flights"):
        command.add("acme", "fligths", out=tmp_path / "k")
    assert producers.keys == {}
    assert not (tmp_path / "k").exists()


def test_a_job_whose_container_was_cleared_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker container prune` is what one does on a host whose disk fills up."""
    there = {"s3": "gateway", "airflow-api-server": "airflow"}
    images = {"airflow": "sha256:of-airflow"}
    ran: list[tuple[str, ...]] = []

    def docker(*arguments: str, **_: Any) -> str:
        if arguments[0] == "ps":
            (service,) = (one.rpartition("=")[2] for one in arguments if "compose.service=" in one)
            return there.get(service, "")
        if arguments[0] == "inspect":
            return json.dumps([{"HostConfig": {"NetworkMode": "host"}, "Image": images.get(arguments[1])}])
        ran.append(arguments)
        return "[]"

    monkeypatch.setattr("trilake.platform.hosts.containers.docker", docker)
    assert Producers("p", "root").list() == []
    assert "sha256:of-airflow" in ran[0]
