"""The SparkApplication that is submitted: its text, its name, its labels."""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubeflow_spark_api.models.spark_v1beta2_spark_application import SparkV1beta2SparkApplication

from trilake.errors import ConfigurationError
from trilake.spark.application import (
    MAX_NAME,
    PROFILES,
    ApplicationState,
    SparkApplication,
    application_name,
    label_value,
)

GOLDEN = Path(__file__).parent / "golden"


def application(**changes: Any) -> SparkApplication:
    return SparkApplication(
        **{
            "name": "flights-curate-0123456789-1",
            "job": "flights_curate",
            "version": "0123456789abcdef",
            "arguments": ("--start", "2013-01", "--end", "2013-12"),
            "labels": {"trilake/dag": "flights", "trilake/run": "scheduled__2013-02-01T00:00:00+00:00"},
            "annotations": {"trilake/owner": "token"},
            **changes,
        }
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_manifest_is_the_golden_one(profile: str) -> None:
    """Set TRILAKE_GOLDEN=write to accept a change, and read the difference."""
    path = GOLDEN / f"spark_application_{profile}.json"
    text = json.dumps(application(profile=profile).manifest(), indent=2, sort_keys=True) + "\n"
    if os.environ.get("TRILAKE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("profile", PROFILES)
def test_manifest_holds_only_what_the_resource_knows(profile: str) -> None:
    manifest = application(profile=profile, event_log=None).manifest()
    assert SparkV1beta2SparkApplication.model_validate(manifest).to_dict() == manifest


def test_manifest_names_the_secret_and_shows_nothing_of_it() -> None:
    manifest = application().manifest()
    for role in ("driver", "executor"):
        assert manifest["spec"][role]["envFrom"] == [{"secretRef": {"name": "trilake-jobs"}}]
        assert "env" not in manifest["spec"][role]
    assert not re.search(r"password|access.key|secret.key|fs\.s3a\.endpoint", json.dumps(manifest), re.IGNORECASE)


def test_labels_are_on_the_application_and_both_kinds_of_pods() -> None:
    manifest = application().manifest()
    labels = manifest["metadata"]["labels"]
    assert labels["trilake/dag"] == "flights"
    assert labels["trilake/run"].startswith("scheduled__2013-02-01T00_00_00_00_00-")
    assert manifest["spec"]["driver"]["labels"] == labels == manifest["spec"]["executor"]["labels"]


def test_own_settings_win_and_the_rest_stays() -> None:
    manifest = application(
        spark_conf={"spark.sql.session.timeZone": "America/New_York", "spark.x": "1"},
        time_to_live=timedelta(minutes=1),
        event_log=None,
    ).manifest()
    conf = manifest["spec"]["sparkConf"]
    assert (conf["spark.sql.session.timeZone"], conf["spark.x"]) == ("America/New_York", "1")
    assert (conf["spark.eventLog.enabled"], "spark.eventLog.dir" in conf) == ("false", False)
    assert conf["spark.sql.catalog.lake.type"] == "jdbc"
    assert manifest["spec"]["timeToLiveSeconds"] == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a-driver-1"}, "is not a valid name for a SparkApplication"),
        ({"name": "1st"}, "is not a valid name"),
        ({"name": "x" * 51}, "is not a valid name"),
        ({"profile": "huge"}, "small, medium, large"),
        ({"job": "flights-curate.py"}, "is not a job"),
    ],
)
def test_what_kubernetes_or_the_tier_would_refuse_is_refused_first(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        application(**changes)


ids = st.text(
    alphabet=st.one_of(
        st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."), st.characters()
    ),
    min_size=1,
    max_size=120,
)


@given(dag=ids, task=ids, run=ids, map_index=st.integers(-1, 500), number=st.integers(1, 10_000))
def test_every_name_is_one_that_kubernetes_takes(dag: str, task: str, run: str, map_index: int, number: int) -> None:
    name = application_name(dag_id=dag, task_id=task, run_id=run, map_index=map_index, number=number)
    assert len(name) <= MAX_NAME
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert "-driver" not in name
    assert SparkApplication(name=name, job="j", version="v").name == name


@pytest.mark.parametrize(
    "task", ["start-driver", "x.driver", "-driver-driver", "a--driverdriver", "bthe-drivers-driver"]
)
def test_a_task_called_driver_makes_no_name_that_tools_take_for_a_pod(task: str) -> None:
    assert "-driver" not in application_name(dag_id="d", task_id=task, run_id="r")


def test_names_differ_by_each_thing_that_they_stand_for() -> None:
    base: dict[str, Any] = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": 1, "number": 1}
    changes = [{}, {"dag_id": "d2"}, {"task_id": "t2"}, {"run_id": "r2"}, {"map_index": 2}, {"number": 2}]
    assert len({application_name(**(base | change)) for change in changes}) == len(changes)
    assert application_name(**base) == application_name(**base)


@given(st.text(max_size=200))
def test_every_text_becomes_a_label(text: str) -> None:
    value = label_value(text)
    assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", value)
    assert len(value) <= 63


@given(st.text(max_size=100), st.text(max_size=100))
def test_different_texts_stay_different_labels(one: str, other: str) -> None:
    assert (label_value(one) == label_value(other)) == (one == other)


def test_a_text_that_is_a_label_stays_as_it_is() -> None:
    assert label_value("flights.curate_2013-02") == "flights.curate_2013-02"
    assert label_value("") == ""


@pytest.mark.parametrize("state", ApplicationState)
def test_a_state_before_the_driver_runs_is_no_start_and_only_an_end_is_one(state: ApplicationState) -> None:
    read = ApplicationState.of({"status": {"applicationState": {"state": state.value}}})
    assert read is state
    assert read.over == (state.value in ("COMPLETED", "FAILED", "SUBMISSION_FAILED"))
    assert read.started == (state.value in ("RUNNING", "SUCCEEDING", "FAILING", "COMPLETED", "FAILED"))


def test_a_state_that_a_later_operator_brings_is_neither_begun_nor_over() -> None:
    read = ApplicationState.of({"status": {"applicationState": {"state": "HIBERNATING"}}})
    assert (read.over, read.started) == (False, False)
