"""Runs statements on ClickHouse. It records each one before it sends it, so that none is run twice by accident."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from trilake.clickhouse import queries
from trilake.clickhouse.cluster import ClickHouseError, Cluster, error_of
from trilake.clickhouse.exact import bound_in_utc
from trilake.clickhouse.queries import QueryMetrics, QueryState, Seen
from trilake.clickhouse.reading import UnreadableValueError
from trilake.clickhouse.sql import (
    first_word,
    has_result,
    parameter_names,
    refuse_statement,
    split_statements,
)
from trilake.endpoints import CLICKHOUSE_CONNECTION, ClickHouseEndpoint
from trilake.errors import ConfigurationError, TrilakeError
from trilake.hooks.clickhouse import ClickHouseHook, log_comment
from trilake.hooks.submission import Submission, SubmissionStore
from trilake.hooks.task_instance import TaskInstance, as_comment, joined
from trilake.operators.project import ProjectOperator
from trilake.operators.xcom_values import NotHeldError, as_xcom
from trilake.triggers.clickhouse import ClickHouseQueryTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from clickhouse_connect.driver.client import Client

# Where a task instance keeps its submission between tries
STATE_KEY = "clickhouse_query"
# Limit of a result in XCom, which is a row of Airflow's database.
MAX_RESULT_ROWS = 1_000
# A statement that finishes within this time needs no trigger.
_SHORT_SECONDS = 5.0
_KILL_SECONDS = 20.0
_LABEL_CHARACTERS = 120
# How a submission has ended. Given up: a person must look at it. If they clear the task, all statements run again.
_SUCCEEDED, _GIVEN_UP = "succeeded", "given up"
# Errors before a query has an entry in the query log: wrong credentials or address, invalid SQL, too many queries.
_NEVER_BEGAN = {62, 192, 193, 194, 195, 202, 516}


@dataclass
class QuerySubmission(Submission):
    """What a task's tries have sent to ClickHouse.

    :param max_tries: the task instance's value in Airflow. It only grows when a person clears the task.
    :param query_id: the query id of the statement that was sent last; empty: no statement is running.
    :param statement: the number of that statement, from 0.
    :param since: when that statement was sent, in seconds since 1970.
    :param done: ``query_id`` and ``metrics`` of each statement that has finished, in order.
    :param end: how the submission has ended; empty: it has not ended.
    """

    max_tries: int = 0
    query_id: str = ""
    statement: int = 0
    since: float = 0.0
    done: list[dict[str, Any]] = field(default_factory=list)
    end: str = ""


class QueryFailedError(ClickHouseError, AirflowException):
    """A query ended with an error, or was killed."""


class UnknownOutcomeError(TrilakeError, AirflowFailException):
    """It is unknown whether a statement has run, and the task is not idempotent. The task is not retried."""


class PartlyWrittenError(QueryFailedError, AirflowFailException):
    """A statement failed after it had written rows, and the task is not idempotent. The task is not retried."""


class ClickHouseOperator(ProjectOperator):
    """Runs one statement or several on ClickHouse, in order.

    XCom has ``rows`` (of the last statement, if it returns any), ``query_ids``, ``read_rows``, ``read_bytes``,
    ``written_rows``, ``written_bytes``, ``seconds`` (sums), and ``memory_bytes`` (the largest). Bytes are uncompressed.

    Row values are converted to what XCom can hold, exactly: NaN, infinities, -0.0 and floats of 1e16 or more are texts
    such as ``nan``, ``-inf`` and ``1e+16``; so are integers of more than 64 bits, IP addresses, times and keys of maps;
    a DateTime has a time zone, UTC unless its type names another; a Decimal or a DateTime with more digits than XCom
    keeps is a text; bytes are a text if they are UTF-8. Other bytes, and texts with NUL bytes, are refused.

    The operator records a query's id before it sends the query. The next try continues where the last one stopped. It
    does not send a finished statement again. It looks for the last query on every host:

    - The query runs: the try waits for it. A query that only reads is killed and sent again.
    - It has finished: the try sends the next statement.
    - It failed before it had written a row: the try sends it again.
    - It had written rows, or no host knows the query: the task fails and is not retried. If the task is `idempotent`,
      all statements run again from the first one instead.

    Clear the task to run all statements again.

    :param sql: the statements, separated by semicolons; or a file of them below ``sql/``; or a list; templated.
    :param parameters: bound on the server, as ``{name:Type}``; templated. A datetime without a time zone is in UTC.
    :param settings: server settings for each statement.
    :param database: overrides the database of the connection.
    :param idempotent: all statements may run again from the first one, no matter which of them have run.
    :param deferrable: wait in the triggerer for statements that return no rows and take longer than some seconds.
    :param poll_interval: seconds between two checks of a query that the task waits for.
    """

    template_fields: Sequence[str] = ("sql", "parameters", "settings", "database", "clickhouse_conn_id")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json", "settings": "json"}
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        sql: str | Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        database: str | None = None,
        clickhouse_conn_id: str = CLICKHOUSE_CONNECTION,
        idempotent: bool = False,
        deferrable: bool = True,
        poll_interval: float = 2,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.sql = sql
        self.parameters = parameters
        self.settings = settings
        self.database = database
        self.clickhouse_conn_id = clickhouse_conn_id
        self.idempotent = idempotent
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self._servers: ClickHouseEndpoint | None = None
        self._submission: QuerySubmission | None = None
        self._killed = False

    # --- the task

    def execute(self, context: Context) -> Any:
        """Runs the statements, or continues what an earlier try has started.

        :raises QueryFailedError: a statement was refused, failed or was killed.
        :raises PartlyWrittenError: a statement failed after it had written rows.
        :raises UnknownOutcomeError: it is unknown whether an earlier try's statement has run.
        :raises ConfigurationError: there is no statement, or no statement uses a given parameter; nothing was sent.
        """
        statements = self._prepare(context)
        earlier = self._store.read()
        self._submission = QuerySubmission(
            number=earlier.number + 1 if earlier else 1,
            owner=uuid.uuid4().hex,
            inputs=self._inputs(statements),
            max_tries=context["ti"].max_tries,
            since=time.time(),
        )
        if earlier and earlier.end != _GIVEN_UP:
            self._take_over(context, earlier, statements)
        return self._go_on(context, statements)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Continues after the wait in the triggerer."""
        statements = self._prepare(context)
        self._submission = self._store.read() or QuerySubmission(**event["record"])
        if self._submission.query_id != event["query_id"]:
            raise QueryFailedError(f"Another try of task {self.task_id} has taken over. This try stops.")
        if event["state"] == "unreachable":
            raise TrilakeError(f"The state of query {event['query_id']} cannot be read. {event['error']}")
        self._settle(Seen.from_dict(event))
        return self._go_on(context, statements)

    def on_kill(self) -> None:
        """Kills this submission's query on every host, unless another try has taken it over."""
        # After the signal handler, `execute` continues. This flag stops it from sending the next statement.
        self._killed = True
        submission, servers = self._submission, self._servers
        if submission is None or not submission.query_id or servers is None:
            return
        query_id = submission.query_id
        if not self._store.is_current(submission):
            self.log.info("Query %s belongs to another try now; it is not killed", query_id)
            return
        # The kill does not have the task's log_comment: with it, the kill would be found as a query of the task. It has
        # its own client, because the task's client is in use.
        with Cluster(servers) as cluster:
            if queries.kill(cluster, query_id, seconds=_KILL_SECONDS):
                self.log.info("Query %s was killed with its task", query_id)

    # --- statements

    def _prepare(self, context: Context) -> list[str]:
        self._hook = ClickHouseHook(
            clickhouse_conn_id=self.clickhouse_conn_id, database=self.database, context=context, log_sql=False
        )
        # Read here, because on_kill cannot ask Airflow for a connection.
        self._servers = self._hook.servers
        self._store = SubmissionStore(context, STATE_KEY, QuerySubmission)
        texts = [self.sql] if isinstance(self.sql, str) else self.sql
        statements = [statement for text in texts for statement in split_statements(text)]
        if not statements:
            raise ConfigurationError(
                f"Task {self.task_id} has no statement.", hint="Set sql to a statement or to a file with statements."
            )
        for number, statement in enumerate(statements, start=1):
            refuse_statement(statement, number, f"task {self.task_id}")
        used = set().union(*map(parameter_names, statements))
        if unused := set(self.parameters or {}) - used:
            raise ConfigurationError(
                f"No statement of task {self.task_id} uses the parameters {', '.join(sorted(unused))}.",
                hint="Write a parameter in the statement as {name:Type}, or remove it from parameters.",
            )
        return statements

    def _go_on(self, context: Context, statements: Sequence[str]) -> Any:
        rows = None
        for number in range(len(self._mine.done), len(statements)):
            rows = self._run(context, number, statements[number])
        self._write_down(end=_SUCCEEDED)
        done = self._mine.done
        result = {name: sum(query["metrics"][name] for query in done) for name in (*queries.COUNTS, "seconds")}
        result["memory_bytes"] = max(query["metrics"]["memory_bytes"] for query in done)
        result["query_ids"] = [query["query_id"] for query in done]
        return result if rows is None else {**result, "rows": rows}

    def _run(self, context: Context, number: int, statement: str) -> list[list[Any]] | None:
        submission = self._mine
        if number and not self._store.is_current(submission):
            raise QueryFailedError(f"Another try of task {self.task_id} has taken over. This try stops.")
        # Connect first: if no server answers, the statement must not be recorded as sent.
        client = self._hook.get_client()
        submission.statement, submission.since = number, time.time()
        submission.query_id = self._query_id(context, number)
        # Recorded before it is sent, so that a later try knows which query to look for.
        self._write_down()
        if self._killed:
            client.close()
            raise QueryFailedError(f"Task {self.task_id} was killed before statement {number + 1} was sent.")
        comment = {**log_comment(context), "submission": submission.owner}
        settings = {
            "log_comment": as_comment(comment),
            **(self.settings or {}),
            "query_id": submission.query_id,
        }
        names = parameter_names(statement)
        bound = {name: value for name, value in (self.parameters or {}).items() if name in names}
        parameters = bound_in_utc(statement, bound)
        self.log.info("Statement %s of this task is query %s", number + 1, submission.query_id)
        try:
            if has_result(statement):
                rows, metrics = self._read(client, statement, parameters, settings)
            else:
                rows, metrics = None, self._write(client, statement, parameters, settings)
        except ClickHouseError as e:
            if e.code and (seen := self._seen_failed(e, statement)):
                self._settle(seen)
            raise
        self._settle(Seen(QueryState.FINISHED, self._logged(metrics)))
        return rows

    def _read(
        self, client: Client, statement: str, parameters: dict[str, Any], settings: dict[str, Any]
    ) -> tuple[list[list[Any]], QueryMetrics]:
        # The server refuses a larger result.
        limits = {"max_result_rows": MAX_RESULT_ROWS, "result_overflow_mode": "throw"}
        settings = limits | self._hook.identify(settings)
        try:
            if first_word(statement) == "CHECK":
                # The driver takes CHECK for a command without rows, and returns its text in one piece.
                lines = client.raw_query(statement, parameters=parameters, settings=settings, fmt="JSONCompactEachRow")
                return [json.loads(line) for line in lines.splitlines()], QueryMetrics()
            result = client.query(statement, parameters=parameters, settings=settings)
        except Exception as e:
            raise error_of(self._hook.where, e) from None
        finally:
            client.close()
        rows: list[list[Any]] = []
        for number, row in enumerate(islice(result.result_rows, MAX_RESULT_ROWS), start=1):
            rows.append([])
            for name, value in zip(result.column_names, row, strict=True):
                try:
                    rows[-1].append(as_xcom(value))
                except NotHeldError as e:
                    raise UnreadableValueError(f"Column {name}, row {number}: {e}.", hint=e.hint) from None
        return rows, QueryMetrics.of_summary(result.summary)

    def _write(
        self, client: Client, statement: str, parameters: dict[str, Any], settings: dict[str, Any]
    ) -> QueryMetrics:
        """Sends the statement. Waits here for its end, or in the triggerer if it takes longer."""
        identity = self._hook.identify(settings)
        if self.deferrable:
            # After the task defers, no client reads progress headers; then the server would cancel the query.
            identity["send_progress_in_http_headers"] = 0
        outcome: list[Any] = []

        def send() -> None:
            try:
                outcome.append(client.command(statement, parameters=parameters, settings=identity))
            except Exception as e:
                outcome.append(error_of(self._hook.where, e))
            finally:
                client.close()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(_SHORT_SECONDS if self.deferrable else None)
        while sender.is_alive():
            with Cluster(self._hook.servers) as cluster:
                # Defer only when the server runs the query: before that it may not have received the statement.
                if queries.look(cluster, self._mine.query_id, since=self._mine.since).state is QueryState.RUNNING:
                    self._defer()
            sender.join(self.poll_interval)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return QueryMetrics.of_summary(getattr(outcome[0], "summary", {}))

    def _defer(self) -> None:
        submission = self._mine
        self.log.info("Query %s still runs; the task waits for it in the triggerer", submission.query_id)
        trigger = ClickHouseQueryTrigger(
            clickhouse_conn_id=self.clickhouse_conn_id,
            query_id=submission.query_id,
            since=submission.since,
            poll_interval=self.poll_interval,
            record=submission.to_dict(),
        )
        self.defer(trigger=trigger, method_name="execute_complete")

    # --- what an earlier try has left

    def _take_over(self, context: Context, earlier: QuerySubmission, statements: Sequence[str]) -> None:
        """Finds the state of the last query of an earlier try, and continues from there."""
        mine = self._mine
        cleared = mine.max_tries > earlier.max_tries
        same = not cleared and earlier.inputs == mine.inputs
        if same:
            mine.done = list(earlier.done)
        # If this condition is false, no query is running: all statements are done and the try died before it reported
        # that; or the worker was lost between two statements; or the last statement failed and wrote nothing.
        if earlier.query_id and not earlier.end and len(earlier.done) <= earlier.statement:
            reads = same and has_result(statements[earlier.statement])
            self._look_after(context, earlier, waited_for=same and not reads, matters=not (reads or cleared))
        if len(mine.done) == len(statements) and has_result(statements[-1]):
            mine.done.pop()  # its rows were lost with that try
        self._write_down()  # from now on this try owns the submission

    def _look_after(self, context: Context, earlier: QuerySubmission, *, waited_for: bool, matters: bool) -> None:
        """Handles the query of an earlier try.

        :param waited_for: wait for the query if it runs; otherwise kill it.
        :param matters: the outcome of the query must be known before the next statement is sent.
        """
        query_id, since, mine = earlier.query_id, earlier.since, self._mine
        with Cluster(self._hook.servers, comment=log_comment(context)) as cluster:
            seen = queries.look_for_sure(cluster, query_id, since=since)
            self.log.info("Query %s of an earlier try is %s", query_id, seen.state)
            if seen.state is QueryState.RUNNING and not waited_for:
                queries.kill(cluster, query_id)
            if not matters or not (waited_for or seen.state is QueryState.UNKNOWN):
                return
            if seen.state in (QueryState.FAILED, QueryState.UNKNOWN) and self._may_be_sent_again(seen):
                return
            mine.statement, mine.query_id, mine.since = earlier.statement, query_id, since
            self._write_down()
            if seen.state is QueryState.RUNNING:
                if self._killed:  # on_kill ran before this try had a query, so it killed none
                    queries.kill(cluster, query_id)
                    raise QueryFailedError(f"Task {self.task_id} and its query {query_id} were killed.")
                if self.deferrable:
                    self._defer()
                seen = self._await(cluster, query_id, since)
        self._settle(seen)

    def _await(self, cluster: Cluster, query_id: str, since: float) -> Seen:
        while (seen := queries.look(cluster, query_id, since=since)).state is QueryState.RUNNING:
            time.sleep(self.poll_interval)
        return seen if seen.state is not QueryState.UNKNOWN else queries.look_for_sure(cluster, query_id, since=since)

    def _settle(self, seen: Seen) -> None:
        """Records the end of a statement.

        :raises QueryFailedError: it failed, and the next try may continue.
        :raises PartlyWrittenError: it failed after it had written rows.
        :raises UnknownOutcomeError: it is unknown whether it has run.
        """
        query_id = self._mine.query_id
        if seen.state is QueryState.FINISHED:
            self.log.info("Query %s: %s", query_id, seen.metrics)
            self._mine.done.append({"query_id": query_id, "metrics": seen.metrics.to_dict()})
            self._write_down()
            return
        unknown = seen.state is QueryState.UNKNOWN
        message = (
            f"It is unknown whether query {query_id} of task {self.task_id} has run: "
            "no host has a record of it." if unknown
            else f"Query {query_id} failed: {seen.error}"
        )  # fmt: skip
        if self._may_be_sent_again(seen):
            self._mine.query_id = ""  # it no longer runs
            self._write_down()
            raise QueryFailedError(message, code=seen.code)
        self._write_down(end=_GIVEN_UP)
        hint = "Check what it has done, then clear the task to run all statements again; or set idempotent=True."
        if unknown:
            raise UnknownOutcomeError(message, hint=hint)
        written = f"It had written {seen.metrics.written_rows} rows before, and they may still be in the table."
        raise PartlyWrittenError(f"{message} {written}", hint=hint, code=seen.code)

    def _may_be_sent_again(self, seen: Seen) -> bool:
        """Whether a failed or unknown statement may be sent again: always, if it failed before it had written a row.

        Otherwise only if the task is idempotent. Then all statements run again from the first one.
        """
        if seen.state is QueryState.FAILED and not seen.metrics.written_rows:
            return True
        if self.idempotent:
            self._mine.done = []
        return self.idempotent

    def _seen_failed(self, error: ClickHouseError, statement: str) -> Seen | None:
        """The failed query with its error and with the rows that it had written. None: this is unknown now."""
        failed = Seen(QueryState.FAILED, error=error.message, code=error.code)
        if error.code in _NEVER_BEGAN or has_result(statement):
            return failed
        try:
            with Cluster(self._hook.servers) as cluster:
                seen = queries.look_for_sure(cluster, self._mine.query_id, since=self._mine.since)
        except TrilakeError:
            return None
        return replace(failed, metrics=seen.metrics) if seen.state is QueryState.FAILED else None

    def _logged(self, metrics: QueryMetrics) -> QueryMetrics:
        """Metrics from the query log, which include memory. If it cannot be read, those of the response summary."""
        try:
            with Cluster(self._hook.servers) as cluster:
                seen = queries.look(cluster, self._mine.query_id, since=self._mine.since)
        except TrilakeError:
            return metrics
        return seen.metrics if seen.state is QueryState.FINISHED else metrics

    # --- identity

    def _query_id(self, context: Context, number: int) -> str:
        """Names the task instance, the submission, the statement and the submitter."""
        words = TaskInstance.of(context).words
        label = joined(words)[:_LABEL_CHARACTERS]
        digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]
        return f"{label}:{digest}:{self._mine.number}:{number + 1}:{self._mine.owner[:12]}"

    def _inputs(self, statements: Sequence[str]) -> str:
        inputs = [list(statements), dict(self.parameters or {}), dict(self.settings or {}), self.database]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def _mine(self) -> QuerySubmission:
        """This try's submission. It exists from the start of `execute` on."""
        if self._submission is None:
            raise RuntimeError(f"Task {self.task_id} has not started.")
        return self._submission

    def _write_down(self, *, end: str = "") -> None:
        self._mine.end = end
        self._store.write(self._mine)
