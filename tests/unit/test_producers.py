"""The file of a producer's key: one secret, written once, that no later command brings back."""

from __future__ import annotations

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
