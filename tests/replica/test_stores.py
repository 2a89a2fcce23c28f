"""S3 and PostgreSQL of the replica let each identity do what the tables say, and nothing else: every cell is tried."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_replica import INSIDE, Replica

from support.network_flows import PROJECT
from trilake.platform.hosts.producers import ProducerError, Producers
from trilake.platform.hosts.s3_admin import RIGHTS, Below


def run_as(stores: Replica, job: str, program: str, **known: str) -> Any:
    """What a program prints that has the secrets of one of the set-up jobs.

    :param known: names that it finds defined.
    """
    text = "".join(f"{name} = {value!r}\n" for name, value in known.items()) + (INSIDE / f"{program}.py").read_text()
    told = stores.compose("run", "--rm", "--no-deps", "-T", job, "python", "-", stdin=text, seconds=300)
    return json.loads(told.splitlines()[-1])


@pytest.mark.rotates(2)
def test_each_identity_of_s3_may_in_each_bucket_what_the_table_says_and_nothing_beside_it(stores: Replica) -> None:
    found = run_as(stores, "setup-s3", "s3_rights")
    whole = {bucket: {who: r for who, r in by.items() if isinstance(r, str)} for bucket, by in RIGHTS.items()}
    assert found["rights"] == whole
    assert found["below"] == {
        f"{who} {bucket}/{r.prefix}": r.rights
        for bucket, by in RIGHTS.items()
        for who, r in by.items()
        if isinstance(r, Below)
    }
    assert found["beside"] == []
    assert found["beyond"] == []
    assert not found["wrong_secret"]
    assert not found["nobody"]


@pytest.fixture
def producers(stores: Replica) -> Producers:
    return Producers(stores.project, stores.env["S3_ROOT_SECRET"])


@pytest.fixture
def name(producers: Producers) -> Iterator[str]:
    """Of a producer that is gone afterwards."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    for one in producers.list():
        if one["name"] == name:
            producers.revoke(name, one["data_set"])


def read_key(file: Path) -> dict[str, str]:
    known = dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    return {"KEY": known["AWS_ACCESS_KEY_ID"], "SECRET": known["AWS_SECRET_ACCESS_KEY"]}


def test_a_producer_puts_below_its_own_prefix_and_everything_else_is_refused(
    stores: Replica, producers: Producers, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "flights.key"
    producers.add(name, "flights", file)
    found = run_as(stores, "setup-s3", "producer_rights", **read_key(file))
    assert found["may"] == ["puts below its prefix", "replaces what it put", "puts a large one in parts"]
    assert found["beyond"] == []
    assert found["theirs"] == "theirs"


@pytest.mark.rotates(2)
def test_each_producer_has_its_own_prefix_and_loses_it_alone(
    stores: Replica, producers: Producers, name: str, tmp_path: Path
) -> None:
    """Also where the set-up jobs of the next `up` run in between."""
    keys = {}
    for data_set in ("flights", "weather"):
        producers.add(name, data_set, tmp_path / data_set)
        keys[data_set] = read_key(tmp_path / data_set)

    def may() -> dict[str, list[str]]:
        return {data_set: run_as(stores, "setup-s3", "producer_puts", **key) for data_set, key in keys.items()}

    assert may() == {"flights": ["flights"], "weather": ["weather"]}
    stores.compose("run", "--rm", "--no-deps", "-T", "setup-s3", seconds=300)
    assert may() == {"flights": ["flights"], "weather": ["weather"]}
    producers.revoke(name, "flights")
    assert may() == {"flights": [], "weather": ["weather"]}
    assert [one["data_set"] for one in producers.list() if one["name"] == name] == ["weather"]


@pytest.mark.rotates(2)
def test_a_producers_secret_is_in_one_file_of_its_owner_and_adding_goes_on_where_it_was_killed(
    producers: Producers, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, begun = tmp_path / "flights.key", tmp_path / "flights.key.part"
    ask = producers._ask

    def killed(verb: str, *arguments: str) -> Any:
        found = ask(verb, *arguments)
        if verb == "add":
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(producers, "_ask", killed)
        with pytest.raises(KeyboardInterrupt):
            producers.add(name, "flights", file)
        revoked = read_key(begun)["SECRET"]
        producers.revoke(name, "flights")
        with pytest.raises(KeyboardInterrupt):
            producers.add(name, "flights", file)
    assert not file.exists()
    left = read_key(begun)["SECRET"]
    told = producers.add(name, "flights", file)
    assert read_key(file)["SECRET"] == left != revoked
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_key(file)["SECRET"] not in json.dumps([told, producers.list()])
    with pytest.raises(ProducerError, match="has a key for flights already"):
        producers.add(name, "flights", tmp_path / "another")
    with pytest.raises(ProducerError, match="never overwritten"):
        producers.add(name, "weather", file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.rotates(2)
def test_each_user_of_postgresql_enters_its_own_database_with_its_password_and_nothing_else(stores: Replica) -> None:
    found = run_as(stores, "setup-databases", "postgres_rights")
    own = {"airflow@5433/airflow", "oltp@5432/oltp", "lake@5432/lake", "lake_ro@5432/lake"}
    superuser = {f"postgres@5433/{name}" for name in ("airflow", "postgres", "template1")}
    superuser |= {f"postgres@5432/{name}" for name in ("oltp", "lake", "postgres", "template1")}
    assert {name for name, entered in found.items() if entered} == own | superuser
    assert len(found) == 2 * 5 * (6 * 2 + 1)


def test_the_documents_table_of_rights_is_the_one_that_is_set_up() -> None:
    text = (PROJECT / "docs" / "operations" / "hosts.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| (\w*) ?\| (\w*) ?\| (\w*) ?\| ([^|]*?) ?\| ([^|]*?) ?\|$", text, re.MULTILINE)
    identities = ("airflow", "spark", "clickhouse", "agents", "agents-spark")
    found = {row[0]: {who: may for who, may in zip(identities, row[1:], strict=True) if may} for row in rows}
    expected = {bucket: {who: str(may) for who, may in rights.items()} for bucket, rights in RIGHTS.items()}
    assert {bucket: rights for bucket, rights in found.items() if bucket in RIGHTS} == expected
