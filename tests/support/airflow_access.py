"""What each of Airflow's roles may do, asked of a running Airflow, and a session of its UI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from trilake.platform.airflow_api import FINAL_STATES, AirflowApi
from trilake.platform.airflow_users import Request

SEEN, HIDDEN = "access_of_agents", "access_of_people"
DAGS = f'''
"""Two DAGs: one that agents see, and one that they do not."""

from airflow.sdk import DAG, task

for name, access_control in (("{SEEN}", {{"Agent": {{"DAGs": {{"can_read"}}}}}}), ("{HIDDEN}", None)):
    with DAG(name, schedule=None, access_control=access_control):

        @task
        def answer():
            print("a line for readers")
            return 42

        answer()
'''
PEOPLE = {"Viewer", "User", "Op", "Admin"}
EVERYONE = PEOPLE | {"Agent"}
REFUSED = 403  # also for the token of a user who was deactivated
# request -> the roles that may make it. The others are refused.
RUN = f"/api/v2/dags/{SEEN}/dagRuns/%s"
REQUESTS: dict[tuple[str, str], tuple[object, set[str]]] = {
    ("GET", "/api/v2/dags"): (None, EVERYONE),
    ("GET", f"/api/v2/dags/{SEEN}"): (None, EVERYONE),
    ("GET", f"/api/v2/dags/{HIDDEN}"): (None, PEOPLE),
    ("GET", RUN): (None, EVERYONE),
    ("GET", f"{RUN}/taskInstances/answer/logs/1"): (None, EVERYONE),
    ("GET", f"{RUN}/taskInstances/answer/xcomEntries/return_value"): (None, EVERYONE),
    ("GET", f"/api/v2/dagSources/{SEEN}"): (None, PEOPLE),
    ("GET", "/api/v2/assets"): (None, PEOPLE),
    ("GET", "/api/v2/pools"): (None, PEOPLE),
    ("GET", "/api/v2/plugins"): (None, PEOPLE),
    ("GET", "/api/v2/connections"): (None, {"Op", "Admin"}),
    ("GET", "/api/v2/variables"): (None, {"Op", "Admin"}),
    ("POST", f"/api/v2/dags/{SEEN}/dagRuns"): ({"logical_date": None}, {"User", "Op", "Admin"}),
    ("PATCH", f"/api/v2/dags/{SEEN}"): ({"is_paused": True}, {"User", "Op", "Admin"}),
    ("PATCH", "/api/v2/dags?dag_id_pattern=access_of_agents"): ({"is_paused": True}, {"User", "Op", "Admin"}),
    ("POST", "/api/v2/backfills"): (
        {"dag_id": SEEN, "from_date": "2013-01-01T00:00:00Z", "to_date": "2013-01-02T00:00:00Z"},
        {"User", "Op", "Admin"},
    ),
    ("POST", f"/api/v2/dags/{SEEN}/clearTaskInstances"): ({"dry_run": True}, {"User", "Op", "Admin"}),
    ("PATCH", RUN): ({"note": "marked"}, {"User", "Op", "Admin"}),
    ("PATCH", f"{RUN}/taskInstances/answer"): ({"note": "marked"}, {"User", "Op", "Admin"}),
    ("DELETE", f"/api/v2/dags/{SEEN}/dagRuns/no_such_run"): (None, {"User", "Op", "Admin"}),
    ("POST", "/api/v2/assets/events"): ({"asset_id": 0}, {"Op", "Admin"}),
    ("POST", "/api/v2/assets/0/materialize"): (None, {"Op", "Admin"}),
    ("DELETE", f"/api/v2/dags/{SEEN}"): (None, {"Op", "Admin"}),
}


# One process for many requests: each would import Airflow.
_ASK_ALL = """
import json, sys
from trilake.errors import TrilakeError
from trilake.platform.airflow_users import answer
for request in json.load(sys.stdin):
    try:
        print("answer:" + json.dumps(answer(request)))
    except TrilakeError as e:
        print("answer:" + json.dumps(str(e)))
"""


def ask_all(environment: Mapping[str, str], requests: Sequence[Request]) -> list[Any]:
    """The answers of `airflow_users`; of a refused request the error's text."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_ALL],
        env=dict(environment),
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line.removeprefix("answer:")) for line in done.stdout.splitlines() if line.startswith("answer:")]


def finished_run(api: AirflowApi) -> str:
    """A run of the DAG that agents see."""
    api.wait_for_dags(SEEN, HIDDEN)
    api.unpause(SEEN)
    run = api.trigger(SEEN)
    wait_for(lambda: api.run(SEEN, run)["state"] in FINAL_STATES, "the run's end")
    assert api.run(SEEN, run)["state"] == "success"
    return run


def wrong_answers(url: str, tokens: dict[str, str], run: str) -> list[str]:
    """The requests that a role was refused although it may, or was granted although it may not."""
    wrong = []
    for (method, path), (body, may) in REQUESTS.items():
        for role, token in tokens.items():
            # the DAG is still needed: a role that may delete it deletes one that does not exist
            deletes_dag = method == "DELETE" and path.endswith(SEEN) and role in may
            address = url + (path.replace(SEEN, "no_such_dag") if deletes_dag else path.replace("%s", run))
            headers = {"Authorization": f"Bearer {token}"}
            answer = httpx.request(method, address, headers=headers, json=body, timeout=60, trust_env=False)
            granted = answer.status_code != REFUSED
            if granted != (role in may) or answer.status_code in (401, 405, 500):
                wrong.append(f"{role} {method} {address}: {answer.status_code} {answer.text[:200]}")
    return wrong


def dags_of(url: str, token: str) -> set[str]:
    answer = httpx.get(f"{url}/api/v2/dags", headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
    return {dag["dag_id"] for dag in answer.json()["dags"]}


def log_in(url: str, name: str, password: str) -> str:
    """A token, as a program gets it; empty if Airflow refuses."""
    answer = httpx.post(f"{url}/auth/token", json={"username": name, "password": password}, timeout=60, trust_env=False)
    return str(answer.json()["access_token"]) if answer.status_code == 201 else ""


def status_with(url: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{url}/api/v2/dags", headers=headers, timeout=60, trust_env=False).status_code


class Browser:
    """A session of the UI, made by the login form."""

    def __init__(self, url: str, name: str, password: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        form = self._client.get("/auth/login/")
        csrf = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', form.text)
        assert csrf, form.text[:500]
        fields = {"username": name, "password": password, "csrf_token": csrf[1]}
        self._client.post("/auth/login/", data=fields)

    def is_logged_in(self) -> bool:
        """Whether the session gives a token, as it does when a token has run out."""
        self._client.cookies.delete("_token") if "_token" in self._client.cookies else None
        answer = self._client.get("/auth/login/", follow_redirects=False)
        return "_token" in answer.cookies


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.5)
