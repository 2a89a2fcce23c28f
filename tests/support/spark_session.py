"""A piece of work in a Spark session of its own: one is one a process, and those of other tests have no S3.

`run` starts this file, which calls a function of another one with a session and gives back, by JSON, what that gives.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from support.running_platform import PROJECT, Platform
from trilake.platform.embedded import jars

# A test's session does not live for as long as the second compiler needs to pay for itself.
QUICK_JVM = {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
_MARK = "RESULT "
# A session starts in 6 s on a machine that has nothing else to do; a crowded one takes minutes.
TIMEOUT_S = 900


def start(platform: Platform, work: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """:param work: ``support.module:function``; it takes a session and `arguments`."""
    command = [sys.executable, __file__, str(jars.folder_of(PROJECT, "spark")), work, *arguments]
    path = os.pathsep.join(map(str, (PROJECT / "plugins", PROJECT / "tests")))
    env = {**platform.env, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable, **environ}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(platform: Platform, work: str, *arguments: str, **environ: str) -> tuple[Any, str]:
    """What the function gave, and all that the process said."""
    process = start(platform, work, *arguments, **environ)
    said, _ = process.communicate(timeout=TIMEOUT_S)
    results = [line.removeprefix(_MARK) for line in said.splitlines() if line.startswith(_MARK)]
    assert process.returncode == 0 and results, said[-6000:]  # noqa: PT018
    return json.loads(results[-1]), said


def main(folder: str, work: str, *arguments: str) -> None:
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
    module, _, name = work.partition(":")
    found = getattr(importlib.import_module(module), name)(spark, *arguments)
    spark.stop()
    print(_MARK + json.dumps(found, default=str), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
