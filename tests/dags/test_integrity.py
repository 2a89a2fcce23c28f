"""Every DAG can be parsed, cheaply, and says what it is. No server, no database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trilake.cli.new import create
from trilake.operators.spark import LONGEST_RUN_SECONDS

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted(PROJECT.glob("dags/*.py"))
EXAMPLES = sorted(PROJECT.glob("examples/dags/*.py"))
# What a parse may not load: each costs more than the rest of the DAG together, on every parse of every file.
HEAVY = ("pyspark", "pandas", "pyarrow", "chdb", "pyiceberg", "matplotlib", "clickhouse_connect", "boto3")

# A server that dies is back within it; no run is to fail of that.
OUTAGE_S = 60

# Making any Asset has Airflow load every provider's handler of asset addresses; Amazon's brings boto3.
OFFICIAL = (
    "airflow.sdk",
    "airflow.providers.amazon.aws.assets.s3",
    "airflow.timetables.interval",
    "airflow.providers.cncf.kubernetes.operators.spark_kubernetes",
    "airflow.providers.common.sql.operators.sql",
    "airflow.providers.clickhousedb.hooks.clickhouse",
)

# Each file of sys.argv[1] after the modules of sys.argv[2]: in a process of its own that is forked off when these are
# loaded, or, when there are none of these, one after another. It prints a line of JSON for each file.
_PARSE = """
import importlib.util, json, os, sys

def parse(file):
    from airflow.sdk.definitions._internal.contextmanager import DagContext
    DagContext.autoregistered_dags.clear()
    DagContext.current_autoregister_module_name = name = "parsed_" + str(abs(hash(file)))
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = sorted(set(sys.modules) - before)
    from airflow.serialization.serialized_objects import DagSerialization
    from nyc.tags import Tag
    dags = []
    for dag, _ in DagContext.autoregistered_dags:
        DagSerialization.to_dict(dag)
        dag.check_cycle()
        dags.append({
            "dag_id": dag.dag_id,
            "doc": dag.doc_md,
            "tags": sorted(dag.tags),
            "unknown_tags": sorted(set(dag.tags) - {tag.value for tag in Tag}),
            "catchup": dag.catchup,
            "tasks": {task.task_id: task.retries * task.retry_delay.total_seconds() for task in dag.tasks},
        })
    print("\\n" + json.dumps({"file": file, "dags": dags, "loaded": loaded}), flush=True)

files, official = map(json.loads, sys.argv[1:])
for name in official:
    importlib.import_module(name)
before = set(sys.modules)
for file in files:
    if not official:
        parse(file)
    elif child := os.fork():
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{file} cannot be parsed")
    else:
        parse(file)
        os._exit(0)
"""


def parse(files: list[Path], *official: str) -> dict[Path, dict[str, Any]]:
    """What each file holds, and which modules it loads over the `official` ones. Without these, only the first file to
    load a module is said to have loaded it.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, json.dumps(list(map(str, files))), json.dumps(official)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(PROJECT / folder) for folder in ("plugins", "dags")),
            "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
    assert [result["file"] for result in results] == list(map(str, files))
    return {Path(result["file"]): result for result in results}


GRAINS = ("day", "month")


@pytest.fixture(scope="module")
def new_dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The DAG file that `trilake new dataset` writes, by grain."""
    made = {}
    for grain in GRAINS:
        project = tmp_path_factory.mktemp(grain)
        create(project, "orders", grain)
        made[grain] = project / "dags" / "orders.py"
    return made


@pytest.fixture(scope="module")
def parsed() -> dict[str, dict[str, Any]]:
    return {file.name: result for file, result in parse(FILES).items()}


@pytest.fixture(scope="module")
def over_official(new_dags: dict[str, Path]) -> dict[Path, dict[str, Any]]:
    """All files, with what each loads by itself over the official operators."""
    return parse([*FILES, *EXAMPLES, *new_dags.values()], *OFFICIAL)


def test_there_are_the_dags_of_the_flights_pipeline_and_the_housekeeping(parsed: dict[str, dict[str, Any]]) -> None:
    found = {dag["dag_id"] for result in parsed.values() for dag in result["dags"]}
    assert {"reference_snapshot", "flights", "flights_report", "publication_housekeeping", "lake_maintenance"} <= found


def test_a_file_holds_one_dag_named_as_the_file(parsed: dict[str, dict[str, Any]]) -> None:
    for name, result in parsed.items():
        assert [dag["dag_id"] for dag in result["dags"]] == [name.removesuffix(".py")]


def test_every_dag_has_a_runbook_and_tags_outlasts_a_restart_and_never_catches_up_by_itself(
    parsed: dict[str, dict[str, Any]],
) -> None:
    for result in parsed.values():
        for dag in result["dags"]:
            check_dag(dag)


def check_dag(dag: dict[str, Any]) -> None:
    assert "**When it fails:**" in (dag["doc"] or ""), dag["dag_id"]
    assert dag["tags"], dag["dag_id"]
    assert not dag["unknown_tags"], dag["dag_id"]
    assert not dag["catchup"], dag["dag_id"]
    short = [task for task, seconds in dag["tasks"].items() if seconds < OUTAGE_S]
    assert not short, f"{dag['dag_id']}: retries are used up before {OUTAGE_S} s have passed: {short}"


def test_the_upkeep_can_be_told_to_expire_no_snapshot_that_a_job_at_work_may_have_begun_from() -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.exceptions import ParamValidationError

    params = DagBag(PROJECT / "dags").dags["lake_maintenance"].params
    params["snapshot_days"] = LONGEST_RUN_SECONDS / 86_400
    with pytest.raises(ParamValidationError):
        params["snapshot_days"] = 1.9


@pytest.mark.parametrize("grain", GRAINS)
def test_the_dag_of_a_new_data_set_is_like_all_others(
    new_dags: dict[str, Path], over_official: dict[Path, dict[str, Any]], grain: str
) -> None:
    result = over_official[new_dags[grain]]
    (dag,) = result["dags"]
    check_dag(dag)
    assert (dag["dag_id"], list(dag["tasks"])) == ("orders", ["curate", "publish"])
    assert not {name.split(".")[0] for name in result["loaded"]} & set(HEAVY)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_parsing_loads_nothing_heavy_beyond_the_official_operators(
    over_official: dict[Path, dict[str, Any]], file: Path
) -> None:
    loaded = over_official[file]["loaded"]
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]


def test_a_parse_loads_no_data_library_at_all(parsed: dict[str, dict[str, Any]]) -> None:
    """Not even through an official operator, as long as the official ones keep to it."""
    for name, result in parsed.items():
        found = {module.split(".")[0] for module in result["loaded"]} & {"pyspark", "pandas", "pyarrow", "chdb"}
        assert not found, f"{name} loads {found}"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_can_be_parsed_and_loads_no_data_library(
    over_official: dict[Path, dict[str, Any]], file: Path
) -> None:
    result = over_official[file]
    assert [dag["dag_id"] for dag in result["dags"]] == [file.stem]
    assert not {name.split(".")[0] for name in result["loaded"]} & set(HEAVY)
