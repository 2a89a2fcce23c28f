"""One task instance, and what is named after it; a submission that outlives its try."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trilake.errors import ConfigurationError
from trilake.hooks.spark import SparkSubmission
from trilake.hooks.submission import SubmissionStore
from trilake.hooks.task_instance import TaskInstance, joined
from trilake.operators.spark import SparkApplicationOperator


def context(**ti: Any) -> Any:
    known = {"dag_id": "flights", "task_id": "curate", "run_id": "manual__1", "map_index": -1, "try_number": 2}
    return {"ti": SimpleNamespace(**{**known, **ti})}


def test_all_names_of_a_task_instance_are_the_same_for_each_try() -> None:
    first, second = TaskInstance.of(context(try_number=1)), TaskInstance.of(context(try_number=2))
    for name in ("run", "words", "digest"):
        assert getattr(first, name) == getattr(second, name)
    assert first.labels() == second.labels()
    assert first.application_name(1) == second.application_name(1)
    assert first.log_comment() != second.log_comment()


def test_two_task_instances_have_no_name_in_common() -> None:
    one, other = TaskInstance.of(context(map_index=0)), TaskInstance.of(context(map_index=1))
    assert one.digest != other.digest
    assert one.application_name(1) != other.application_name(1)
    assert one.labels()["trilake/map-index"] == "0"
    assert one.run == other.run == "flights/manual__1"


def test_a_query_id_has_no_letter_that_an_http_header_lacks() -> None:
    assert joined(["a b", "ü/ß", "2013-01-01T00:00:00+00:00"]) == "a_b:_:2013-01-01T00:00:00+00:00"


class Store(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = value


def test_a_submission_is_read_back_and_belongs_to_the_try_that_wrote_it_last() -> None:
    store = SubmissionStore({"task_state_store": Store()}, "key", SparkSubmission)
    assert store.read() is None
    first = SparkSubmission(1, "first", "inputs", "name", "spark")
    store.write(first)
    assert store.read() == first
    assert store.is_current(first)
    store.write(SparkSubmission(2, "second", "inputs", "name-2", "spark"))
    assert not store.is_current(first)


def test_a_record_of_another_version_is_read_without_its_unknown_fields() -> None:
    kept = Store(key={"number": 3, "owner": "o", "name": "n", "done": True, "from_the_future": 1})
    found = SubmissionStore({"task_state_store": kept}, "key", SparkSubmission).read()
    assert found == SparkSubmission(3, "o", "", "n", "", done=True)


def test_an_airflow_that_keeps_nothing_takes_nothing_away() -> None:
    store = SubmissionStore({}, "key", SparkSubmission)
    submission = SparkSubmission(1, "o")
    store.write(submission)
    assert store.read() is None
    assert store.is_current(submission)


@pytest.mark.parametrize(
    "option",
    [
        {"image": "spark:4"},
        {"code_path": "local:///job.py"},
        {"application_file": "spark.yaml"},
        {"template_spec": {}},
        {"reattach_on_restart": True},
        {"success_run_history_limit": 1},
        {"env_vars": {"A": "b"}},
        {"container_resources": None},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_of_the_official_operator_that_would_have_no_effect_is_refused_by_name(option: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"does not use {next(iter(option))} of SparkKubernetesOperator"):
        SparkApplicationOperator(task_id="t", job="j", **option)


def test_options_that_have_an_effect_are_taken() -> None:
    operator = SparkApplicationOperator(
        task_id="t", job="j", get_logs=False, startup_timeout_seconds=9, namespace="n", retries=2
    )
    assert (operator.get_logs, operator.startup_timeout_seconds, operator.namespace, operator.retries) == (
        False,
        9,
        "n",
        2,
    )
