"""How DAGs, jobs and SQL reach vps_1: they are checked, pushed, and made live together under one version.

The DAGs' repository is bare. It has one commit for each deployment and does not depend on the project's own history.
Airflow's Git bundle follows its branch `live`. Moving this branch is the last step, and it is one rename. The tree
names the version of the jobs' code that was pushed for it, so a run keeps its jobs as it keeps its DAG. A deployment
that is killed leaves an unused version in S3, and maybe git's lock. The next deployment removes the lock: only one runs
at a time.
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

# The folders of the project that a bundle holds.
PARTS = ("dags", "spark_jobs", "sql")
_LIVE = f"refs/heads/{LIVE}"
_AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "trilake deploy"), ("EMAIL", "deploy@localhost"))
}


class DeployError(TrilakeError):
    """The project cannot be deployed. Nothing has changed."""


def deploy(s3: S3Client, project: Path, repository: Path) -> tuple[str, str, bool]:
    """Push the jobs' code and make the project's DAGs live with it. It can be repeated.

    Only one deployment runs at a time; a second is refused. `trilake.cli.deploy.check` has run before.

    :return: the version of the jobs' code, the commit that is live, and whether anything has changed.
    :raises DeployError: git refused, or another deployment runs.
    """
    version = versions.push(s3, project)
    with _locked(repository):
        commit, changed = _commit(project, repository, version)
    return version, commit, changed


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """Hold the lock on the repository. Create the repository if there is none. Readers do not need the lock.

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
            for stale in repository.rglob("*.lock"):  # a git process that was killed left it
                stale.unlink()
        else:
            fresh = repository.with_name(f".{repository.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            _git("init", "--quiet", "--bare", f"--initial-branch={LIVE}", str(fresh))
            fresh.rename(repository)
        yield


def _commit(project: Path, repository: Path, version: str) -> tuple[str, bool]:
    """Commit the project's parts and make the commit live, unless the live one has the same tree.

    :return: the commit that is live, and whether it is new.
    """
    with tempfile.TemporaryDirectory(prefix="trilake-deploy-") as scratch:
        git_env = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(project), "GIT_INDEX_FILE": f"{scratch}/index"}
        parts = [part for part in PARTS if (project / part).is_dir()]
        _git("add", "--all", "--force", "--", *parts, ":(exclude,glob)**/__pycache__/**", env=git_env)
        blob = _git("hash-object", "-w", "--stdin", env=git_env, text=f"{version}\n")
        _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{versions.VERSION_FILE}", env=git_env)
        tree = _git("write-tree", env=git_env)
        before = _git("for-each-ref", "--format=%(objectname)", _LIVE, env=git_env)
        if before and _git("rev-parse", f"{before}^{{tree}}", env=git_env) == tree:
            return before, False
        parent = ["-p", before] if before else []
        commit = _git("commit-tree", tree, *parent, "-m", f"jobs {version}", env={**git_env, **_AUTHOR})
        # git refuses this if the branch has moved since `before` was read
        _git("update-ref", _LIVE, commit, before or "0" * 40, env=git_env)
    return commit, True


def _git(*arguments: str, env: Mapping[str, str] | None = None, text: str | None = None) -> str:
    done = subprocess.run(
        # core.fsync: after a power loss the host has the complete new commit, or the previous one
        ["git", "-c", "core.autocrlf=false", "-c", "core.fsync=all", *arguments],
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", **(env or {})},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = "; ".join(line for line in done.stderr.splitlines() if line.strip()) or "no reason given"
        raise DeployError(
            f"git {arguments[0]}: {reason.rstrip('.')}.",
            hint="Run `trilake deploy` again. The live version has not changed.",
        )
    return done.stdout.strip()


def missing_jobs(project: Path, named: Mapping[str, str]) -> list[str]:
    """Problems of the jobs that DAGs name, one line each: no file in ``spark_jobs/``, or no valid code with a `main`.

    :param named: job -> the DAG and task that name it.
    """
    problems = []
    for job, where in sorted(named.items()):
        file = project / "spark_jobs" / f"{job}.py"
        if not file.is_file():
            problems.append(f"{where} runs the job {job}, but spark_jobs/{job}.py does not exist")
            continue
        try:
            tree = ast.parse(file.read_text(), filename=str(file))
        except SyntaxError as e:
            problems.append(f"spark_jobs/{job}.py, line {e.lineno}: {e.msg}")
            continue
        if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            problems.append(f"spark_jobs/{job}.py has no main()")
    return problems
