"""Without a Java on the machine, that of PyPI runs what Spark asks of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trilake.platform.embedded import jars, java


@pytest.mark.nightly
def test_a_machine_without_java_gets_one_that_starts_with_sparks_options(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    without = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": str(tools)}
    assert java.find(without) is None
    try:
        found = java.ensure(without)
    except java.NoJavaError as e:
        pytest.skip(f"PyPI is not to be reached: {e}")
    assert found == java.cached(without), "it would be fetched again"
    assert found.version in java.SUPPORTED
    done = subprocess.run(
        [found.executable, "--add-modules=jdk.incubator.vector", "-version"],
        capture_output=True,
        env=without,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Ivy starts with the machine's certificates, and resolves nothing when asked for nothing
    scratch = tmp_path / "ivy"
    scratch.mkdir()
    command = jars.ivy_command(found, scratch, without)
    asked = subprocess.run([*command, "-version"], capture_output=True, text=True, env=without, check=False)
    assert asked.returncode == 0, asked.stderr
    assert "Ivy" in asked.stdout
