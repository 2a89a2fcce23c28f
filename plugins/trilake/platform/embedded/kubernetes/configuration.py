"""The server's configuration, ``config/kubernetes.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.spark.application import NAMESPACE

# A driver's log has at most two files of this size. The newest lines are kept.
DEFAULT_LOG_BYTES = 16 * 1024 * 1024
# The time between SIGTERM and SIGKILL for a driver. Kubernetes gives 30 s, but `trilake down` should take only 5 s.
DEFAULT_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class ClusterConfiguration:
    """One namespace, and the paths of Spark for its drivers.

    :param data: folder of the state, the drivers' logs and their scratch files.
    :param jars: folder of the jars that the Spark image has in addition to Spark's own.
    :param image_files: path in the Spark image -> local path, for ``local://`` URLs.
    :param secrets: the namespace's Secrets: name -> key -> text.
    :param max_running: how many drivers run at once; more drivers wait as pending pods.
    :param driver_memory_cap: the maximum heap of a driver, even if the application requests more.
    :param spark_conf: settings that override the application's (an image's spark-defaults could not override them).
    :param spark_submit: the command; by default the one of `spark_home`.
    """

    port: int
    data: Path
    token: str = field(repr=False)
    spark_home: Path
    python: Path
    host: str = "127.0.0.1"
    namespace: str = NAMESPACE
    java_home: Path | None = None
    jars: Path | None = None
    image_files: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    max_running: int = 2
    driver_memory_cap: str = "1g"
    spark_conf: Mapping[str, str] = field(default_factory=dict)
    spark_submit: Sequence[str] = ()
    log_bytes: int = DEFAULT_LOG_BYTES
    grace_seconds: float = DEFAULT_GRACE_SECONDS

    @classmethod
    def read(cls, path: Path) -> ClusterConfiguration:
        """Read the file.

        :raises ConfigurationError: the file cannot be read, lacks a setting or has an unknown one.
        """
        try:
            document: dict[str, Any] = json.loads(path.read_text())
        except OSError as e:
            raise ConfigurationError(f"{path} cannot be read: {e.strerror}.", hint="`trilake up` writes it.") from None
        except ValueError as e:
            # the message has no text of the document, because it holds passwords
            raise ConfigurationError(
                f"{path} is not JSON ({type(e).__name__}).", hint="`trilake up` writes it."
            ) from None
        if not isinstance(document, dict):
            raise ConfigurationError(f"{path} is not a JSON object.", hint="`trilake up` writes it.")
        setting_names = {f.name for f in fields(cls)}
        if unknown := sorted(document.keys() - setting_names):
            raise ConfigurationError(f"{path} has unknown settings: {', '.join(unknown)}.")
        missing = sorted({"port", "data", "token", "spark_home", "python"} - document.keys())
        if missing:
            raise ConfigurationError(f"{path} lacks {', '.join(missing)}.", hint="`trilake up` writes it.")
        folders = ("data", "spark_home", "java_home", "jars", "python")
        values = document | {name: Path(document[name]) for name in folders if document.get(name)}
        configuration = cls(**values)
        if not 0 <= int(configuration.port) <= 65_535 or int(configuration.max_running) < 1:
            raise ConfigurationError(f"{path}: port or max_running is out of range.")
        return configuration

    @property
    def submit_command(self) -> list[str]:
        return list(self.spark_submit) or [str(self.spark_home / "bin" / "spark-submit")]
