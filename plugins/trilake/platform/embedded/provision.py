"""Java and jars: found on this machine, or downloaded once for all projects.

``python -m trilake.platform.embedded.provision`` downloads them in advance.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trilake.errors import TrilakeError
from trilake.platform.embedded import jars
from trilake.platform.embedded import java as javas
from trilake.platform.embedded.home import Home
from trilake.platform.private_files import write_private

Progress = Callable[[str, str], None]
"""Called with the name of a service or step, and its state (`starting`, `ready`). It may be called from any thread."""


def quiet(_what: str, _how: str) -> None:
    """Ignore the progress."""


def provision(home: Home, progress: Progress = quiet) -> tuple[javas.Java, Path, Path]:
    """Find or download Java, the folder of Spark's jars and the folder of S3Proxy's jars.

    The choice of Java is stored: another shell may find another Java, which must not restart all services.

    :raises TrilakeError: one of them cannot be found or downloaded.
    """
    remembered = home.run.parent / "config" / "java.json"
    java = _remembered_java(remembered)
    if java is None:
        progress("java", "searching")
        java = javas.ensure()
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_private(remembered, json.dumps({"home": str(java.home), "version": java.version}) + "\n")
    spark_jars, s3_jars = fetch_jars(java, progress)
    return java, spark_jars, s3_jars


def fetch_jars(java: javas.Java, progress: Progress = quiet) -> tuple[Path, Path]:
    """The folders of Spark's and of S3Proxy's jars.

    :raises TrilakeError: one of them cannot be downloaded.
    """

    def fetch(name: str) -> Path:
        if not jars.folder_of(name).is_dir():
            progress(f"{name} jars", "downloading")
        return jars.ensure(name, lambda: java)

    with ThreadPoolExecutor(2) as pool:
        spark, s3proxy = pool.map(fetch, ("spark", "s3proxy"))
    return spark, s3proxy


def _remembered_java(path: Path) -> javas.Java | None:
    try:
        document = json.loads(path.read_text())
        java = javas.Java(Path(document["home"]), int(document["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return java if os.access(java.executable, os.X_OK) else None


def main() -> int:
    """Download Java and the jars. If a download fails, print one line and return exit code 1."""
    try:
        fetch_jars(javas.ensure(), lambda what, how: print(f"  {what}: {how}", file=sys.stderr))
    except TrilakeError as e:
        print(f"setup: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
