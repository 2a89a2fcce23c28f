"""What a job raised, told by its own frames; what a dry run adds to a job's run."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trilake.platform.embedded import dry_run_driver


def drive(tmp_path: Path, job: str, **more: str) -> tuple[int, dict[str, Any] | None]:
    with zipfile.ZipFile(tmp_path / dry_run_driver.ARCHIVE, "w") as archive:
        for name, text in {"a_job.py": job, **{f"{name}.py": text for name, text in more.items()}}.items():
            archive.writestr(name, text)
    done = subprocess.run(
        [sys.executable, dry_run_driver.__file__, str(tmp_path), "a_job", "--x"], capture_output=True, check=False
    )
    error = tmp_path / dry_run_driver.ERROR_FILE
    return done.returncode, json.loads(error.read_text()) if error.exists() else None


def test_an_error_has_the_frames_of_the_projects_files_and_no_others(tmp_path: Path) -> None:
    job = "import json\nfrom shop import rules\n\n\ndef main(arguments):\n    rules.check(json.loads, arguments)\n"
    rules = "def check(read, given):\n    return read('{')\n"
    code, error = drive(tmp_path, job, **{"shop/__init__": "", "shop/rules": rules})
    assert code == 1
    assert error is not None
    assert (error["type"], error["ours"]) == ("JSONDecodeError", False)
    assert [(frame["file"], frame["line"], frame["code"]) for frame in error["frames"]] == [
        ("spark_jobs/a_job.py", 6, "rules.check(json.loads, arguments)"),
        ("dags/shop/rules.py", 2, "return read('{')"),
    ]


def test_an_error_of_syntax_names_its_line(tmp_path: Path) -> None:
    _, error = drive(tmp_path, "def main(arguments):\n    return (\n")
    assert error is not None
    assert [(frame["file"], frame["line"]) for frame in error["frames"]] == [("spark_jobs/a_job.py", 2)]


def test_an_error_of_sparks_is_cut_before_the_jvms_stack(tmp_path: Path) -> None:
    _, error = drive(
        tmp_path, "def main(arguments):\n    raise ValueError('no column\\n\\nJVM stacktrace:\\njava.lang')\n"
    )
    assert error is not None
    assert error["message"] == "no column"


@pytest.mark.parametrize(
    "end", ["class DryRunEnded(BaseException): pass\n    raise DryRunEnded", "raise SystemExit", "pass"]
)
def test_a_job_that_ends_as_it_should_leaves_no_error(tmp_path: Path, end: str) -> None:
    assert drive(tmp_path, f"def main(arguments):\n    assert arguments == ['--x']\n    {end}\n") == (0, None)


def test_a_job_does_not_find_the_embedded_platforms_modules_by_their_bare_names(tmp_path: Path) -> None:
    code, error = drive(tmp_path, "import status\n\n\ndef main(arguments):\n    pass\n")
    assert (code, error and error["type"]) == (1, "ModuleNotFoundError")
