"""DAG runs of agents: of DAGs that their authors tagged ``agents``, and of no others.

A run's id is made from the agent's name and a key that the agent chose. So the same call twice is one run. This module
uses Airflow's models and runs in the API server, which has its database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from trilake.agents.refusals import CallError, plain
from trilake.endpoints import PostgresEndpoint
from trilake.postgres.locks import LockSpace, hold_lock

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.serialization.definitions.dag import SerializedDAG
    from sqlalchemy.orm import Session

TAG = "agents"
POOL = "agents"
POOL_SLOTS = 2
MAX_ACTIVE = 2
MAX_AN_HOUR = 20
MAX_LOG_LINES = 50
_MAX_LINE = 500  # characters of a line of a log
_MAX_RESULT = 2_000  # characters of what a task returned
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_OPEN = ("queued", "running")


@dataclass(frozen=True)
class Startable:
    """A DAG that agents may start.

    :param parameters: a JSON Schema for each parameter, with its default.
    """

    name: str
    about: str
    parameters: Mapping[str, Any]
    paused: bool


@dataclass(frozen=True)
class RunState:
    """:param run: the run's id, for the tools `status` and `cancel`.
    :param state: queued, running, success or failed.
    :param tasks: the state of each task that was started.
    :param result: what the last tasks returned, by task.
    :param failed: the task that failed first, and the end of its log, if it was asked for.
    """

    run: str
    what: str
    state: str
    began_at: str | None = None
    ended_at: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, Any] | None = None

    @property
    def open(self) -> bool:
        return self.state in _OPEN


def run_id(agent: str, key: str) -> str:
    """:raises CallError: the key is not valid."""
    if not _KEY.fullmatch(key):
        raise CallError("bad_key", f"{key[:60]!r} is not a valid key.",
                        hint="Choose up to 40 lower-case letters, digits and -, such as delays-2013-02.")  # fmt: skip
    return f"agent.{agent}.{key}"


class Runs:
    """:param lake: the database that holds the lock of each agent, so that limits hold for several API servers."""

    def __init__(self, lake: PostgresEndpoint) -> None:
        self._lake = lake

    def startable(self) -> list[Startable]:
        """All DAGs that agents may start, by name."""
        from airflow.models.dag import DagModel, DagTag
        from airflow.utils.session import create_session
        from sqlalchemy import select

        found = []
        with create_session() as session:
            tagged = select(DagModel).join(DagTag, DagTag.dag_id == DagModel.dag_id).where(DagTag.name == TAG)
            for model in session.scalars(tagged.where(~DagModel.is_stale).order_by(DagModel.dag_id)):
                dag = _dag(model.dag_id, session)
                found.append(Startable(model.dag_id, _about(dag), _schemas(dag), bool(model.is_paused)))
        return found

    def submit(self, agent: str, what: str, parameters: Mapping[str, Any], key: str) -> RunState:
        """Start a run, or return the one that was started with this key.

        :raises CallError: the DAG is not for agents, is paused, or does not take these parameters; the key was used for
            something else; or too many runs are active or were started within the hour.
        """
        from airflow.utils.session import create_session

        wanted = run_id(agent, key)
        with hold_lock(self._lake, LockSpace.AGENT, agent), create_session() as session:
            if existing := _find(wanted, session):
                if existing.dag_id != what or (existing.conf or {}) != dict(parameters):
                    raise CallError(
                        "key_used",
                        f"The key {key} was used for {existing.dag_id} with other parameters or for another run.",
                        hint="Choose a new key for a new run.",
                    )
                return _state(existing, session)
            dag = self._check(what, parameters, session)
            _check_limits(agent, session)
            _start(dag, wanted, agent, dict(parameters), session)
            session.commit()
            created = _find(wanted, session)
            assert created is not None  # noqa: S101 - it was committed
            return _state(created, session)

    def status(self, agent: str, run: str, *, log_lines: int = 0) -> RunState:
        """:param log_lines: also return that many lines of the end of the failed task's log.
        :raises CallError: the agent has no such run.
        """
        from airflow.utils.session import create_session

        with create_session() as session:
            return _state(_own(agent, run, session), session, log_lines=min(log_lines, MAX_LOG_LINES))

    def cancel(self, agent: str, run: str) -> RunState:
        """End a run: its tasks are stopped, and it has failed. A run that has ended stays as it is.

        :raises CallError: the agent has no such run.
        """
        from airflow.utils.session import create_session

        with create_session() as session:
            found = _own(agent, run, session)
            if str(found.state) in _OPEN:
                _cancel(found, session)
            return _state(found, session)

    def active(self, agent: str) -> list[str]:
        """The ids of an agent's active runs."""
        from airflow.utils.session import create_session

        with create_session() as session:
            return [run.run_id for run in _of_agent(agent, session) if str(run.state) in _OPEN]

    def started_within_an_hour(self, agent: str) -> int:
        from airflow.utils.session import create_session

        with create_session() as session:
            return _started_since(agent, datetime.now(UTC) - timedelta(hours=1), session)

    def _check(self, what: str, parameters: Mapping[str, Any], session: Session) -> SerializedDAG:
        from airflow.models.dag import DagModel

        model = session.get(DagModel, what)
        # a DAG that is not for agents is not told from one that does not exist
        if model is None or model.is_stale or TAG not in {tag.name for tag in model.tags}:
            names = ", ".join(item.name for item in self.startable()) or "none"
            raise CallError("unknown_run", f"{plain(what, 100)} cannot be started by agents.",
                            hint=f"These can: {names}.")  # fmt: skip
        if model.is_paused:
            raise CallError("paused", f"{what} is paused.", hint="An engineer pauses and unpauses it in Airflow.")
        if model.has_import_errors:
            raise CallError("broken", f"{what} cannot be imported.", hint="Tell its owner. Airflow has the reason.")
        dag = _dag(what, session)
        _check_parameters(dag, parameters)
        return dag


def cancel_runs(agent: str) -> list[str]:
    """End all runs of an agent that are active. Returns their ids."""
    from airflow.utils.session import create_session

    with create_session() as session:
        runs = [run for run in _of_agent(agent, session) if str(run.state) in _OPEN]
        for run in runs:
            _cancel(run, session)
        return [run.run_id for run in runs]


def ensure_pool() -> None:
    """Create the pool that the tasks of DAGs for agents use, if there is none. An operator may change its slots."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        if Pool.get_pool(POOL, session=session) is None:
            Pool.create_or_update_pool(
                POOL, POOL_SLOTS, "Tasks of runs that agents started", include_deferred=True, session=session
            )


def _check_parameters(dag: SerializedDAG, parameters: Mapping[str, Any]) -> None:
    """:raises CallError: a parameter is not declared, or its value is not valid."""
    from jsonschema import FormatChecker, ValidationError, validate

    if unknown := sorted(set(parameters) - set(dag.params)):
        raise CallError("unknown_parameter", f"{dag.dag_id} has no parameter {plain(unknown[0], 100)}.",
                        hint=f"It has {', '.join(dag.params) or 'none'}.")  # fmt: skip
    for name in dag.params:
        param = dag.params.get_param(name)
        value = parameters[name] if name in parameters else _default(param)
        if value is _MISSING:
            raise CallError("missing_parameter", f"{dag.dag_id} needs the parameter {name}.",
                            hint=param.description or "describe(name) has its schema.")  # fmt: skip
        try:
            validate(value, param.schema, format_checker=FormatChecker())
        except ValidationError as e:
            raise CallError("bad_parameter", f"{dag.dag_id}, parameter {name}: {plain(e.message, 300)}.",
                            hint=param.description or "describe(name) has its schema.") from None  # fmt: skip


_MISSING = object()


def _default(param: Any) -> Any:
    from airflow.serialization.definitions.notset import is_arg_set

    return param.value if is_arg_set(param.value) else _MISSING


def _schemas(dag: SerializedDAG) -> dict[str, Any]:
    schemas = {}
    for name in dag.params:
        param = dag.params.get_param(name)
        default = _default(param)
        schemas[name] = {
            **{key: value for key, value in param.schema.items() if key not in ("section", "description_md")},
            **({"description": param.description} if param.description else {}),
            **({} if default is _MISSING else {"default": default}),
        }
    return schemas


def _about(dag: SerializedDAG) -> str:
    """The first paragraph of the DAG's text, without its title."""
    parts = [part for part in (dag.doc_md or dag.description or "").strip().split("\n\n") if not part.startswith("#")]
    return " ".join(parts[0].split()) if parts else ""


def _dag(dag_id: str, session: Session) -> SerializedDAG:
    from airflow.models.serialized_dag import SerializedDagModel

    model = SerializedDagModel.get(dag_id, session=session)
    if model is None:
        raise CallError("unknown_run", f"Airflow has not parsed {dag_id} yet.", hint="Try again in a minute.",
                        retry=True)  # fmt: skip
    return model.dag


def _start(dag: SerializedDAG, wanted: str, agent: str, parameters: dict[str, Any], session: Session) -> None:
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    dag.create_dagrun(
        run_id=wanted,
        logical_date=None,
        data_interval=None,
        run_after=datetime.now(UTC),
        conf=parameters,
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.REST_API,
        triggering_user_name=agent,
        state=DagRunState.QUEUED,
        session=session,
    )


def _check_limits(agent: str, session: Session) -> None:
    active = [run.run_id for run in _of_agent(agent, session) if str(run.state) in _OPEN]
    if len(active) >= MAX_ACTIVE:
        raise CallError("too_many_runs", f"{len(active)} runs of {agent} are active: {', '.join(active)}.",
                        hint="Wait until one has ended, or cancel one.", retry=True)  # fmt: skip
    started = _started_since(agent, datetime.now(UTC) - timedelta(hours=1), session)
    if started >= MAX_AN_HOUR:
        raise CallError("too_many_runs", f"{agent} has started {started} runs within the last hour.",
                        hint=f"At most {MAX_AN_HOUR} may be started in an hour.", retry=True)  # fmt: skip


def _of_agent(agent: str, session: Session) -> list[DagRun]:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    mine = DagRun.run_id.startswith(f"agent.{agent}.", autoescape=True)
    return list(session.scalars(select(DagRun).where(mine, DagRun.state.in_(_OPEN)).order_by(DagRun.queued_at)))


def _started_since(agent: str, moment: datetime, session: Session) -> int:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import func, select

    mine = DagRun.run_id.startswith(f"agent.{agent}.", autoescape=True)
    return int(session.scalar(select(func.count()).where(mine, DagRun.queued_at >= moment)) or 0)


def _find(wanted: str, session: Session) -> DagRun | None:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    found: DagRun | None = session.scalar(select(DagRun).where(DagRun.run_id == wanted).limit(1))
    return found


def _own(agent: str, run: str, session: Session) -> DagRun:
    """:raises CallError: the agent has no such run. Others' runs are not told from runs that do not exist."""
    found = _find(run, session) if run.startswith(f"agent.{agent}.") else None
    if found is None:
        raise CallError("no_run", f"{agent} has no run {plain(run, 100)}.", hint="submit() returns a run's id.")
    return found


def _cancel(run: DagRun, session: Session) -> None:
    from airflow.api.common.mark_tasks import set_dag_run_state_to_failed

    set_dag_run_state_to_failed(dag=_dag(run.dag_id, session), run_id=run.run_id, commit=True, session=session)
    session.commit()
    session.refresh(run)


def _state(run: DagRun, session: Session, *, log_lines: int = 0) -> RunState:
    tasks = sorted(
        run.get_task_instances(session=session), key=lambda task: (task.start_date is None, str(task.start_date))
    )
    failed = next((task for task in tasks if str(task.state) == "failed"), None)
    return RunState(
        run=run.run_id,
        what=run.dag_id,
        state=str(run.state),
        began_at=_time(run.start_date),
        ended_at=_time(run.end_date),
        tasks={task.task_id: str(task.state) for task in tasks if task.state},
        result=_results(run, tasks, session) if str(run.state) == "success" else {},
        failed=None
        if failed is None
        else {"task": failed.task_id, **({"log": _last_lines(failed, log_lines)} if log_lines else {})},
    )


def _results(run: DagRun, tasks: list[TaskInstance], session: Session) -> dict[str, Any]:
    """What the tasks that no other task follows returned."""
    dag = _dag(run.dag_id, session)
    leaves = {task.task_id for task in dag.tasks if not task.downstream_task_ids}
    results = {}
    for task in tasks:
        if task.task_id in leaves and (value := task.xcom_pull(task_ids=task.task_id, session=session)) is not None:
            results[task.task_id] = value if len(str(value)) <= _MAX_RESULT else plain(str(value), _MAX_RESULT)
    return results


def _last_lines(task: TaskInstance, lines: int) -> list[str]:
    from airflow.utils.log.log_reader import TaskLogReader

    stream, _ = TaskLogReader().read_log_chunks(task, task.try_number, {"end_of_log": False})
    told = [text for message in stream for text in _texts(message)]
    return [plain(line, _MAX_LINE) for line in told[-lines:]]


def _texts(message: Any) -> Iterator[str]:
    event = str(getattr(message, "event", message))
    if event.startswith("::"):
        return
    yield from event.splitlines()
    for error in (getattr(message, "model_extra", None) or {}).get("error_detail") or ():
        yield f"{error.get('exc_type')}: {error.get('exc_value')}"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
