"""The platform's life, without Airflow: it comes up, stays private, loses nothing, and goes without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import psutil
import psycopg2
import pytest

from support.platform_state import Kept, pids, states
from support.running_platform import Platform
from trilake import s3
from trilake.lake.data_set import BUCKETS
from trilake.platform.embedded import platform as lifecycle
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import LOOPBACK, SERVICES, STORES
from trilake.platform.embedded.postgres import DATABASES

RUNNING = {service: "running" if service in STORES else "stopped" for service in SERVICES}


@pytest.fixture
def kept(platform: Platform):
    platform.up()  # whatever a test before this one has left
    kept = Kept(platform)
    yield kept
    platform.up()
    kept.drop()


def test_every_service_runs_and_a_second_up_starts_nothing(platform: Platform) -> None:
    platform.up()
    assert states(platform) == RUNNING
    before = pids(platform)
    platform.up()
    assert pids(platform) == before


def test_status_tells_state_address_process_memory_and_version(platform: Platform) -> None:
    platform.up()
    done = platform.trilake("status", "--json")
    document = json.loads(done.stdout)
    services = {service["service"]: service for service in document["services"]}
    assert list(services) == list(SERVICES)
    assert all(service["version"] for service in services.values())
    assert all(services[name]["pid"] and services[name]["memory"] > 1 << 20 for name in STORES)
    assert services["clickhouse"]["address"] == f"http://127.0.0.1:{platform.endpoints.clickhouse.shards[0].port}"
    assert document["memory"] == sum(service["memory"] for service in services.values())


@pytest.mark.parametrize("service", ["postgres", "s3", "clickhouse", "kubernetes"])
def test_a_killed_store_comes_back_with_everything_acknowledged(platform: Platform, kept: Kept, service: str) -> None:
    pid = pids(platform)[service]
    assert pid
    process = psutil.Process(pid)  # before the kill: afterwards it may be gone
    process.kill()
    process.wait(timeout=60)
    platform.up()
    assert states(platform) == RUNNING
    assert pids(platform)[service] != pid
    kept.check()


def test_services_whose_supervisor_was_killed_are_shown_ended_and_started_anew(platform: Platform, kept: Kept) -> None:
    supervisor = int((platform.home.run / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    assert "orphaned" in set(states(platform).values())
    before = set(processes.find(platform.home))
    platform.up()
    assert states(platform) == RUNNING
    assert not before & set(processes.find(platform.home))
    kept.check()


def test_a_supervisor_that_nobody_reaches_is_ended_with_its_services(platform: Platform, kept: Kept) -> None:
    platform.home.socket.unlink()
    before = set(processes.find(platform.home))
    platform.up()
    assert states(platform) == RUNNING
    assert not before & set(processes.find(platform.home))
    kept.check()


@pytest.mark.parametrize("supervisor_is_gone", [False, True])
def test_down_leaves_no_process_and_up_finds_the_data(platform: Platform, kept: Kept, supervisor_is_gone: bool) -> None:
    ports = platform.home.ports()
    # what outlives its parent: a driver, in a session of its own
    driver = psutil.Popen(
        ["sleep", "1000"],
        env={"PATH": os.defpath, "TRILAKE_HOME": str(platform.home.path), "TRILAKE_SERVICE": processes.DRIVER},
        start_new_session=True,
    )
    # for a moment after its start a process has no environment yet
    until = time.monotonic() + 120
    while driver.pid not in {process.pid for process in processes.find(platform.home)}:
        assert time.monotonic() < until, "a driver is not known by its environment"
        time.sleep(0.05)
    supervisor = int((platform.home.run / "supervisord.pid").read_text())
    if supervisor_is_gone:
        os.kill(supervisor, signal.SIGKILL)
    assert platform.down()
    driver.wait(120)
    assert processes.find(platform.home) == {}
    assert not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == psutil.STATUS_ZOMBIE
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex((LOOPBACK, port)) != 0
    assert not platform.down(), "there was something left to end"
    # as a machine leaves it that lost its power, when somebody else has the number by now
    user = "pgserver" if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "1000"], user=user) as stranger:
        lock = platform.home.data("postgres") / "postmaster.pid"
        lock.write_text(f"{stranger.pid}\n{lock.parent}\n0\n{ports['postgres']}\n\n127.0.0.1\n")
        shutil.chown(lock, user=user or os.geteuid())
        platform.up()
        stranger.kill()
    assert platform.home.ports() == ports
    kept.check()


def test_no_database_user_enters_anothers_database(platform: Platform) -> None:
    platform.up()
    secrets, port = platform.home.secrets(), platform.home.ports()["postgres"]
    for user in DATABASES:
        for database in (*DATABASES, "postgres", "template1"):

            def enter(password: str, user: str = user, database: str = database) -> None:
                psycopg2.connect(host=LOOPBACK, port=port, user=user, password=password, dbname=database).close()

            if user == database:
                enter(secrets[f"postgres_{user}"])
                with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
                    enter("wrong")
            else:
                with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
                    enter(secrets[f"postgres_{user}"])


def test_secrets_are_in_no_command_line_and_no_log(platform: Platform) -> None:
    platform.up()
    secrets = [secret for name, secret in platform.home.secrets().items() if name != "s3_access_key_id"]
    for process in psutil.process_iter():
        try:
            told = "\0".join(process.cmdline())
        except psutil.Error:
            continue
        assert not any(secret in told for secret in secrets), f"a secret is in the arguments of {process.name()}"
    logs = [path for path in (platform.home.path / "logs").rglob("*") if path.is_file()]
    assert {*STORES, "supervisord"} <= {log.stem for log in logs}
    for log in logs:
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), f"a secret is in {log.name}"


def test_what_holds_secrets_is_closed_to_others(platform: Platform) -> None:
    home = platform.home
    assert stat.S_IMODE(home.connections_file.stat().st_mode) == 0o600
    for path in home.config("").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (home.config(""), home.run, home.path / "logs", home.data("s3"), home.data("kubernetes")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert not home.path.stat().st_mode & 0o066


def test_a_shell_reads_the_connections(platform: Platform) -> None:
    import subprocess

    script = f'set -a; . "{platform.home.connections_file}"; exec "$0" -c "$1"'
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        ["/bin/sh", "-c", script, os.sys.executable, program], capture_output=True, text=True, check=True, env={}
    )
    read = json.loads(done.stdout)
    assert platform.home.environment().items() <= read.items()


def test_queries_answer_in_a_pipe_and_in_json(platform: Platform) -> None:
    platform.up()
    assert platform.trilake("sql", "SELECT number, NULL FROM numbers(2)").stdout == "0\t\\N\n1\t\\N\n"
    assert json.loads(platform.trilake("sql", "SELECT 1 AS one", "--json").stdout) == [{"one": 1}]
    assert platform.trilake("sql", "SELECT 1 AS one FORMAT CSVWithNames").stdout == '"one"\n1\n'
    assert platform.trilake("psql", "SELECT 1, NULL, true, 'a' || chr(9)").stdout == "1\t\\N\ttrue\ta\\t\n"
    assert json.loads(platform.trilake("psql", "SELECT 1 AS one", "--json").stdout) == [{"one": 1}]
    assert platform.trilake("psql", "SELECT current_database()", "--lake").stdout == "lake\n"
    for command in ("sql", "psql"):
        refused = platform.trilake(command, "SELEC")
        assert refused.returncode == 1
        assert refused.stderr.startswith("trilake: ")
        assert refused.stderr.count("\n") == 1


def test_logs_show_the_last_lines(platform: Platform) -> None:
    done = platform.trilake("logs", "postgres", "-n", "2")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 2
    refused = platform.trilake("logs", "postgresql")
    assert refused.returncode == 1
    assert "There is no service 'postgresql'. The services are postgres, s3" in refused.stderr


def test_a_second_command_waits_its_turn(platform: Platform) -> None:
    with lifecycle.exclusive(platform.home):
        for command in ("up", "down"):
            refused = platform.trilake(command)
            assert refused.returncode == 1
            assert f"(process {os.getpid()}) is starting or stopping the platform" in refused.stderr


def test_s3_lists_what_was_put_and_nothing_else(platform: Platform) -> None:
    platform.up()
    client = s3.client(platform.endpoints.s3)
    assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} == set(BUCKETS)
    keys = {f"listing/{number % 2}/{number}" for number in range(5)}
    for key in keys:
        client.put_object(Bucket="spark-events", Key=key, Body=b"x")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket="spark-events", Prefix="listing/", PaginationConfig={"PageSize": 2}
    )
    assert {entry["Key"] for page in pages for entry in page["Contents"]} == keys
    client.delete_objects(Bucket="spark-events", Delete={"Objects": [{"Key": key} for key in keys]})
    assert "Contents" not in client.list_objects_v2(Bucket="spark-events", Prefix="listing/")
