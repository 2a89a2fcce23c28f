"""What supervisord is told, and who belongs to a platform."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from supervisor.options import ServerOptions

from trilake.platform.embedded import postgres, processes
from trilake.platform.embedded.home import Home
from trilake.platform.embedded.processes import HOME_MARKER, SERVICE_MARKER, Program

PROJECT = Path(__file__).parents[2]
AWKWARD = ["/bin/echo", "a b", "50%", "%(here)s", "it's", '"quoted"', "semi;colon", "back\\slash", "#", ""]


def test_supervisord_reads_every_command_as_it_was_given(tmp_path: Path) -> None:
    home = Home(tmp_path, PROJECT)
    home.prepare()
    text = processes.configuration(home, [Program("one", AWKWARD), Program("two", ["/bin/true"], stop_signal="INT")])
    file = home.run / "supervisord.conf"
    file.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(file)])
    groups = {group.name: group.process_configs[0] for group in options.process_group_configs}
    assert set(groups) == {"one", "two"}
    one = groups["one"]
    import shlex

    assert shlex.split(one.command) == AWKWARD
    assert one.environment == {SERVICE_MARKER: "one"}
    assert not one.autostart
    assert not one.autorestart
    assert one.stopasgroup
    assert one.killasgroup
    assert groups["two"].stopsignal == signal.SIGINT
    assert one.stdout_logfile == str(home.log("one"))


def start(home: Home, service: str, **more: str) -> psutil.Popen:
    environment = {"PATH": os.defpath, HOME_MARKER: str(home.path), SERVICE_MARKER: service, **more}
    return psutil.Popen(["/bin/sh", "-c", "sleep 100 & wait"], env=environment, start_new_session=True)


def test_a_platforms_processes_are_found_and_ended_with_their_descendants(tmp_path: Path) -> None:
    mine, other = Home(tmp_path / "mine", PROJECT), Home(tmp_path / "other", PROJECT)
    ours, theirs = start(mine, "s3"), start(other, "s3")
    try:
        # the shell has its child when it waits for it
        while not ours.children():
            pass
        found = processes.find(mine)
        assert set(found.values()) == {"s3"}
        assert {ours.pid, *(child.pid for child in ours.children())} == {process.pid for process in found}
        processes.end(found)
        assert not any(process.is_running() for process in found)
        assert processes.find(mine) == {}
        assert theirs.is_running()
    finally:
        processes.end(processes.find(mine) | processes.find(other))


def test_one_that_does_not_listen_is_ended_by_force(tmp_path: Path) -> None:
    home = Home(tmp_path, PROJECT)
    environment = {HOME_MARKER: str(home.path), SERVICE_MARKER: "airflow-scheduler"}
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    deaf = psutil.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert deaf.stdout.readline() == b"deaf\n"
    processes.end(processes.find(home), grace_s=0.2)
    assert not deaf.is_running()


def test_a_shell_that_only_knows_the_home_does_not_belong_to_it(tmp_path: Path) -> None:
    home = Home(tmp_path, PROJECT)
    shell = psutil.Popen(["sleep", "100"], env={"PATH": os.defpath, HOME_MARKER: str(home.path)})
    try:
        assert processes.find(home) == {}
    finally:
        shell.kill()
        shell.wait()


def test_services_get_little_of_the_callers_environment(tmp_path: Path) -> None:
    called_with = {"PATH": "/bin", "AIRFLOW__CORE__EXECUTOR": "Other", "AWS_PROFILE": "mine", "SECRET": "x"}
    given = processes.base_environment(Home(tmp_path, PROJECT), called_with)
    assert given["PATH"] == "/bin"
    assert given[HOME_MARKER] == str(tmp_path)
    assert not {"AIRFLOW__CORE__EXECUTOR", "AWS_PROFILE", "SECRET"} & given.keys()


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.last_lines(log, 3) == []
    log.write_bytes(b"one\ntwo\n\xff three\nfour")
    assert processes.last_lines(log, 2) == ["\ufffd three", "four"]


def test_the_folder_that_keeps_a_user_out_is_named(tmp_path: Path) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    (closed / "home").mkdir(parents=True)
    closed.chmod(0o700)
    found = postgres.first_closed(closed / "home", nobody)
    assert found is not None
    assert found in (closed, *closed.parents), found
    closed.chmod(0o711)
    assert postgres.first_closed(closed / "home", nobody) != closed
