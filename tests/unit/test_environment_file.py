"""`.env` is written once, whole, for its owner alone; what is missing or wrong is said in one line, without values."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from trilake.endpoints import Endpoints, as_environment
from trilake.errors import TrilakeError
from trilake.platform.hosts import connections, entrypoint, environment
from trilake.platform.hosts.environment import EnvironmentFileError


@pytest.fixture
def values(tmp_path: Path) -> dict[str, str]:
    environment.write(tmp_path / ".env", environment.replica_settings())
    return environment.read(tmp_path / ".env")


def test_it_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    environment.write(file, environment.replica_settings("10.77.1.0/24"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [".env"]
    values = environment.read(file)
    environment.check(values)
    assert values["VPS_3_ADDRESS"] == "10.77.1.13"
    assert values["VPS_3_NETWORK"] == "service:vps_3"
    Fernet(values["AIRFLOW_FERNET_KEY"])


def test_secrets_are_random_and_no_two_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        environment.write(tmp_path / name, environment.replica_settings())
        values = environment.read(tmp_path / name)
        found += [values[v.name] for v in environment.VARIABLES if v.kind != "address"]
    assert len(found) == len(set(found)) == 2 * sum(v.kind != "address" for v in environment.VARIABLES)


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OLTP_PASSWORD=kept\n")
    with pytest.raises(EnvironmentFileError, match="already exists, and the stored data needs its secrets"):
        environment.write(tmp_path / ".env", environment.replica_settings())
    assert (tmp_path / ".env").read_text() == "OLTP_PASSWORD=kept\n"
    assert os.listdir(tmp_path) == [".env"]


@pytest.mark.parametrize("name", [variable.name for variable in environment.VARIABLES])
def test_a_variable_that_is_missing_is_named_in_one_line(values: dict[str, str], name: str) -> None:
    del values[name]
    with pytest.raises(EnvironmentFileError, match=rf"^\.env: {name} is not set\.") as raised:
        environment.check(values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("VPS_1_ADDRESS", "vps-1", "is not an IPv4 address"),
        ("VPS_1_ADDRESS", "8.8.8.8", "is not a private address"),
        ("VPS_2_ADDRESS", "127.0.0.1", "is not a private address"),
        ("VPS_2_ADDRESS", "169.254.7.7", "is not a private address"),
        ("VPS_2_ADDRESS", "0.0.0.0", "is not a private address"),
        ("VPS_2_ADDRESS", "10.77.0.13", "VPS_2_ADDRESS is also VPS_3_ADDRESS"),
        ("AIRFLOW_FERNET_KEY", "c2hvcnQ=", "is not a Fernet key"),
        ("OLTP_PASSWORD", "hunter2", "is shorter than 16"),
        ("OLTP_PASSWORD", "with@a:strange/character", "letters, digits"),
        ("CLICKHOUSE_ETL_PASSWORD", "another-password-than-before", "CLICKHOUSE_ETL_PASSWORD_SHA256 is not the digest"),
        ("CLICKHOUSE_AGENTS_PASSWORD_SHA256", "no digest", "is not a SHA-256 digest"),
    ],
)
def test_a_wrong_value_is_refused_and_not_shown(values: dict[str, str], name: str, value: str, told: str) -> None:
    with pytest.raises(EnvironmentFileError, match=told) as raised:
        environment.check({**values, name: value})
    assert value not in str(raised.value)


def test_a_line_that_is_no_variable_is_named_by_its_number_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# a comment\n\nA=1\nhunter2\n")
    with pytest.raises(EnvironmentFileError, match=r"^Line 4 of ") as raised:
        environment.read(tmp_path / ".env")
    assert "hunter2" not in str(raised.value)


def test_a_hosts_part_has_no_secret_that_only_others_need(tmp_path: Path, values: dict[str, str]) -> None:
    (tmp_path / "part").write_text(environment.part(values, "vps_3"))
    part = environment.read(tmp_path / "part")
    environment.check(part, "vps_3")
    assert "CLICKHOUSE_ETL_PASSWORD" not in part
    assert values["CLICKHOUSE_ETL_PASSWORD"] not in part.values()
    assert environment.digest(values["CLICKHOUSE_ETL_PASSWORD"]) == part["CLICKHOUSE_ETL_PASSWORD_SHA256"]
    with pytest.raises(EnvironmentFileError):
        environment.check(part, "vps_1")


@pytest.mark.parametrize("subnet", ["10.77.0.0/29", "8.8.8.0/24", "10.77.0.1/24", "nonsense"])
def test_a_subnet_that_cannot_hold_three_private_hosts_is_refused(subnet: str) -> None:
    with pytest.raises(EnvironmentFileError, match=r"10\.77\.0\.0/24"):
        environment.replica_settings(subnet)


def test_airflow_and_spark_enter_s3_as_themselves_and_know_the_same_hosts(values: dict[str, str]) -> None:
    by_who = {who: Endpoints.from_environment(as_environment(connections(values, who))) for who in ("airflow", "spark")}
    assert by_who["airflow"].s3.access_key_id == "airflow"
    assert by_who["spark"].s3.secret_access_key == values["S3_SPARK_SECRET"]
    for endpoints in by_who.values():
        assert (endpoints.lake.user, endpoints.lake.database, endpoints.oltp.user) == ("lake", "lake", "oltp")
        assert [(s.host, s.port, s.database) for s in endpoints.clickhouse.shards] == [
            ("vps-3", 8123, "shard_1"),
            ("vps-3", 8124, "shard_2"),
        ]
        assert not endpoints.clickhouse.one_server
    namespaces = {"kubernetes_default": "spark", "kubernetes_agents": "agents"}
    for name, namespace in namespaces.items():
        assert connections(values, "airflow")[name]["extra"]["namespace"] == namespace
        assert name not in connections(values, "spark")


def test_a_process_is_given_settings_and_connections_only_where_its_container_has_the_secrets(
    values: dict[str, str],
) -> None:
    assert entrypoint.environment({"PATH": "/bin"}) == {}
    made = entrypoint.environment({**values, "TRILAKE_CONNECTIONS": "airflow"})
    assert made["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith("@127.0.0.1:5433/airflow")
    assert made["AIRFLOW__API__HOST"] == values["VPS_1_ADDRESS"]
    assert "LocalDagBundle" in made["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"]
    assert "AIRFLOW_CONN_AWS_DEFAULT" in made
    del values["DAG_BUNDLE"]
    assert "GitDagBundle" in entrypoint.environment(values)["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"]
    del values["AIRFLOW_DB_PASSWORD"]
    with pytest.raises(TrilakeError, match="AIRFLOW_DB_PASSWORD is not set"):
        entrypoint.environment(values)


def test_only_a_process_with_the_secrets_of_agents_gets_the_connections_that_ask_for_them(
    values: dict[str, str],
) -> None:
    """Compose gives them to the api-server and the scheduler (tests/unit/test_compose.py)."""
    with_them = connections(values, "airflow")
    assert with_them["clickhouse_agents"]["login"] == with_them["aws_agents"]["login"] == "agents"
    assert with_them["clickhouse_agents"]["password"] == values["CLICKHOUSE_AGENTS_PASSWORD"]
    assert with_them["aws_agents"]["password"] == values["S3_AGENTS_SECRET"]
    assert not {"clickhouse_agents", "aws_agents"} & set(connections(values, "spark"))
    for name in ("CLICKHOUSE_AGENTS_PASSWORD", "S3_AGENTS_SECRET"):
        del values[name]
    assert not {"clickhouse_agents", "aws_agents"} & set(connections(values, "airflow"))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("AIRFLOW_FERNET_KEY", "c2hvcnQ=", "AIRFLOW_FERNET_KEY is not a Fernet key"),
        ("OLTP_PASSWORD", "p@ss:word/with#signs", "OLTP_PASSWORD may have only letters, digits"),
        ("S3_ROOT_SECRET", "hunter2", "S3_ROOT_SECRET is shorter than 16 characters"),
        ("VPS_1_ADDRESS", "vps-1", "VPS_1_ADDRESS is not an IPv4 address"),
    ],
)
def test_a_container_that_is_given_a_secret_that_is_none_says_so_in_one_line_and_runs_nothing(
    values: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, wrong: str,
    says: str,
) -> None:  # fmt: skip
    """Also where `docker compose up` was called, which looks at no value."""
    for variable, value in {**values, name: wrong}.items():
        monkeypatch.setenv(variable, value)
    assert entrypoint.main(["false"]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert wrong not in told.replace(name, "")
