"""The checks of a table are read from files as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilake.clickhouse.publication.checks import read_checks
from trilake.errors import ConfigurationError


def check(folder: Path, text: str) -> None:
    (folder / "clickhouse" / "t" / "checks").mkdir(parents=True, exist_ok=True)
    (folder / "clickhouse" / "t" / "checks" / "one.sql").write_text(text)


@pytest.mark.parametrize("tail", ["", ";", "; -- done", " -- all\n;\n", "\n# done", "; /* ; */"])
def test_a_check_is_one_query_whatever_follows_it(tmp_path: Path, tail: str) -> None:
    check(tmp_path, f"SELECT k FROM {{table}} WHERE v = 'a;b'{tail}")
    (found,) = read_checks(tmp_path, "t")
    assert found.on("`s`.`t`").startswith("SELECT count() FROM (\nSELECT k FROM `s`.`t` WHERE v = 'a;b'")
    assert ";" not in found.sql.replace("'a;b'", "").partition("--")[0].partition("#")[0]
    assert found.blocking


def test_a_warning_says_so_in_its_first_line(tmp_path: Path) -> None:
    check(tmp_path, "-- warning\nSELECT k FROM {table};")
    (found,) = read_checks(tmp_path, "t")
    assert not found.blocking


@pytest.mark.parametrize(
    "text", ["", "-- nothing", "SELECT 1 FROM {table}; SELECT 2 FROM {table}", "TRUNCATE TABLE {table}", "SELECT 1"]
)
def test_a_file_that_is_no_check_is_refused(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)
    with pytest.raises(ConfigurationError, match=r"The check one\.sql of t"):
        read_checks(tmp_path, "t")
