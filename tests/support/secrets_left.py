"""Secrets of the platform that a run has left where they must not be."""

from __future__ import annotations

from pathlib import Path

from trilake.platform.embedded.home import Home
from trilake.platform.embedded.postgres import endpoint
from trilake.postgres.connection import connect


def task_logs(home: Home) -> list[Path]:
    """Files of logs, those in S3 among them."""
    return [file for folder in (home.data("s3") / "logs", home.path / "logs") for file in folder.rglob("*.log")]


def secrets_left(home: Home) -> list[str]:
    """Which secret is where: every table of Airflow's database (XCom, rendered templates, the tasks' state, the log of
    actions) and every log is searched.
    """
    secrets = {name: text for name, text in home.secrets().items() if len(text) >= 12}
    assert {"clickhouse_trilake", "s3_secret_access_key"} <= set(secrets)
    found = []
    with (
        connect(endpoint(home.ports()["postgres"], home.secrets(), "airflow")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        tables = {row[0] for row in cursor.fetchall()}
        assert {"xcom", "rendered_task_instance_fields", "log", "task_state_store"} <= tables
        for table in sorted(tables):
            for name, text in secrets.items():
                cursor.execute(f'SELECT count(*) FROM "{table}" AS t WHERE strpos(t::text, %s) > 0', (text,))
                found += [f"{name} in table {table}"] * (cursor.fetchone() or (0,))[0]
    for file in task_logs(home):
        content = file.read_text(errors="replace")
        found += [f"{name} in {file}" for name, text in secrets.items() if text in content]
    return found
