"""How DAGs, jobs and SQL reach vps_1: looked at, pushed, and made live together under one version.

The DAGs' repository is bare and holds what was deployed, a commit a deployment, whatever the project's own history is.
Its branch `live` is what Airflow's Git bundle follows; moving it is the last step and one rename. The tree names the
version of the jobs' code that was pushed for it, so a run keeps its jobs as it keeps its DAG. A deployment that
dies half-way leaves an unused version in S3, and maybe git's lock. The next one removes it: only one runs at a time.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trilake.errors import TrilakeError
from trilake.platform.hosts.airflow import LIVE
from trilake.spark import versions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# What a bundle holds of the project.
PARTS = ("dags", "spark_jobs", "sql")
_LIVE = f"refs/heads/{LIVE}"
_NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "trilake deploy"), ("EMAIL", "deploy@localhost"))
}


class DeployError(TrilakeError):
    """What cannot be deployed as it is; nothing has changed."""


def deploy(s3: S3Client, project: Path, repository: Path) -> tuple[str, str, bool]:
    """Push the jobs' code and make the project's DAGs live with it. It can be repeated. Of two at once, one is refused.

    The caller has looked at the DAGs (`trilake.cli.deploy.check`).

    :return: the version of the jobs' code, the commit that is live, and whether anything has changed.
    :raises DeployError: git refused, or another deployment runs.
    """
    version = versions.push(s3, project)
    with _alone(repository):
        commit, changed = _commit(project, repository, version)
    return version, commit, changed


@contextmanager
def _alone(repository: Path) -> Iterator[None]:
    """Hold the lock on the repository, which is made if there is none. Readers do not need the lock.

    :raises DeployError: another deployment holds the lock.
    """
    repository.parent.mkdir(parents=True, exist_ok=True)
    with open(repository.with_name(f".{repository.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployError(
                f"Another deployment to {repository} is running.",
                hint="Wait for it to finish, then run `trilake deploy` again.",
            ) from None
        if (repository / "HEAD").exists():
            for left in repository.rglob("*.lock"):  # by a git that was killed
                left.unlink()
        else:
            fresh = repository.with_name(f".{repository.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            _git("init", "--quiet", "--bare", f"--initial-branch={LIVE}", str(fresh))
            fresh.rename(repository)
        yield


def _commit(project: Path, repository: Path, version: str) -> tuple[str, bool]:
    """Make a commit of the project's parts the one that is live, if it is another. Gives it."""
    with tempfile.TemporaryDirectory(prefix="trilake-deploy-") as scratch:
        at = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(project), "GIT_INDEX_FILE": f"{scratch}/index"}
        parts = [part for part in PARTS if (project / part).is_dir()]
        _git("add", "--all", "--force", "--", *parts, ":(exclude,glob)**/__pycache__/**", env=at)
        blob = _git("hash-object", "-w", "--stdin", env=at, text=f"{version}\n")
        _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{versions.VERSION_FILE}", env=at)
        tree = _git("write-tree", env=at)
        before = _git("for-each-ref", "--format=%(objectname)", _LIVE, env=at)
        if before and _git("rev-parse", f"{before}^{{tree}}", env=at) == tree:
            return before, False
        parent = ["-p", before] if before else []
        commit = _git("commit-tree", tree, *parent, "-m", f"jobs {version}", env={**at, **_NOBODY})
        # only if it is still where it was
        _git("update-ref", _LIVE, commit, before or "0" * 40, env=at)
    return commit, True


def _git(*arguments: str, env: Mapping[str, str] | None = None, text: str | None = None) -> str:
    done = subprocess.run(
        # a host that loses its power has all of a commit, or the one before
        ["git", "-c", "core.autocrlf=false", "-c", "core.fsync=all", *arguments],
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", **(env or {})},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = "; ".join(line for line in done.stderr.splitlines() if line.strip()) or "no reason given"
        raise DeployError(
            f"git {arguments[0]}: {told.rstrip('.')}.", hint="Run `trilake deploy` again; what is live has not changed."
        )
    return done.stdout.strip()


def missing_jobs(project: Path, named: Mapping[str, str]) -> list[str]:
    """The jobs that DAGs name, but that have no file in ``spark_jobs/`` or no `main` in it; one line each.

    :param named: job -> the DAG and task that name it.
    """
    problems = []
    for job, where in sorted(named.items()):
        file = project / "spark_jobs" / f"{job}.py"
        if not file.is_file():
            problems.append(f"{where} runs the job {job}, and there is no spark_jobs/{job}.py")
            continue
        try:
            tree = ast.parse(file.read_text(), filename=str(file))
        except SyntaxError as e:
            problems.append(f"spark_jobs/{job}.py, line {e.lineno}: {e.msg}")
            continue
        if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            problems.append(f"spark_jobs/{job}.py has no main()")
    return problems
