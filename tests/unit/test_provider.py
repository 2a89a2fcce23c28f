"""What Airflow reads of the provider is what it expects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files

import jsonschema

from trilake.provider import get_provider_info


def _schema(name: str) -> object:
    return json.loads(files("airflow").joinpath(name).read_text())


def test_the_provider_information_is_valid() -> None:
    jsonschema.validate(get_provider_info(), _schema("provider_info.schema.json"))


def test_the_connection_form_is_valid_and_shows_the_shards() -> None:
    (kind,) = get_provider_info()["connection-types"]
    behaviour = {key.replace("-", "_"): value for key, value in kind["ui-field-behaviour"].items()}
    jsonschema.validate(behaviour, _schema("customized_form_field_behaviours.schema.json"))
    assert {"shards", "cluster", "secure"} <= set(kind["conn-fields"])
    for field in kind["conn-fields"].values():
        jsonschema.Draft7Validator.check_schema(field["schema"])


def test_the_classes_named_are_there() -> None:
    from airflow.sdk._shared.module_loading import import_string

    info = get_provider_info()
    for kind in info["connection-types"]:
        hook = import_string(kind["hook-class-name"])
        assert (hook.conn_type, hook.hook_name) == (kind["connection-type"], kind["hook-name"])


def test_airflow_shows_the_provider(tmp_path: object) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "airflow", "providers", "get", "trilake", "--full", "-o", "json"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path)},
    )
    (found,) = json.loads(shown.stdout[shown.stdout.index("[{") :])
    assert (found["package-name"], found["versions"]) == ("trilake", get_provider_info()["versions"])
    assert [kind["connection-type"] for kind in found["connection-types"]] == ["clickhouse_cluster"]
