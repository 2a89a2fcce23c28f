"""What the embedded Kubernetes keeps of its applications, and how it forgets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trilake.platform.embedded.kubernetes.cluster import KubernetesObjects

# As a driver does that is just being started: it comes to run if it can link its name to the attempt's folder.
_LATE = """
import os, sys
mine, wanted = sys.argv[1:]
print("begun", flush=True)
while True:
    try:
        os.link(mine, wanted)
    except FileExistsError:
        continue
    except FileNotFoundError:
        sys.exit("too late")
    sys.exit(0)
"""


def test_a_driver_that_is_being_started_when_its_folder_goes_does_not_come_to_run(tmp_path: Path) -> None:
    cluster = KubernetesObjects(tmp_path / "data", "spark")
    for number in range(8):
        record = cluster.create({"metadata": {"name": f"a{number}"}, "status": {"executionAttempts": 1}})
        record.attempt_folder.mkdir()
        claim = record.attempt_folder / "process.json"
        claim.write_text('{"pid": 0}')
        for other in range(200):
            (record.attempt_folder / f"{other}.jar").touch()
        late = subprocess.Popen(
            [sys.executable, "-I", "-c", _LATE, __file__, str(claim)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert late.stdout
        late.stdout.readline()
        cluster.forget(record)
        assert late.communicate(timeout=120)[1] == b"too late\n"
        assert not list((tmp_path / "data" / "applications").iterdir())
