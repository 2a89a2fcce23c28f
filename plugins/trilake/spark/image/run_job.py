"""The main file of every Spark application: fetch a version of the job code, check it, run one job of it.

    run_job.py --version <version> --job <name> -- <the job's own arguments>

It uses only the standard library and boto3, so the image stays the same when jobs or the package change. The address of
S3 is in the connection aws_default, in Airflow's JSON form in AIRFLOW_CONN_AWS_DEFAULT. The zip is first on sys.path.
Its path is in TRILAKE_JOBS_ZIP, so that the Spark session can send it to executors.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

BUCKET = "artifacts"
# The code could not be fetched. It differs from 1 (the job itself failed) and 2 (the command line is wrong).
EXIT_NO_CODE = 3


def refuse(message: str) -> NoReturn:
    print(f"run_job: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_NO_CODE)


def s3_client() -> Any:
    import boto3
    from botocore.config import Config

    try:
        connection = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        extra = connection.get("extra") or {}
        extra = json.loads(extra) if isinstance(extra, str) else extra
        settings = {
            "endpoint_url": extra["endpoint_url"],
            "region_name": extra.get("region_name") or "us-east-1",
            "aws_access_key_id": connection["login"],
            "aws_secret_access_key": connection["password"],
        }
    except (KeyError, ValueError, AttributeError) as e:
        # only the type of the error: its text may contain the connection, which contains a password
        refuse(f"AIRFLOW_CONN_AWS_DEFAULT is missing or is not a connection in JSON ({type(e).__name__}).")
    retries: Any = {"max_attempts": 8, "mode": "standard"}
    return boto3.client("s3", config=Config(s3={"addressing_style": "path"}, retries=retries), **settings)


def fetch(version: str, folder: Path) -> Path:
    """Put the version's zip into `folder`. The version must match the manifest, and the manifest must match the zip."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = s3_client()

    def read(name: str) -> bytes:
        key = f"jobs/{version}/{name}"
        try:
            content: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except ClientError as e:
            code = e.response.get("Error", {}).get("Code")
            refuse(f"s3://{BUCKET}/{key}: {code}. Was this version pushed (`trilake jobs push`)?")
        except BotoCoreError as e:
            refuse(f"s3://{BUCKET}/{key} cannot be read: {e}")
        return content

    manifest = read("manifest.json")
    if not hashlib.sha256(manifest).hexdigest().startswith(version):
        refuse(f"The manifest of version {version} does not match the version's name: its content was changed.")
    archive = read("jobs.zip")
    if hashlib.sha256(archive).hexdigest() != json.loads(manifest)["sha256"]:
        refuse(f"jobs.zip of version {version} does not match its manifest: its content was changed.")
    path = folder / f"jobs-{version}.zip"
    path.write_bytes(archive)
    return path


def main(command_line: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="run_job", description="Run a job from one version of the job code.", allow_abbrev=False
    )
    parser.add_argument("--version", required=True, help="version of the job code: 16 hexadecimal digits")
    parser.add_argument("--job", required=True, help="module of the job")
    # This parser does not get the job's own arguments.
    separator = command_line.index("--") if "--" in command_line else len(command_line)
    job_arguments = command_line[separator + 1 :]
    options = parser.parse_args(command_line[:separator])
    if not re.fullmatch(r"[0-9a-f]{16}", options.version):
        parser.error(f"{options.version!r} is not a version")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.job):
        parser.error(f"{options.job!r} is not a job")
    with tempfile.TemporaryDirectory(prefix="trilake-jobs-") as folder:
        path = fetch(options.version, Path(folder))
        os.environ["TRILAKE_JOBS_ZIP"] = str(path)
        sys.path.insert(0, str(path))
        try:
            job = importlib.import_module(options.job)
        except ModuleNotFoundError as e:
            if e.name != options.job:
                raise
            refuse(f"Version {options.version} has no job {options.job}.")
        if not str(job.__file__).startswith(str(path)):
            refuse(f"Version {options.version} has no job {options.job}. That name is another module: {job.__file__}.")
        sys.argv = [options.job, *job_arguments]
        return job.main(job_arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
