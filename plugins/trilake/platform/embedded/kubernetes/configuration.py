"""What the server is told by ``config/kubernetes.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trilake.errors import ConfigurationError
from trilake.spark.application import NAMESPACE

# A driver's log lies in at most two files of this size: the newest lines are kept.
DEFAULT_LOG_BYTES = 16 * 1024 * 1024
# What a driver gets between SIGTERM and SIGKILL. Kubernetes gives 30 s; `trilake down` is to take 5 s in all.
DEFAULT_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class ClusterConfiguration:
    """One namespace, and where drivers find Spark.

    :param data: folder of the state, the drivers' logs and their scratch files.
    :param jars: folder of the jars that the Spark image holds besides Spark's own.
    :param image_files: path in the Spark image -> path here; what ``local://`` names.
    :param secrets: the namespace's Secrets: name -> key -> text.
    :param max_running: drivers at once; more wait as pending pods.
    :param driver_memory_cap: a driver's heap at most, whatever the application asks for.
    :param spark_conf: settings of this tier, over the application's (as an image's spark-defaults cannot be).
    :param spark_submit: the command; by default that of `spark_home`.
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
        """:raises ConfigurationError: the file cannot be read, lacks a value or has one that nobody knows."""
        try:
            document: dict[str, Any] = json.loads(path.read_text())
        except OSError as e:
            raise ConfigurationError(f"{path} cannot be read: {e.strerror}.", hint="`trilake up` writes it.") from None
        except ValueError as e:
            # the position alone: the document holds passwords
            raise ConfigurationError(
                f"{path} is not JSON ({type(e).__name__}).", hint="`trilake up` writes it."
            ) from None
        if not isinstance(document, dict):
            raise ConfigurationError(f"{path} is not a JSON object.", hint="`trilake up` writes it.")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(document.keys() - known):
            raise ConfigurationError(f"{path} has settings that nobody knows: {', '.join(unknown)}.")
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
