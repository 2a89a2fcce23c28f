"""Whether the log of a try that failed says what was at fault: the error that ended it, and not what else it names."""

from __future__ import annotations

import re

from support.fault_schedule import Schedule

# Airflow's own words; the error follows them.
_RAISED = "Task failed with exception"
# What is left to say of a try that somebody has ended: Airflow writes no error of it.
_ENDED = r"Process (exited abnormally|terminated by signal)|Server indicated the task|heartbeat"
# Tasks talk to Airflow's API server, which is none without its database.
_NO_AIRFLOW = rf"(?i:api.?server)|{_ENDED}"
# As SQLAlchemy names PostgreSQL's driver
_NO_DATABASE = "psycopg2.OperationalError"
_CLICKHOUSE = r"shard \d \(|ClickHouse"
_S3 = r"\bS3\b|\bs3a?://"

_SAYS = {
    # also a step that ClickHouse's tables are missing for, until they are rebuilt
    ("lose", "clickhouse"): rf"{_CLICKHOUSE}|UNKNOWN_TABLE|UNKNOWN_DATABASE",
    # a publication or a read during which the rows moved
    ("reshard", "clickhouse"): r"(being|were) spread over",
    ("fill", "clickhouse"): r"shard \d.* disk .* is full",
    **{(act, "clickhouse"): _CLICKHOUSE for act in ("kill", "stall", "cut")},
    **{(act, "s3"): _S3 for act in ("kill", "stall", "cut", "fill")},
    ("kill", "postgres"): rf"(?i:postgres)|{_NO_AIRFLOW}",
    **{(act, name): "(?i:postgres)" for act in ("stall", "cut") for name in ("lake", "oltp")},
    **{(act, "metadata"): _NO_AIRFLOW for act in ("stall", "cut")},
    **{(act, "kubernetes"): "Kubernetes" for act in ("kill", "stall", "cut")},
    ("kill", "driver"): "(?i:driver)",
    ("kill", "task"): _ENDED,
    ("kill", "airflow-scheduler"): _ENDED,
    ("kill", "airflow-triggerer"): rf"(?i:triggerer)|{_ENDED}",
    ("kill", "airflow-api-server"): _NO_AIRFLOW,
    # no task needs it
    ("kill", "airflow-dag-processor"): r"(?!)",
}


def says(one: Schedule, log: str, schedulers: str = "") -> bool:
    """:param log: of a try that failed while this was at fault.
    :param schedulers: what the scheduler wrote meanwhile, if it died: its executor's processes, which write the tries'
        logs, go with it, and such a log ends without an error.
    """
    if (one.act, one.victim) == ("kill", "postgres") and _RAISED not in log and _NO_DATABASE in schedulers:
        return True
    return re.search(_SAYS[one.act, one.victim], error_of(log)) is not None


def error_of(log: str) -> str:
    """What ended the try: its error, or all that there is of one that was ended from outside."""
    return log.rpartition(_RAISED)[2]
