"""The command line: quick to answer, one line an error, values as databases write them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

import trilake.cli
from trilake.cli import options
from trilake.cli.query import _json, tab_separated
from trilake.errors import ConfigurationError

PROJECT = Path(__file__).parents[2]


def run(*arguments: str, program: str = "from trilake.cli import main; main()") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins"), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    told = run("--help").stdout
    for command in ("up", "down", "status", "logs", "sql", "psql", "doctor", "demo", "run", "new"):
        assert f"\n  {command} " in told
    program = "import sys, trilake.cli; print(*sys.modules)"
    modules = set(run(program=program).stdout.split())
    assert not modules & {"airflow", "boto3", "clickhouse_connect", "httpx", "psutil", "psycopg2", "pyspark", "rich"}


def test_a_wrong_command_line_has_exit_code_2() -> None:
    assert run("upp").returncode == 2


@pytest.mark.parametrize("unforeseen", [False, True])
def test_an_error_is_one_line_and_debug_shows_the_trace(
    unforeseen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("odd") if unforeseen else ConfigurationError("It is missing.", hint="Make it.")

    monkeypatch.setattr(options, "home", fail)
    monkeypatch.setattr(sys, "argv", ["trilake", "down"])
    with pytest.raises(SystemExit) as ended:
        trilake.cli.main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert (
        "Run again with --debug for the traceback" in told
        if unforeseen
        else told == "trilake: It is missing. Make it.\n"
    )
    monkeypatch.setattr(sys, "argv", ["trilake", "down", "--debug"])
    with pytest.raises(ValueError if unforeseen else ConfigurationError):
        trilake.cli.main()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\\N"),
        (True, "true"),
        (Decimal("1.50"), "1.50"),
        ("a\tb\nc\\", "a\\tb\\nc\\\\"),
        (datetime(2013, 1, 1, tzinfo=UTC), "2013-01-01 00:00:00+00:00"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
    ],
)
def test_values_in_a_pipe_are_written_as_databases_do(value: object, text: str) -> None:
    assert tab_separated(value) == text


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("1.5", "1.5"),
        ("2.00", "2"),
        ("12345678901234567.89", '"12345678901234567.89"'),
        ("Infinity", '"Infinity"'),
        ("NaN", '"NaN"'),
    ],
)
def test_a_decimal_in_json_keeps_its_digits(value: str, given: str) -> None:
    assert json.dumps(Decimal(value), default=_json) == given


def test_make_help_lists_the_targets_in_groups() -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "-C", str(PROJECT), "help"], capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "up", "down", "clean", "test", "lint", "help"):
        assert f"  make {target} " in told
    assert told.startswith("\nThe platform on this machine\n")
