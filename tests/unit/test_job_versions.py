"""Job code in S3: what is pushed, what is fetched, what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws

from trilake.errors import ConfigurationError
from trilake.spark import versions
from trilake.spark.publish import job_checks

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("s3", aws_access_key_id="test", aws_secret_access_key="test")
        client.create_bucket(Bucket="artifacts")
        yield client


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "spark_jobs").mkdir()
    (tmp_path / "spark_jobs" / "greet.py").write_text("def main(arguments):\n    return ['greet', *arguments]\n")
    return tmp_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of one file a part."""
    folder = tmp_path / "site-packages" / "trilake"
    for part in (*versions.CORE, "operators", "cli.py", "schema/sql/table.sql"):
        path = folder / part if part.endswith((".py", ".sql")) else folder / part / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {part}\n")
    monkeypatch.setattr(versions, "PACKAGE", folder)
    return folder


@pytest.fixture
def run_job(monkeypatch: pytest.MonkeyPatch, s3: Any) -> Iterator[ModuleType]:
    """The image's main file, with S3 behind it as a driver has it."""
    spec = importlib.util.spec_from_file_location("run_job", PROJECT / "plugins/trilake/spark/image/run_job.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extra = {"endpoint_url": "https://s3.amazonaws.com", "region_name": "us-east-1"}  # where moto listens
    connection = {"conn_type": "aws", "login": "test", "password": "open sesame", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("TRILAKE_JOBS_ZIP", "")
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield module
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("greet", "broken"):
            del sys.modules[name]


def names_in(s3: Any, version: str) -> list[str]:
    body = s3.get_object(Bucket="artifacts", Key=f"jobs/{version}/jobs.zip")["Body"].read()
    return zipfile.ZipFile(io.BytesIO(body)).namelist()


def test_same_files_are_the_same_version_wherever_they_lie(s3: Any, project: Path, tmp_path: Path) -> None:
    first = versions.push(s3, project)
    (project / "spark_jobs" / "greet.py").touch()
    head = s3.head_object(Bucket="artifacts", Key=f"jobs/{first}/jobs.zip")
    assert versions.push(s3, project) == first
    again = s3.head_object(Bucket="artifacts", Key=f"jobs/{first}/jobs.zip")
    assert head["LastModified"] == again["LastModified"], "what is there is not written again"
    assert versions.current(s3) == first


def test_a_changed_job_is_another_version_and_the_old_one_stays(s3: Any, project: Path) -> None:
    first = versions.push(s3, project)
    (project / "spark_jobs" / "greet.py").write_text("def main(arguments):\n    return 'changed'\n")
    second = versions.push(s3, project)
    assert second != first
    assert versions.current(s3) == second
    assert versions.exists(s3, first)
    assert versions.exists(s3, second)


def test_the_zip_holds_jobs_and_the_installed_core_and_nothing_of_airflow(
    s3: Any, project: Path, package: Path
) -> None:
    other = project / "plugins" / "trilake"
    other.mkdir(parents=True)
    (other / "errors.py").write_text("# a package in the project's folder is not what runs\n")
    version = versions.push(s3, project)
    expected = [part if part.endswith(".py") else f"{part}/__init__.py" for part in versions.CORE]
    assert names_in(s3, version) == ["greet.py", *sorted(f"trilake/{name}" for name in expected)]
    assert versions.build(project)[0]["trilake/errors.py"] == (package / "errors.py").read_bytes()
    assert versions.jobs(s3, version) == ["greet"]


@pytest.mark.parametrize("part", versions.CORE)
def test_a_package_that_lacks_a_part_is_named_and_nothing_is_pushed(
    s3: Any, project: Path, package: Path, part: str
) -> None:
    (package / part).rename(package / "gone")
    with pytest.raises(ConfigurationError, match=rf"is incomplete: {package / part} is missing"):
        versions.push(s3, project)
    assert "Contents" not in s3.list_objects_v2(Bucket="artifacts")


def test_packages_that_dags_and_jobs_share_go_along_and_are_no_job(s3: Any, project: Path) -> None:
    for name in ("shop/__init__.py", "shop/data_sets.py", "shop/deep/__init__.py", "no_package/text.py", "orders.py"):
        (project / "dags" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "dags" / name).write_text("ORDERS = 1\n")
    version = versions.push(s3, project)
    assert [name for name in names_in(s3, version) if not name.startswith("trilake/")] == [
        "greet.py",
        "shop/__init__.py",
        "shop/data_sets.py",
        "shop/deep/__init__.py",
    ]
    assert versions.jobs(s3, version) == ["greet"]


@pytest.mark.parametrize(
    ("name", "what"), [("calendar", "name of a module"), ("sql", "name of a module"), ("greet", "name of the job")]
)
def test_a_shared_package_that_would_hide_another_module_is_refused(
    s3: Any, project: Path, name: str, what: str
) -> None:
    (project / "dags" / name).mkdir(parents=True)
    (project / "dags" / name / "__init__.py").touch()
    with pytest.raises(ConfigurationError, match=what):
        versions.push(s3, project)


def test_a_version_has_the_tables_checks_of_its_time(s3: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = project / "sql" / "clickhouse" / "orders" / "checks" / "paid.sql"
    check.parent.mkdir(parents=True)
    check.write_text("-- warning: paid\nSELECT 1 FROM {table} WHERE NOT paid;\n")
    (check.parents[1] / "table.sql").write_text("CREATE TABLE orders\n")
    first = versions.push(s3, project)
    assert [name for name in names_in(s3, first) if name.startswith("sql/")] == [
        "sql/clickhouse/orders/checks/paid.sql"
    ]
    check.write_text("SELECT 1 FROM {table}\n")
    assert versions.push(s3, project) != first
    archive = project / "jobs.zip"
    archive.write_bytes(s3.get_object(Bucket="artifacts", Key=f"jobs/{first}/jobs.zip")["Body"].read())
    monkeypatch.setenv("TRILAKE_PROJECT", str(project))
    assert [(one.name, one.blocking) for one in job_checks("orders")] == [("paid", True)]
    monkeypatch.setenv("TRILAKE_JOBS_ZIP", str(archive))
    assert [(one.name, one.blocking) for one in job_checks("orders")] == [("paid", False)]
    assert job_checks("airlines") == ()
    monkeypatch.delenv("TRILAKE_JOBS_ZIP")
    monkeypatch.delenv("TRILAKE_PROJECT")
    with pytest.raises(ConfigurationError, match="checks of orders cannot be found"):
        job_checks("orders")


def test_a_driver_gets_the_layers_below_airflow() -> None:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    core = next(c["source_modules"] for c in contracts if c["name"] == "the core does not import Airflow")
    parts = {part.removesuffix(".py") for part in versions.CORE} - {"__init__"}
    assert {f"trilake.{part}" for part in parts} == set(core)


def test_unknown_versions_are_not_there(s3: Any, project: Path) -> None:
    versions.push(s3, project)
    for unknown in ("0" * 16, "", "../current", "current"):
        assert not versions.exists(s3, unknown)
        with pytest.raises(ConfigurationError, match="no job code of version"):
            versions.jobs(s3, unknown)


def test_no_pushed_code_says_how_to_push(s3: Any) -> None:
    with pytest.raises(ConfigurationError, match="trilake jobs push"):
        versions.current(s3)


def test_a_folder_without_jobs_is_refused(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no job"):
        versions.push(s3, tmp_path)


@pytest.mark.parametrize("name", ["calendar", "trilake"])
def test_a_job_named_like_a_module_that_others_need_is_refused(s3: Any, project: Path, name: str) -> None:
    (project / "spark_jobs" / f"{name}.py").touch()
    with pytest.raises(ConfigurationError, match=rf"{name}.py has the name of a module"):
        versions.push(s3, project)


def test_the_image_runs_a_job_of_that_version(s3: Any, project: Path, run_job: ModuleType) -> None:
    version = versions.push(s3, project)
    (project / "spark_jobs" / "greet.py").write_text("def main(arguments):\n    return 'newer'\n")
    versions.push(s3, project)
    result = run_job.main(["--version", version, "--job", "greet", "--", "--start", "2013-01", "--", "x"])
    assert result == ["greet", "--start", "2013-01", "--", "x"]


@pytest.mark.parametrize("name", ["jobs.zip", "manifest.json"])
def test_changed_code_is_not_run(
    s3: Any, project: Path, run_job: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    version = versions.push(s3, project)
    key = f"jobs/{version}/{name}"
    body = s3.get_object(Bucket="artifacts", Key=key)["Body"].read()
    s3.put_object(Bucket="artifacts", Key=key, Body=body.replace(b"greet", b"gr33t"))
    with pytest.raises(SystemExit) as stop:
        run_job.main(["--version", version, "--job", "greet"])
    assert stop.value.code == 3
    assert "was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case",
    [
        (["--version", "0" * 16, "--job", "greet"], 3, "Was this version pushed"),
        (["--version", "{version}", "--job", "absent"], 3, "has no job absent"),
        (["--version", "{version}", "--job", "calendar"], 3, "has no job calendar. That name is another module"),
        (["--version", "latest", "--job", "greet"], 2, "is not a version"),
        (["--version", "{version}", "--job", "../greet"], 2, "is not a job"),
    ],
)
def test_what_cannot_run_says_so_in_a_line(
    s3: Any, project: Path, run_job: ModuleType, case: tuple[list[str], int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, message = case
    version = versions.push(s3, project)
    with pytest.raises(SystemExit) as stop:
        run_job.main([argument.format(version=version) for argument in arguments])
    assert stop.value.code == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_broken_connection_is_named_without_its_password(
    run_job: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"login": "x", "password": "open sesame"')
    with pytest.raises(SystemExit):
        run_job.main(["--version", "0" * 16, "--job", "greet"])
    error = capsys.readouterr().err
    assert "AIRFLOW_CONN_AWS_DEFAULT" in error
    assert "sesame" not in error
