"""Turns a SparkApplication into a command: spark-submit in local mode, with the application's settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilake.platform.embedded.kubernetes.configuration import ClusterConfiguration
from trilake.platform.embedded.processes import DRIVER, HOME_MARKER, SERVICE_MARKER

PROPERTIES_FILE = "spark.properties"
_SCRATCH = "scratch"
# Spark does not start with less memory.
_LEAST_MEMORY = 512 * 1024**2
_MEMORY = re.compile(r"([0-9]+)([kmgtKMGT]?)[bB]?")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


class SubmissionError(Exception):
    """spark-submit would fail before it creates a driver: SUBMISSION_FAILED."""


class ContainerConfigError(Exception):
    """The pod refers to a Secret or a key that does not exist: it waits with CreateContainerConfigError."""


@dataclass(frozen=True)
class SubmitCommand:
    """The command for an application. The environment has credentials: it goes to the process and is never written."""

    command: list[str]
    environment: dict[str, str] = field(repr=False)
    properties: dict[str, str]


def memory_bytes(text: str) -> int:
    """The bytes of an amount of memory in Spark's notation: ``512m``, ``2g``.

    :raises SubmissionError: the text is not in this notation.
    """
    match = _MEMORY.fullmatch(text)
    if not match:
        raise SubmissionError(f"{text!r} is not an amount of memory: use a form like 512m or 2g")
    return int(match[1]) * _UNITS[match[2].lower()]


def prepare(
    application: Mapping[str, Any], spark_application_id: str, folder: Path, configuration: ClusterConfiguration
) -> SubmitCommand:
    """Compute command, settings and environment. Nothing is written.

    :raises SubmissionError: the application cannot be submitted.
    :raises ContainerConfigError: a Secret or a key does not exist.
    """
    spec, name = application["spec"], application["metadata"]["name"]
    driver = spec["driver"]
    properties = _properties(spec, name, spark_application_id, folder, configuration)
    command = [*configuration.submit_command, "--properties-file", str(folder / PROPERTIES_FILE), "--name", name]
    if main_class := spec.get("mainClass"):
        command += ["--class", main_class]
    dependencies = spec.get("deps") or {}
    for option, names in (("--py-files", "pyFiles"), ("--jars", "jars"), ("--files", "files")):
        if paths := dependencies.get(names):
            command += [option, ",".join(_local_path(path, configuration) for path in paths)]
    command += [_local_path(spec["mainApplicationFile"], configuration), *spec.get("arguments", ())]
    environment = _image_environment(name, spark_application_id, folder, configuration)
    environment |= container_environment(application, driver, configuration.secrets)
    return SubmitCommand(command, environment, properties)


def write_files(submission: SubmitCommand, folder: Path) -> None:
    """Write the settings to the attempt's folder, and create its scratch folder."""
    (folder / _SCRATCH).mkdir(exist_ok=True)
    text = "".join(
        f"{_escape(key, key=True)}={_escape(value)}\n" for key, value in sorted(submission.properties.items())
    )
    path = folder / PROPERTIES_FILE
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def _properties(
    spec: Mapping[str, Any], name: str, application_id: str, folder: Path, configuration: ClusterConfiguration
) -> dict[str, str]:
    driver, executor = spec["driver"], spec["executor"]
    conf = {key: value for key, value in (spec.get("sparkConf") or {}).items() if not _is_kubernetes_setting(key)}
    conf |= {f"spark.hadoop.{key}": value for key, value in (spec.get("hadoopConf") or {}).items()}
    executors = int(executor.get("instances") or 1)
    # One JVM does the work of the driver and all executors. It gets the sum of their cores, up to those of the machine.
    cores = int(driver["cores"]) + executors * int(executor["cores"])
    memory = memory_bytes(driver["memory"]) + executors * memory_bytes(executor["memory"])
    memory = max(_LEAST_MEMORY, min(memory, memory_bytes(configuration.driver_memory_cap)))
    options = " ".join(text for text in (driver.get("javaOptions"), conf.get("spark.driver.extraJavaOptions")) if text)
    classpath = os.pathsep.join(
        text
        for text in (f"{configuration.jars}/*" if configuration.jars else "", conf.get("spark.driver.extraClassPath"))
        if text
    )
    conf |= {
        "spark.app.name": name,
        # the only setting that gives a local application its id; event logs are named after the id
        "spark.test.appId": application_id,
        "spark.master": f"local[{max(1, min(cores, os.cpu_count() or 1))}]",
        "spark.submit.deployMode": "client",
        "spark.driver.memory": f"{memory // 1024**2}m",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.dynamicAllocation.enabled": "false",
        "spark.local.dir": str(folder / _SCRATCH),
        "spark.sql.warehouse.dir": str(folder / _SCRATCH / "warehouse"),
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={folder / _SCRATCH} {options}".strip(),
    }
    conf.setdefault("spark.ui.enabled", "false")
    if classpath:
        conf["spark.driver.extraClassPath"] = classpath
    return conf | dict(configuration.spark_conf)


def _is_kubernetes_setting(key: str) -> bool:
    return key.startswith(("spark.kubernetes.", "spark.executorEnv.")) or key in ("spark.master", "spark.test.appId")


def _image_environment(
    name: str, application_id: str, folder: Path, configuration: ClusterConfiguration
) -> dict[str, str]:
    """A container's variables. Of this machine's environment it takes only what programs need to start."""
    java = configuration.java_home or os.environ.get("JAVA_HOME")
    path = [str(configuration.python.parent), *([f"{java}/bin"] if java else []), "/usr/local/bin", "/usr/bin", "/bin"]
    environment = {
        "PATH": os.pathsep.join(path),
        "HOME": str(folder / _SCRATCH),
        "TMPDIR": str(folder / _SCRATCH),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "SPARK_HOME": str(configuration.spark_home),
        "PYSPARK_PYTHON": str(configuration.python),
        "PYSPARK_DRIVER_PYTHON": str(configuration.python),
        "PYTHONUNBUFFERED": "1",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_HOSTNAME": "localhost",
        "SPARK_USER": "spark",
        "SPARK_APPLICATION_ID": application_id,
        "SPARK_DRIVER_BIND_ADDRESS": "127.0.0.1",
        "HOSTNAME": f"{name}-driver",
    }
    if java:
        environment["JAVA_HOME"] = str(java)
    if home := os.environ.get(HOME_MARKER):
        # `trilake down` finds the platform's processes by these, and `up` does not end drivers
        environment |= {HOME_MARKER: home, SERVICE_MARKER: DRIVER}
    return environment


def container_environment(
    application: Mapping[str, Any], container: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The variables that a pod's container gets, in Kubernetes' order: envFrom, then env; later ones win.

    :raises ContainerConfigError: a Secret or a key does not exist, or this kind of reference is not supported.
    """
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        if "secretRef" not in source:
            raise ContainerConfigError('configmap "" not found: the embedded platform has no config maps')
        reference = source["secretRef"]
        secret = _secret(reference, secrets)
        variables |= {f"{source.get('prefix', '')}{key}": value for key, value in (secret or {}).items()}
    variables |= container.get("envVars") or {}
    for variable, reference in (container.get("envSecretKeyRefs") or {}).items():
        variables[variable] = _secret_key(reference, secrets) or ""
    metadata = application["metadata"]
    for entry in container.get("env") or ():
        if "valueFrom" not in entry:
            variables[entry["name"]] = entry.get("value", "")
            continue
        origin = entry["valueFrom"]
        if "secretKeyRef" in origin:
            value = _secret_key(origin["secretKeyRef"], secrets)
            if value is not None:
                variables[entry["name"]] = value
        elif (path := (origin.get("fieldRef") or {}).get("fieldPath")) in ("metadata.name", "metadata.namespace"):
            key = path.removeprefix("metadata.")
            variables[entry["name"]] = metadata[key] + ("-driver" if key == "name" else "")
        else:
            raise ContainerConfigError(f"the embedded platform does not support the source of {entry['name']}")
    return variables


def _secret(reference: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> Mapping[str, str] | None:
    secret = secrets.get(reference["name"])
    if secret is None and not reference.get("optional"):
        raise ContainerConfigError(f'secret "{reference["name"]}" not found')
    return secret


def _secret_key(reference: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> str | None:
    secret = _secret(reference, secrets)
    value = (secret or {}).get(reference["key"])
    if value is None and not reference.get("optional"):
        raise ContainerConfigError(f"couldn't find key {reference['key']} in Secret {reference['name']}")
    return value


def _local_path(path: str, configuration: ClusterConfiguration) -> str:
    """The local path for a path in the image. For an unknown path, spark-submit fails later and names it."""
    if not path.startswith("local://"):
        return path
    inside = path.removeprefix("local://")
    return configuration.image_files.get(inside, inside)


def _escape(text: str, *, key: bool = False) -> str:
    """Escape a text for java.util.Properties."""
    escaped = []
    for position, character in enumerate(text):
        if character in "\\=:#!" or (character == " " and (key or position == 0)):
            escaped.append("\\" + character)
        elif character in "\n\r\t\f":
            escaped.append({"\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}[character])
        elif " " <= character <= "~":
            escaped.append(character)
        else:
            units = character.encode("utf-16-be")
            escaped += [f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)]
    return "".join(escaped)
