"""The main file of a dry run's driver: ``dry_run_driver.py FOLDER JOB ARGUMENTS...``.

As spark/image/run_job.py, with the code of this project in place of a version of it: FOLDER holds ``jobs.zip``. What a
job raises is left in FOLDER for the parent process. Standard library only: the zip has to be on the path first.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

ARCHIVE = "jobs.zip"
ERROR_FILE = "error.json"
# Of an error of Spark's, the rest is the JVM's stack or the whole plan.
_MESSAGE_LINES = 6
_LINE_LETTERS = 500


def describe(error: BaseException, archive: str) -> dict[str, Any]:
    """An error, and where the project's jobs were when it came: no frame of Spark's, Trilake's or Python's own."""
    frames = []
    for frame in traceback.extract_tb(error.__traceback__):
        name = frame.filename.removeprefix(archive).lstrip("/")
        if frame.filename.startswith(archive) and not name.startswith("trilake/"):
            frames.append({"file": _file(name), "line": frame.lineno, "in": frame.name, "code": frame.line})
    if isinstance(error, SyntaxError) and (error.filename or "").startswith(archive):
        name = str(error.filename).removeprefix(archive).lstrip("/")
        frames.append({"file": _file(name), "line": error.lineno, "in": "", "code": (error.text or "").strip()})
    message = str(getattr(error, "message", None) or error)
    lines = message.split("JVM stacktrace:", maxsplit=1)[0].strip().splitlines()[:_MESSAGE_LINES]
    return {
        "type": type(error).__name__,
        "message": "\n".join(line[:_LINE_LETTERS] for line in lines),
        "hint": str(getattr(error, "hint", "")),
        "ours": any(base.__name__ == "TrilakeError" for base in type(error).__mro__),
        "frames": frames,
    }


def _file(name: str) -> str:
    """Where a file of the zip lies in the project: jobs are files, and what they share with DAGs is a package."""
    return f"dags/{name}" if "/" in name else f"spark_jobs/{name}"


def main(folder: Path, job: str, arguments: list[str]) -> int:
    """Exit code 1: the job raised something; it is in ``error.json``."""
    archive = str(folder / ARCHIVE)
    # the script's own folder would offer the embedded platform's modules by their bare names
    sys.path[:] = [archive, *(path for path in sys.path if path != str(Path(__file__).parent))]
    os.environ["TRILAKE_JOBS_ZIP"] = archive
    sys.argv = [job, *arguments]
    try:
        importlib.import_module(job).main(arguments)
    except BaseException as e:
        if type(e).__name__ == "DryRunEnded" or (isinstance(e, SystemExit) and e.code in (None, 0)):
            return 0
        (folder / ERROR_FILE).write_text(json.dumps(describe(e, archive)))
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
