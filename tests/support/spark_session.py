"""Work in a Spark session that has the lake's catalog and S3: one is one a process, and those of other tests have none.

`run` calls a function in a session that all tests of a platform share and gives back, by JSON, what the function gives.
`start` starts a session for one piece of work: one that is killed, hangs, or needs other settings.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from support.running_platform import PROJECT, Platform
from trilake.platform.embedded import jars

# A test's session does not live for as long as the second compiler needs to pay for itself.
QUICK_JVM = {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
_MARK, _FAILED = "RESULT ", "FAILED "
# A session starts in 6 s on a machine that has nothing else to do; a crowded one takes minutes.
TIMEOUT_S = 900
# By the home of the platform
_shared: dict[Path, subprocess.Popen[str]] = {}


def start(platform: Platform, work: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """:param work: ``support.module:function``; it takes a session and `arguments`. Empty: what comes by stdin."""
    command = [sys.executable, __file__, str(jars.folder_of("spark"))]
    command += [json.dumps([work, *arguments])] if work else []
    path = os.pathsep.join(map(str, (PROJECT / "plugins", PROJECT / "tests")))
    env = {**platform.env, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable, **environ}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run(platform: Platform, work: str, *arguments: str, **environ: str) -> tuple[Any, str]:
    """What the function gave, and all that was said meanwhile.

    :param environ: then the session is of this work alone.
    """
    if environ:
        process = start(platform, work, *arguments, **environ)
    else:
        process = _session_of(platform)
        assert process.stdin
        process.stdin.write(json.dumps([work, *arguments]) + "\n")
        process.stdin.flush()
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith((_MARK, _FAILED)):
            break
    if environ:
        process.communicate(timeout=TIMEOUT_S)
    assert said, f"the session ended with exit code {process.wait(TIMEOUT_S)}"
    assert said[-1].startswith(_MARK), "".join(said)[-6000:]
    return json.loads(said[-1].removeprefix(_MARK)), "".join(said)


def _session_of(platform: Platform) -> subprocess.Popen[str]:
    process = _shared.get(platform.home.path)
    if process is None or process.poll() is not None:
        _shared[platform.home.path] = process = start(platform, "")
        atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=30)  # the end of what it reads ends it, and its Java with it
    except subprocess.TimeoutExpired:
        process.kill()


def main(folder: str, *once: str) -> None:
    from trilake.endpoints import Endpoints
    from trilake.spark.session import build_session

    conf = {
        "spark.master": os.environ.get("SPARK_TEST_MASTER", "local[2,4]"),
        "spark.driver.extraClassPath": f"{folder}/*",
        "spark.sql.shuffle.partitions": "2",
        **QUICK_JVM,
        **json.loads(os.environ.get("SPARK_TEST_CONF", "{}")),
    }
    spark = build_session(Endpoints.from_environment(), "tests", conf)
    spark.sparkContext.setLogLevel("ERROR")
    for line in once or sys.stdin:
        work, *arguments = json.loads(line)
        module, _, name = work.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)(spark, *arguments)
        except Exception as e:
            traceback.print_exc()
            told = f"{_FAILED}{type(e).__name__}"
        else:
            told = _MARK + json.dumps(found, default=str)
        if once:
            spark.stop()
        print("\n" + told, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
