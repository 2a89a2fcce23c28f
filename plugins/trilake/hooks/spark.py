"""Asynchronous access to the SparkApplications of one namespace, for the operator and its trigger."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity
from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from kubernetes_asyncio.client import CoreV1Api, CustomObjectsApi
from kubernetes_asyncio.client.exceptions import ApiException

from trilake.errors import TrilakeError, UnreachableError
from trilake.hooks.submission import Submission
from trilake.hooks.task_instance import INSTANCE_LABEL
from trilake.spark.application import API_GROUP, API_VERSION, NAMESPACE, PLURAL, ApplicationState

DRIVER_CONTAINER = "spark-kubernetes-driver"

# The token of the try that may delete the application. A try that adopts an application writes its own token.
OWNER = "trilake/owner"
# Digest of an application's inputs; an application with the same inputs can be adopted.
INPUTS = "trilake/inputs"
# How far the driver's log was copied to the task's log: the time of the last line.
LOG_READ = "trilake/log-read"
# The Spark operator sets this label on every pod of an application.
_APPLICATION_LABEL = f"{API_GROUP}/app-name"

# A pod has 30 s to stop, and the Spark operator needs some more. If it takes longer, a person must look at it.
GONE_SECONDS = 120.0
_GONE_POLL_SECONDS = 0.5
# About 15 s in total, which is enough for a restart of the API server.
_ATTEMPTS = 6
_CHUNK = 64 * 1024
_TAIL_LINES = 30
# Lines read before Java's stack frames are removed: an exception with its causes has hundreds of them.
_RAW_TAIL_LINES = 1000

_TRANSIENT = (429, 500, 502, 503, 504)
_LOG_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) (?P<text>.*)", re.DOTALL)

# Parts that are left out of an error: Java's stack frames, log lines, and Kubernetes' second copy of its message.
_FRAME = re.compile(r"\s+(at [^\s(]+\(.*\)|\.\.\. \d+ more)$")
_LOGGED = re.compile(r"\d\d/\d\d/\d\d [\d:]+ (INFO|WARN) |Using Spark's default log4j profile|Setting Spark log level")
_REPEATED = re.compile(r"\. Received status: Status\(.*")

Result = TypeVar("Result")


@dataclass
class SparkSubmission(Submission):
    """One application that a task has submitted.

    :param done: the task has read its result.
    """

    name: str = ""
    namespace: str = ""
    done: bool = False


class KubernetesError(TrilakeError):
    """Kubernetes refused a request. The message has its reason."""


def refusal(error: ApiException) -> str:
    """Why the API server, a quota or a webhook refused a request: the message without the rest of the response."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ApiException):
        return error.status in _TRANSIENT
    return isinstance(error, (ClientError, TimeoutError, OSError))


class SparkApplicationHook(AsyncKubernetesHook):
    """Creates, finds, adopts, reads and deletes SparkApplications. It repeats requests after transient errors.

    :param kubernetes_conn_id: the connection. Its extra has the namespace, unless `namespace` is set.
    :param connection_extras: the extra fields of the connection, if already read. Then they are not read from Airflow.
    """

    def __init__(
        self,
        kubernetes_conn_id: str = "kubernetes_default",
        *,
        namespace: str | None = None,
        connection_extras: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(conn_id=kubernetes_conn_id, connection_extras=connection_extras)
        self._namespace = namespace

    async def find_namespace(self) -> str:
        """The namespace of the applications."""
        return str(self._namespace or await self._get_field("namespace") or NAMESPACE)  # type: ignore[no-untyped-call]

    async def _ask(self, request: Callable[[Any], Awaitable[Result]]) -> Result:
        """Sends a request, and repeats it after transient errors.

        :raises UnreachableError: the API server does not answer, also after `_ATTEMPTS` attempts.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=8),
            retry=tenacity.retry_if_exception(is_transient),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    async with self.get_conn() as connection:
                        return await request(connection)
        except ApiException:
            raise
        except (ClientError, TimeoutError, OSError) as e:
            raise UnreachableError(
                f"The Kubernetes API of connection {self.conn_id} does not answer ({type(e).__name__}: {e}).",
                hint="Check that it runs: `trilake status` on a laptop, `kubectl get nodes` on its host.",
            ) from e
        raise AssertionError("tenacity either returns or raises")

    async def _of_applications(self, method: str, *arguments: Any, **options: Any) -> Any:
        namespace = await self.find_namespace()

        async def request(connection: Any) -> Any:
            call = getattr(CustomObjectsApi(connection), f"{method}_namespaced_custom_object")
            return await call(API_GROUP, API_VERSION, namespace, PLURAL, *arguments, **options)

        return await self._ask(request)

    # --- applications

    async def get(self, name: str) -> dict[str, Any] | None:
        """The application, or None if there is none of that name."""
        try:
            application: dict[str, Any] = await self._of_applications("get", name)
        except ApiException as e:
            if e.status == 404:
                return None
            raise
        return application

    async def find(self, selector: str) -> list[dict[str, Any]]:
        """The applications whose labels `selector` selects."""
        applications: list[dict[str, Any]] = (await self._of_applications("list", label_selector=selector))["items"]
        return applications

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Creates the application. Returns None if another application has its name.

        If the response to an earlier request was lost, it returns the application that this request created.

        :raises KubernetesError: Kubernetes refused it: a missing permission, a quota, the operator's webhook.
        """
        name = manifest["metadata"]["name"]
        try:
            created: dict[str, Any] = await self._of_applications("create", manifest)
        except ApiException as e:
            if e.status != 409:
                raise KubernetesError(
                    f"Kubernetes refuses SparkApplication {name}: {refusal(e)}.",
                    hint=f"Check the namespace's quota and the permissions of connection {self.conn_id}.",
                ) from None
            existing = await self.get(name)
            if existing and _annotation(existing, OWNER) == _annotation(manifest, OWNER):
                return existing
            return None
        return created

    async def adopt(self, application: Mapping[str, Any], owner: str) -> bool:
        """Sets the owner, so that the former owner no longer deletes it. False if it has changed or is gone."""
        metadata = application["metadata"]
        change = {"metadata": {"annotations": {OWNER: owner}, "resourceVersion": metadata["resourceVersion"]}}
        return await self._patch(metadata["name"], change)

    async def note_log_read(self, name: str, moment: str) -> bool:
        """Records how far the driver's log was read."""
        return await self._patch(name, {"metadata": {"annotations": {LOG_READ: moment}}})

    async def _patch(self, name: str, change: dict[str, Any]) -> bool:
        try:
            await self._of_applications("patch", name, change, _content_type="application/merge-patch+json")
        except ApiException as e:
            if e.status in (404, 409):
                return False
            raise
        return True

    async def end(
        self, name: str, *, owner: str | None = None, wait: bool = True, seconds: float = GONE_SECONDS
    ) -> bool:
        """Deletes an application if it exists. False if it belongs to another owner.

        :param owner: delete it only if it belongs to this owner.
        :param wait: wait until its pods are gone.
        :raises TrilakeError: the application or a pod still exists after `seconds`.
        """
        until = time.monotonic() + seconds
        while (application := await self.get(name)) is not None:
            metadata = application["metadata"]
            if owner is not None and _annotation(application, OWNER) != owner:
                return False
            if "deletionTimestamp" in metadata:
                break
            # Another try may have adopted it since our read. Then its version differs, and the delete fails.
            seen = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
            try:
                await self._of_applications("delete", name, body={"preconditions": seen})
                break
            except ApiException as e:
                if e.status not in (404, 409):
                    raise
            if time.monotonic() > until:
                raise TrilakeError(
                    f"SparkApplication {name} could not be deleted, because it changed at every attempt.",
                    hint="Try again.",
                )
        if wait:
            await self._await_nothing(lambda: self._left_of(name), until)
        return True

    async def await_no_pods(self, selector: str, *, others_than: str = "", seconds: float = GONE_SECONDS) -> None:
        """Waits until no pod that `selector` selects runs, except pods of application `others_than`.

        :raises TrilakeError: a pod still runs after `seconds`.
        """

        async def running_pods() -> list[str]:
            return [
                pod.metadata.name
                for pod in await self.pods(selector)
                if pod.status.phase not in ("Succeeded", "Failed")
                and pod.metadata.labels.get(_APPLICATION_LABEL) != others_than
            ]

        await self._await_nothing(running_pods, time.monotonic() + seconds)

    async def _left_of(self, name: str) -> list[str]:
        application = [f"SparkApplication {name}"] if await self.get(name) is not None else []
        return application + [pod.metadata.name for pod in await self.pods(f"{_APPLICATION_LABEL}={name}")]

    async def _await_nothing(self, look: Callable[[], Awaitable[list[str]]], until: float) -> None:
        while left := await look():
            if time.monotonic() > until:
                raise TrilakeError(
                    f"These objects were deleted, but they still exist: {', '.join(left)}.",
                    hint="Run `kubectl describe` on them. A pod remains while its node does not answer.",
                )
            await asyncio.sleep(_GONE_POLL_SECONDS)

    # --- pods

    async def pods(self, selector: str) -> list[Any]:
        """The pods whose labels `selector` selects."""
        namespace = await self.find_namespace()

        async def request(connection: Any) -> Any:
            return await CoreV1Api(connection).list_namespaced_pod(namespace, label_selector=selector)

        return list((await self._ask(request)).items)

    async def pod_problems(self, name: str) -> list[str]:
        """Why pods do not start or have ended, in the words of Kubernetes: waiting and ended containers, warnings."""
        namespace, problems = await self.find_namespace(), []
        for pod in await self.pods(f"{_APPLICATION_LABEL}={name}"):
            for status in pod.status.container_statuses or ():
                waiting, ended = status.state.waiting, status.state.terminated
                if waiting and waiting.reason not in ("ContainerCreating", "PodInitializing"):
                    problems.append(f"{pod.metadata.name}: {waiting.reason}: {waiting.message or ''}".rstrip(": "))
                if ended and ended.exit_code:
                    problems.append(f"{pod.metadata.name}: {ended.reason}, exit code {ended.exit_code}")
            if pod.status.phase == "Failed" and pod.status.reason:  # reasons of the pod itself: Evicted, NodeLost
                problems.append(f"{pod.metadata.name}: {pod.status.reason}: {pod.status.message or ''}".rstrip(": "))
            if pod.status.phase == "Pending":
                problems += await self._warnings(namespace, pod.metadata.name)
        return list(dict.fromkeys(problems))

    async def _warnings(self, namespace: str, pod: str) -> list[str]:
        async def request(connection: Any) -> Any:
            selector = f"involvedObject.name={pod},type=Warning"
            return await CoreV1Api(connection).list_namespaced_event(namespace, field_selector=selector)

        events = (await self._ask(request)).items
        return [f"{pod}: {event.reason}: {event.message}" for event in events[-3:]]

    # --- the driver's log

    async def log_lines(self, pod: str, after: str = "") -> AsyncIterator[tuple[str, str]]:
        """Time and text of the lines that are later than the time `after`. Nothing if there is no log yet.

        An incomplete last line is not returned; a later call returns it.
        """
        namespace = await self.find_namespace()
        query = [("container", DRIVER_CONTAINER), ("timestamps", "true"), *([("sinceTime", after)] if after else [])]
        async with self.get_conn() as connection:
            # The client's own method only has sinceSeconds. That depends on both machines' clocks.
            answer = await connection.call_api(
                "/api/v1/namespaces/{namespace}/pods/{name}/log",
                "GET",
                path_params={"namespace": namespace, "name": pod},
                query_params=query,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
            )
            if answer.status in (400, 404):
                return  # the pod has no container yet, or no longer
            if answer.status >= 400:
                raise ApiException(status=answer.status, reason=answer.reason)
            incomplete = b""
            async for chunk in answer.content.iter_chunked(_CHUNK):
                *lines, incomplete = (incomplete + chunk).split(b"\n")
                for line in lines:
                    match = _LOG_LINE.match(line.decode(errors="replace"))
                    if match and match["time"] > after:
                        yield match["time"], match["text"]

    async def last_lines(self, pod: str) -> list[str]:
        """The last lines of the driver's log without Java's stack frames. Empty if there is no log."""
        namespace = await self.find_namespace()

        async def request(connection: Any) -> str:
            read = CoreV1Api(connection).read_namespaced_pod_log
            return str(await read(pod, namespace, container=DRIVER_CONTAINER, tail_lines=_RAW_TAIL_LINES))

        try:
            return without_frames(await self._ask(request))[-_TAIL_LINES:]
        except ApiException:
            return []


def newest(applications: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The latest application of each task instance, and all applications that no task has created; sorted by name."""
    latest: dict[str, Mapping[str, Any]] = {}
    for application in sorted(applications, key=lambda a: str(a["metadata"].get("creationTimestamp") or "")):
        metadata = application["metadata"]
        latest[(metadata.get("labels") or {}).get(INSTANCE_LABEL) or metadata["name"]] = application
    return sorted(latest.values(), key=lambda a: str(a["metadata"]["name"]))


def log_read(application: Mapping[str, Any]) -> str:
    """How far the driver's log was read, as `note_log_read` wrote it."""
    return _annotation(application, LOG_READ)


def driver_pod(application: Mapping[str, Any]) -> str:
    """The name of the driver's pod; empty if it does not exist yet."""
    status = application.get("status") or {}
    return str((status.get("driverInfo") or {}).get("podName") or "")


def error_message(application: Mapping[str, Any]) -> str:
    """Why an application failed, from the operator's message. The message may have all of spark-submit's output; only
    the errors are returned.
    """
    state = (application.get("status") or {}).get("applicationState") or {}
    errors: list[str] = []
    for line in without_frames(str(state.get("errorMessage") or "")):
        text = _REPEATED.sub("", line)
        if not _LOGGED.match(text) and not any(text.removeprefix("Caused by: ") in before for before in errors):
            errors.append(text)
    return "\n".join(errors)


def without_frames(text: str) -> list[str]:
    """A log's lines without Java's stack frames."""
    return [line for line in text.splitlines() if not _FRAME.fullmatch(line)]


def is_adoptable(application: Mapping[str, Any], name: str, inputs: str) -> bool:
    """Whether the application has this name and these inputs, and has not failed and is not being deleted."""
    metadata = application["metadata"]
    return bool(
        metadata["name"] == name
        and "deletionTimestamp" not in metadata
        and _annotation(application, INPUTS) == inputs
        and ApplicationState.of(application)
        not in (ApplicationState.FAILED, ApplicationState.FAILING, ApplicationState.SUBMISSION_FAILED)
    )


def _annotation(application: Mapping[str, Any], key: str) -> str:
    return str((application["metadata"].get("annotations") or {}).get(key) or "")
