"""The main file of a dry run's driver: ``dry_run_driver.py FOLDER JOB ARGUMENTS...``.

It works like spark/image/run_job.py, but runs the project's current code from FOLDER/``jobs.zip``, not a jobs version.
If the job raises an error, a description is written to FOLDER for the parent process. This file imports only the
standard library, because the zip must be on the path before other modules are imported.
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
# After these lines, an error of Spark has only the JVM's stack or the query plan.
_MESSAGE_LINES = 6
_LINE_LETTERS = 500


def describe(error: BaseException, archive: str) -> dict[str, Any]:
    """Describe an error, with only the stack frames of the project's jobs: none of Spark, Trilake or Python itself."""
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
    """The project's path of a file in the zip. Jobs are single files; code that they share with DAGs is a package."""
    return f"dags/{name}" if "/" in name else f"spark_jobs/{name}"


def main(folder: Path, job: str, arguments: list[str]) -> int:
    """Run the job. Exit code 1: the job raised an error, which is described in ``error.json``."""
    archive = str(folder / ARCHIVE)
    # remove the script's own folder: from there, the embedded platform's modules could be imported as top-level names
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
