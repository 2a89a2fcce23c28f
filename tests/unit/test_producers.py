"""The file of a producer's key: one secret, written once, that no later command brings back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trilake.cli import producer as command
from trilake.errors import ConfigurationError
from trilake.hosts.producers import ProducerError, Producers


class Kept(Producers):
    """Their keys are here, and not in a gateway."""

    def __init__(self) -> None:
        super().__init__("p", "root")
        self.keys: dict[str, str] = {}
        self.dies_at = ""

    def _ask(self, verb: str, *arguments: str) -> Any:
        if verb == self.dies_at:
            raise KeyboardInterrupt
        if verb == "add":
            self.keys[arguments[0]] = arguments[1]
        elif verb == "revoke":
            del self.keys[arguments[0]]
        return list(self.keys)


def secret(file: Path) -> str:
    return file.read_text().split("AWS_SECRET_ACCESS_KEY=")[1].strip()


def test_an_add_that_was_killed_goes_on_with_its_secret(tmp_path: Path) -> None:
    producers, file = Kept(), tmp_path / "k"
    producers.dies_at = "add"
    with pytest.raises(KeyboardInterrupt):
        producers.add("acme", "flights", file)
    assert not file.exists()
    (begun,) = tmp_path.iterdir()
    known = secret(begun)
    producers.dies_at = ""
    producers.add("acme", "flights", file)
    assert (secret(file), producers.keys) == (known, {"flights.acme": known})
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_secret_of_a_revoked_key_never_comes_back(tmp_path: Path) -> None:
    producers, file = Kept(), tmp_path / "k"
    producers.add("acme", "flights", file)
    old = secret(file)
    producers.revoke("acme", "flights")
    with pytest.raises(ProducerError, match="never written over"):
        producers.add("acme", "flights", file)
    assert not producers.keys
    file.unlink()
    producers.add("acme", "flights", file)
    assert producers.keys["flights.acme"] == secret(file) != old


def test_a_data_set_that_no_dag_declares_has_no_producer(tmp_path: Path) -> None:
    producers = Kept()
    with pytest.raises(ConfigurationError, match=r"no data set fligths.*flights"):
        command.add(producers, "acme", "fligths", file=tmp_path / "k", as_json=False)
    assert not producers.keys


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

    monkeypatch.setattr("trilake.hosts.containers.docker", docker)
    monkeypatch.setattr("trilake.hosts.producers.docker", docker)
    assert Producers("p", "root").list() == []
    assert "sha256:of-airflow" in ran[0]
