"""Job code in S3, by content: ``s3://artifacts/jobs/<version>/``. A running job keeps its code; no image is built.

A version's name is the digest of its manifest, and the manifest has the digest of the zip. So a reader can verify that
it got the right version (``spark/image/run_job.py`` does). A version also has the tables' checks: a driver that
publishes (`trilake.spark.publish`) runs the checks of its version.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError
from trilake.lake.data_set import ARTIFACTS_BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CURRENT_KEY = "jobs/current"

# What a driver needs of the package: the layers of pyproject.toml below `hooks`, which do not import Airflow.
CORE = (
    "__init__.py",
    "clickhouse",
    "endpoints.py",
    "errors.py",
    "lake",
    "postgres",
    "project.py",
    "retry.py",
    "s3.py",
    "schema",
    "spark",
)

# Where the installed package lies. Its core goes into every version, wherever the project is.
PACKAGE = Path(__file__).parents[1]

# At the root of a deployed bundle of DAGs: the version of the jobs' code that belongs to it.
VERSION_FILE = "JOBS_VERSION"

# Below sql/: see trilake.clickhouse.publication.checks.
CHECKS = "clickhouse/*/checks/*.sql"

# Names at the root of the zip that a job or a shared package must not have.
_TAKEN = ("trilake", "sql")
_VERSION = re.compile(r"[0-9a-f]{16}")
# A zip's files carry a time; one for all keeps the zip's bytes a function of its content alone.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def push(s3: S3Client, project_folder: Path) -> str:
    """Put the project's job code into S3, if it is not there yet, and make it the current version.

    :param project_folder: holds ``spark_jobs/``, ``sql/`` and, below ``dags/``, packages that DAGs and jobs share. The
        core of Trilake is that of the installed package.
    :return: the version: 16 hexadecimal digits, the same for the same files.
    :raises ConfigurationError: the folder has no jobs, a job or a shared package has the name of a module that it would
        hide, or the installed package is not whole.
    """
    files, archive = build(project_folder)
    manifest = json.dumps(
        {
            "files": {name: _digest(content) for name, content in files.items()},
            "jobs": sorted(name[:-3] for name in files if "/" not in name),
            "sha256": _digest(archive),
            "size": len(archive),
        },
        indent=1,
        sort_keys=True,
    ).encode()
    version = _digest(manifest)[:16]
    if not exists(s3, version):
        s3.put_object(Bucket=ARTIFACTS_BUCKET, Key=_key(version, "jobs.zip"), Body=archive)
        # The manifest last: it says that the version is whole.
        s3.put_object(
            Bucket=ARTIFACTS_BUCKET, Key=_key(version, "manifest.json"), Body=manifest, ContentType="application/json"
        )
    s3.put_object(Bucket=ARTIFACTS_BUCKET, Key=CURRENT_KEY, Body=version.encode(), ContentType="text/plain")
    return version


def build(project_folder: Path) -> tuple[dict[str, bytes], bytes]:
    """The project's job code as a job finds it: content by name, and the zip of it.

    :raises ConfigurationError: as `push`.
    """
    files = dict(_files(project_folder))
    return files, _zip(files)


def current(s3: S3Client) -> str:
    """The version pushed last.

    :raises ConfigurationError: none was pushed.
    """
    text = _read(s3, CURRENT_KEY)
    if text is None:
        raise ConfigurationError(
            f"No job code in s3://{ARTIFACTS_BUCKET}/{CURRENT_KEY}.", hint="Push it with `trilake jobs push`."
        )
    return text.decode().strip()


def of_bundle(dag_file: str) -> str | None:
    """The version that was deployed with a DAG's file, if the file lies in a deployed bundle."""
    for folder in Path(dag_file).resolve().parents:
        if (file := folder / VERSION_FILE).is_file():
            return file.read_text().strip()
    return None


def exists(s3: S3Client, version: str) -> bool:
    """Whether a whole version of that name lies in S3."""
    if not _VERSION.fullmatch(version):
        return False
    try:
        s3.head_object(Bucket=ARTIFACTS_BUCKET, Key=_key(version, "manifest.json"))
    except s3.exceptions.ClientError as e:
        if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return False
        raise
    return True


def jobs(s3: S3Client, version: str) -> list[str]:
    """The names of the jobs of a version.

    :raises ConfigurationError: there is no such version.
    """
    text = _read(s3, _key(version, "manifest.json")) if _VERSION.fullmatch(version) else None
    if text is None:
        raise ConfigurationError(
            f"There is no job code of version {version!r} in s3://{ARTIFACTS_BUCKET}/jobs/.",
            hint="Push it with `trilake jobs push`, or leave the version out to run the current one.",
        )
    names: list[str] = json.loads(text)["jobs"]
    return names


def _read(s3: S3Client, key: str) -> bytes | None:
    try:
        return s3.get_object(Bucket=ARTIFACTS_BUCKET, Key=key)["Body"].read()
    except s3.exceptions.ClientError as e:
        if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return None
        raise


def _files(project_folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name in the zip and content, in the order of names."""
    jobs_folder, dags = project_folder / "spark_jobs", project_folder / "dags"
    found = {path.name: path for path in jobs_folder.glob("*.py") if path.name != "__init__.py"}
    if not found:
        raise ConfigurationError(f"There is no job in {jobs_folder}.", hint="A job is a file spark_jobs/<name>.py.")
    shared = shared_packages(project_folder)
    # In the driver a job is a module among all others: `import calendar` must find what it always finds.
    for path in (*found.values(), *shared):
        if path.stem in _TAKEN or path.stem in sys.stdlib_module_names:
            raise ConfigurationError(f"{path} has the name of a module that the job's code needs.", hint="Rename it.")
    for package in shared:
        if f"{package.name}.py" in found:
            raise ConfigurationError(
                f"{package} has the name of the job spark_jobs/{package.name}.py.", hint="Rename one."
            )
        for source in sorted(package.rglob("*.py")):
            found[source.relative_to(dags).as_posix()] = source
    for part in CORE:
        path = PACKAGE / part
        if not path.exists():
            raise ConfigurationError(
                f"The installed package trilake is incomplete: {path} is missing, and every job needs it.",
                hint="Install it again. Nothing was pushed.",
            )
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not (source.parent / "__init__.py").is_file():
                continue  # a program of an image, which lies in no package
            found[f"trilake/{source.relative_to(PACKAGE).as_posix()}"] = source
    for source in sorted((project_folder / "sql").glob(CHECKS)):
        found[source.relative_to(project_folder).as_posix()] = source
    for name in sorted(found):
        yield name, found[name].read_bytes()


def shared_packages(project_folder: Path) -> list[Path]:
    """The packages below ``dags/``: code that DAGs and jobs share. The DAG processor is told to pass over them."""
    return sorted(path.parent for path in (project_folder / "dags").glob("*/__init__.py"))


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # Stored, not deflated: compressors of two machines need not agree, and this is a few hundred kilobytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def _key(version: str, name: str) -> str:
    return f"jobs/{version}/{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
