"""Job code in S3, named by its content: ``s3://artifacts/jobs/<version>/``. No image is built for a new version, and a
running job keeps the version that it started with.

A version's name is the digest of its manifest, and the manifest has the digest of the zip. So a reader can verify that
it got the right version (``spark/image/run_job.py`` does). A version also has the tables' checks: a driver that
publishes (`trilake.spark.publish`) runs the checks of its version. Beside the code is ``catalog.json``, which describes
the project's data sets (`trilake.clickhouse.data_catalog`).
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

from trilake.clickhouse.data_catalog import describe_project, to_json
from trilake.errors import ConfigurationError
from trilake.lake.data_set import ARTIFACTS_BUCKET

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CURRENT_KEY = "jobs/current"

# The parts of the package that a driver needs: the layers below `hooks` in pyproject.toml, which do not import Airflow.
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

# The folder of the installed package. Its core is part of every version of every project.
PACKAGE = Path(__file__).parents[1]

# A file at the root of a deployed bundle of DAGs. It has the version of the job code that belongs to the bundle.
VERSION_FILE = "JOBS_VERSION"

# Below sql/: see trilake.clickhouse.publication.checks.
CHECKS = "clickhouse/*/checks/*.sql"

# Names at the root of the zip. A job or a shared package must not have them.
_RESERVED = ("trilake", "sql")
_VERSION = re.compile(r"[0-9a-f]{16}")
# Every file in a zip has a time. With a fixed time, the zip's bytes depend only on the content.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def push(s3: S3Client, project_folder: Path) -> str:
    """Put the project's job code into S3, if it is not there yet, and make it the current version.

    :param project_folder: has ``spark_jobs/``, ``sql/`` and, below ``dags/``, packages that DAGs and jobs share. The
        core of Trilake comes from the installed package.
    :return: the version: 16 hexadecimal digits, the same for the same files.
    :raises ConfigurationError: the folder has no jobs, a job or a shared package has the name of a module that it would
        hide, or the installed package is incomplete.
    """
    files, archive = build(project_folder)
    catalog = to_json(describe_project(project_folder)).encode()
    manifest = json.dumps(
        {
            "catalog": _digest(catalog),
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
        s3.put_object(
            Bucket=ARTIFACTS_BUCKET, Key=_key(version, "catalog.json"), Body=catalog, ContentType="application/json"
        )
        # Write the manifest last: a version with a manifest is complete.
        s3.put_object(
            Bucket=ARTIFACTS_BUCKET, Key=_key(version, "manifest.json"), Body=manifest, ContentType="application/json"
        )
    s3.put_object(Bucket=ARTIFACTS_BUCKET, Key=CURRENT_KEY, Body=version.encode(), ContentType="text/plain")
    return version


def build(project_folder: Path) -> tuple[dict[str, bytes], bytes]:
    """The project's job code: the content of each file by its name in the zip, and the zip.

    :raises ConfigurationError: see `push`.
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
            f"There is no job code in s3://{ARTIFACTS_BUCKET}/{CURRENT_KEY}.", hint="Push it with `trilake jobs push`."
        )
    return text.decode().strip()


def of_bundle(dag_file: str) -> str | None:
    """The version that was deployed with a DAG's file; None if the file is not in a deployed bundle."""
    for folder in Path(dag_file).resolve().parents:
        if (file := folder / VERSION_FILE).is_file():
            return file.read_text().strip()
    return None


def exists(s3: S3Client, version: str) -> bool:
    """Whether S3 has a complete version of that name."""
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


def catalog(s3: S3Client, version: str) -> str | None:
    """The text of a version's ``catalog.json``. None: an older version of Trilake pushed it, without one."""
    text = _read(s3, _key(version, "catalog.json"))
    return None if text is None else text.decode()


def _read(s3: S3Client, key: str) -> bytes | None:
    try:
        return s3.get_object(Bucket=ARTIFACTS_BUCKET, Key=key)["Body"].read()
    except s3.exceptions.ClientError as e:
        if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return None
        raise


def _files(project_folder: Path) -> Iterator[tuple[str, bytes]]:
    """The name in the zip and the content of each file, sorted by name."""
    jobs_folder, dags = project_folder / "spark_jobs", project_folder / "dags"
    sources = {path.name: path for path in jobs_folder.glob("*.py") if path.name != "__init__.py"}
    if not sources:
        raise ConfigurationError(f"There is no job in {jobs_folder}.", hint="A job is a file spark_jobs/<name>.py.")
    shared = shared_packages(project_folder)
    # In the driver a job is an ordinary module. It must not hide another, such as `calendar` of the standard library.
    for path in (*sources.values(), *shared):
        if path.stem in _RESERVED or path.stem in sys.stdlib_module_names:
            raise ConfigurationError(f"{path} has the name of a module that the job's code needs.", hint="Rename it.")
    for package in shared:
        if f"{package.name}.py" in sources:
            raise ConfigurationError(
                f"{package} has the name of the job spark_jobs/{package.name}.py.", hint="Rename one."
            )
        for source in sorted(package.rglob("*.py")):
            sources[source.relative_to(dags).as_posix()] = source
    for part in CORE:
        path = PACKAGE / part
        if not path.exists():
            raise ConfigurationError(
                f"The installed package trilake is incomplete: {path} is missing, and every job needs it.",
                hint="Install it again. Nothing was pushed.",
            )
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not (source.parent / "__init__.py").is_file():
                continue  # a program of an image, which is not in a package
            sources[f"trilake/{source.relative_to(PACKAGE).as_posix()}"] = source
    for source in sorted((project_folder / "sql").glob(CHECKS)):
        sources[source.relative_to(project_folder).as_posix()] = source
    for name in sorted(sources):
        yield name, sources[name].read_bytes()


def shared_packages(project_folder: Path) -> list[Path]:
    """The packages below ``dags/``: code that DAGs and jobs share. The DAG processor is configured to ignore them."""
    return sorted(path.parent for path in (project_folder / "dags").glob("*/__init__.py"))


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # No compression: its result may differ between two machines, and the zip has only a few hundred kilobytes.
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
