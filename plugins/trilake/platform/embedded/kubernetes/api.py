"""The API server: only the calls of Airflow's Kubernetes hook, operator and asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from trilake.platform.embedded.kubernetes import patches
from trilake.platform.embedded.kubernetes.cluster import Kind, KubernetesObjects, Record
from trilake.platform.embedded.kubernetes.configuration import ClusterConfiguration
from trilake.platform.embedded.kubernetes.controller import Controller
from trilake.platform.embedded.kubernetes.driver_log import LogQuery, follow_log, log_time, read_log
from trilake.platform.embedded.kubernetes.manifests import GROUP, KIND, PLURAL, RESOURCE, VERSION, admit
from trilake.platform.embedded.kubernetes.objects import CONTAINER, secret_object
from trilake.platform.embedded.kubernetes.selectors import field_selector, label_selector
from trilake.platform.embedded.kubernetes.status import StatusError, not_found, success

log = logging.getLogger(__name__)

_CORE = "/api/v1/namespaces/{namespace}"
_APPLICATIONS = f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{PLURAL}"
_OPEN_PATHS = ("/readyz", "/livez", "/healthz", "/version")
_KINDS = {"sparkapplications": KIND, "pods": "Pod", "events": "Event", "secrets": "Secret"}
# The Kubernetes version whose API is partly implemented here. Clients require every field.
_KUBERNETES = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0+trilake",
    "gitCommit": "none",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux",
}
_LONGEST_WATCH_SECONDS = 600
_MERGE_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_JSON_PATCH = "application/json-patch+json"

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The request handlers for one cluster's objects."""

    def __init__(self, cluster: KubernetesObjects, controller: Controller, configuration: ClusterConfiguration) -> None:
        self._cluster = cluster
        self._controller = controller
        self._configuration = configuration

    def application(self) -> Starlette:
        """The ASGI application. It starts and stops the controller."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self._controller.start()
            yield
            await self._controller.stop()

        routes = [
            *(Route(path, self._ready) for path in _OPEN_PATHS[:3]),
            Route("/version", self._version),
            self._route(_APPLICATIONS, {"GET": self._list_applications, "POST": self._create_application}),
            self._route(
                f"{_APPLICATIONS}/{{name}}",
                {"GET": self._get_application, "PATCH": self._patch_application, "DELETE": self._delete_application},
            ),
            self._route(f"{_APPLICATIONS}/{{name}}/status", {"GET": self._get_application}),
            self._route(f"{_CORE}/pods", {"GET": self._list_pods}),
            self._route(
                f"{_CORE}/pods/{{name}}", {"GET": self._get_pod, "PATCH": self._patch_pod, "DELETE": self._delete_pod}
            ),
            self._route(f"{_CORE}/pods/{{name}}/log", {"GET": self._get_log}),
            self._route(f"{_CORE}/events", {"GET": self._list_events}),
            self._route(f"{_CORE}/secrets", {"GET": self._list_secrets}),
            self._route(f"{_CORE}/secrets/{{name}}", {"GET": self._get_secret}),
        ]
        return Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={
                StatusError: _answer_refusal,
                HTTPException: self._answer_unknown,
                Exception: _answer_failure,
            },
        )

    def _route(self, path: str, handlers: Mapping[str, Handler]) -> Route:
        async def handle(request: Request) -> Response:
            self._authenticate(request)
            namespace = request.path_params["namespace"]
            if namespace != self._cluster.namespace:
                resource = request.url.path.partition("/namespaces/")[2].split("/")[1]
                raise StatusError(
                    403,
                    f'{resource} is forbidden: this user has no right in the namespace "{namespace}"',
                    kind=resource,
                )
            handler = handlers.get("GET" if request.method == "HEAD" else request.method)
            if handler is None:
                raise StatusError(405, "the server does not allow this method on the requested resource")
            return await handler(request)

        return Route(path, handle, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])

    def _authenticate(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token_matches = hmac.compare_digest(token.strip().encode(), self._configuration.token.encode())
        if scheme.lower() != "bearer" or not token_matches:
            raise StatusError(401, "Unauthorized")

    async def _answer_unknown(self, request: Request, error: Exception) -> Response:
        try:
            self._authenticate(request)
        except StatusError as e:
            return await _answer_refusal(request, e)
        if isinstance(error, HTTPException) and error.status_code != 404:
            return await _answer_refusal(request, StatusError(405, "the server does not allow this method"))
        parts = request.url.path.strip("/").split("/")
        if parts[-1] in _KINDS and "namespaces" not in parts:
            refusal = StatusError(403, f"{parts[-1]} is forbidden: this user cannot list them across all namespaces")
            return await _answer_refusal(request, refusal)
        return await _answer_refusal(request, StatusError(404, "the server could not find the requested resource"))

    # --- the server itself

    async def _ready(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _version(self, _: Request) -> Response:
        return JSONResponse(_KUBERNETES)

    # --- applications

    async def _list_applications(self, request: Request) -> Response:
        return await self._list(request, "sparkapplications")

    async def _create_application(self, request: Request) -> Response:
        document = await _body(request)
        strict = request.query_params.get("fieldValidation") == "Strict"
        application, dropped = admit(document, namespace=self._cluster.namespace, strict=strict)
        metadata = application["metadata"]
        if not metadata.get("name"):
            metadata["name"] = f"{metadata['generateName']}{time.time_ns() % 16**5:05x}"
        name = metadata["name"]
        if self._cluster.application(name):
            raise StatusError(
                409, f'{RESOURCE} "{name}" already exists', reason="AlreadyExists", kind=PLURAL, name=name
            )
        if not _is_dry_run(request):
            record = self._cluster.create(application)
            application = record.application
            self._controller.take_on(record)
        # only ten: a header line has a size limit, and clients show only a few
        warnings = {"warning": ", ".join(f'299 - "unknown field \\"{path}\\""' for path in dropped[:10])}
        return JSONResponse(application, 201, headers=warnings if dropped else None)

    async def _get_application(self, request: Request) -> Response:
        return JSONResponse(self._record(request).application)

    async def _patch_application(self, request: Request) -> Response:
        record = self._record(request)
        current = record.application
        changed = await _patched(request, current)
        admitted, _ = admit(changed, namespace=self._cluster.namespace, strict=False)
        name, metadata = record.name, current["metadata"]
        if admitted["metadata"].get("name") != name:
            raise StatusError(400, "the name of the object does not match the name on the URL")
        version = (changed.get("metadata") or {}).get("resourceVersion")
        if version not in (None, metadata["resourceVersion"]):
            raise _conflict(name)
        if admitted["spec"] != current["spec"]:
            raise StatusError(
                422,
                f'{KIND}.{GROUP} "{name}" is invalid: spec: Forbidden: the embedded platform does not change a running '
                "application; delete it and create another",
                kind=KIND,
                name=name,
            )
        if _is_dry_run(request):
            return JSONResponse({**current, "metadata": metadata | admitted["metadata"]})
        for field in ("labels", "annotations", "ownerReferences"):
            _set_or_drop(metadata, field, admitted["metadata"].get(field))
        self._cluster.save(record, "sparkapplications")
        return JSONResponse(current)

    async def _delete_application(self, request: Request) -> Response:
        record = self._record(request)
        options = await _body(request, optional=True)
        self._check_preconditions(options, record.application, record.name)
        policy = options.get("propagationPolicy") or request.query_params.get("propagationPolicy")
        if policy == "Orphan":
            raise StatusError(
                422,
                "propagationPolicy: Orphan is not supported: the embedded platform ends a driver with its application",
            )
        if _is_dry_run(request):
            return JSONResponse(success(PLURAL, record.name, record.uid))
        self._controller.delete(record, foreground=policy == "Foreground")
        return JSONResponse(success(PLURAL, record.name, record.uid))

    @staticmethod
    def _check_preconditions(options: Mapping[str, Any], document: Mapping[str, Any], name: str) -> None:
        expected = options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if expected.get(field) not in (None, document["metadata"][field]):
                raise _conflict(name)

    def _record(self, request: Request) -> Record:
        name = request.path_params["name"]
        record = self._cluster.application(name)
        if record is None:
            raise not_found(RESOURCE, name)
        return record

    # --- pods

    async def _list_pods(self, request: Request) -> Response:
        return await self._list(request, "pods")

    async def _get_pod(self, request: Request) -> Response:
        return JSONResponse(self._pod(request)[1])

    async def _patch_pod(self, request: Request) -> Response:
        record, pod = self._pod(request)
        changed = (await _patched(request, pod)).get("metadata") or {}
        if changed.get("resourceVersion") not in (None, pod["metadata"]["resourceVersion"]):
            raise _conflict(pod["metadata"]["name"])
        for field in ("labels", "annotations"):
            _set_or_drop(pod["metadata"], field, changed.get(field))
        self._cluster.save(record, "pods")
        return JSONResponse(pod)

    async def _delete_pod(self, request: Request) -> Response:
        record, pod = self._pod(request)
        self._check_preconditions(await _body(request, optional=True), pod, pod["metadata"]["name"])
        answer = JSONResponse(pod)
        self._background(self._controller.delete_pod(record))
        return answer

    async def _get_log(self, request: Request) -> Response:
        record, pod = self._pod(request)
        name, parameters = pod["metadata"]["name"], request.query_params
        if parameters.get("container") not in (None, "", CONTAINER):
            raise StatusError(400, f"container {parameters['container']} is not valid for pod {name}")
        if parameters.get("previous") == "true":
            raise StatusError(400, f'previous terminated container "{CONTAINER}" in pod "{name}" not found')
        if pod["status"]["phase"] == "Pending":
            raise StatusError(400, f'container "{CONTAINER}" in pod "{name}" is waiting to start: ContainerCreating')
        query = LogQuery(
            since=_since(parameters),
            tail_lines=_number(parameters, "tailLines"),
            timestamps=parameters.get("timestamps") in ("true", "True", "1"),
            limit_bytes=_number(parameters, "limitBytes"),
        )
        folder = record.attempt_folder
        if parameters.get("follow") in ("true", "True", "1"):
            ended = self._controller.driver_ended(record)
            return StreamingResponse(follow_log(folder, query, ended), media_type="text/plain")
        return Response(await run_in_threadpool(read_log, folder, query), media_type="text/plain")

    def _pod(self, request: Request) -> tuple[Record, dict[str, Any]]:
        name = request.path_params["name"]
        record = self._cluster.pod(name)
        if record is None or record.pod is None:
            raise not_found("pods", name)
        return record, record.pod

    # --- events and Secrets

    async def _list_events(self, request: Request) -> Response:
        return await self._list(request, "events")

    async def _list_secrets(self, request: Request) -> Response:
        selected = field_selector("secrets", request.query_params.get("fieldSelector"))
        secrets = [self._secret(name) for name in sorted(self._configuration.secrets)]
        return self._list_of("secrets", [secret for secret in secrets if selected(secret)])

    async def _get_secret(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._configuration.secrets:
            raise not_found("secrets", name)
        return JSONResponse(self._secret(name))

    def _secret(self, name: str) -> dict[str, Any]:
        return secret_object(name, self._cluster.namespace, self._configuration.secrets[name])

    # --- lists and watches

    async def _list(self, request: Request, kind: Kind) -> Response:
        parameters = request.query_params
        by_label, by_field = (
            label_selector(parameters.get("labelSelector")),
            field_selector(kind, parameters.get("fieldSelector")),
        )

        def selected(document: Mapping[str, Any]) -> bool:
            return by_label(document) and by_field(document)

        if parameters.get("watch") in ("true", "True", "1"):
            return StreamingResponse(self._watch(parameters, kind, selected), media_type="application/json")
        return self._list_of(kind, [document for document in self._cluster.objects(kind) if selected(document)])

    def _list_of(self, kind: str, items: list[dict[str, Any]]) -> Response:
        return JSONResponse(
            {
                "apiVersion": f"{GROUP}/{VERSION}" if kind == PLURAL else "v1",
                "kind": f"{_KINDS[kind]}List",
                "metadata": {"resourceVersion": self._cluster.version},
                "items": items,
            }
        )

    async def _watch(
        self, parameters: Mapping[str, str], kind: Kind, selected: Callable[[Mapping[str, Any]], bool]
    ) -> AsyncIterator[bytes]:
        def line(change: str, document: Mapping[str, Any]) -> bytes:
            return json.dumps({"type": change, "object": document}).encode() + b"\n"

        seconds = min(_number(parameters, "timeoutSeconds") or _LONGEST_WATCH_SECONDS, _LONGEST_WATCH_SECONDS)
        since = _number(parameters, "resourceVersion") or 0
        if not since:
            since = int(self._cluster.version)
            for document in [document for document in self._cluster.objects(kind) if selected(document)]:
                yield line("ADDED", document)
        try:
            async with asyncio.timeout(seconds):
                async for changed in self._cluster.watch(kind, since):
                    if selected(changed.document):
                        yield line(changed.change, changed.document)
        except StatusError as e:
            yield line("ERROR", e.document())
        except TimeoutError:
            return

    # --- work that continues after its request was answered

    _tasks: set[asyncio.Task[None]] = set()

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer_refusal(_: Request, error: Exception) -> Response:
    if not isinstance(error, StatusError):
        raise error
    return JSONResponse(error.document(), error.code)


async def _answer_failure(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(StatusError(500, f"Internal error occurred: {type(error).__name__}").document(), 500)


async def _body(request: Request, *, optional: bool = False) -> Any:
    try:
        content = await request.body()
    except ClientDisconnect:
        raise StatusError(400, "the connection was closed before the body was complete") from None
    if not content and optional:
        return {}
    try:
        document = json.loads(content)
    except ValueError:
        raise StatusError(400, "the body is not JSON") from None
    if optional and not isinstance(document, dict):
        return {}
    return document


async def _patched(request: Request, document: dict[str, Any]) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    patch = await _body(request)
    if content_type == _JSON_PATCH and isinstance(patch, list):
        changed = patches.apply(document, patch)
    elif content_type in _MERGE_PATCHES and isinstance(patch, dict):
        changed = patches.merge(document, patch)
    elif content_type in (_JSON_PATCH, *_MERGE_PATCHES):
        raise StatusError(400, f"the body does not fit the content type {content_type}")
    else:
        raise StatusError(415, f"the body of the request was in an unknown format: {content_type}")
    if not isinstance(changed, dict):
        raise StatusError(400, "the patched document is not an object")
    return changed


def _set_or_drop(metadata: dict[str, Any], field: str, value: Any) -> None:
    if value:
        metadata[field] = value
    else:
        metadata.pop(field, None)


def _conflict(name: str) -> StatusError:
    return StatusError(
        409,
        f'Operation cannot be fulfilled on "{name}": the object has been modified; please apply your changes to the '
        "latest version and try again",
        name=name,
    )


def _is_dry_run(request: Request) -> bool:
    return "All" in request.query_params.getlist("dryRun")


def _number(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise StatusError(400, f"{name}: {text!r} is not a whole number")
    return int(text)


def _since(parameters: Mapping[str, str]) -> bytes | None:
    seconds = _number(parameters, "sinceSeconds")
    if seconds is not None:
        return log_time(datetime.now(UTC) - timedelta(seconds=seconds))
    if text := parameters.get("sinceTime"):
        try:
            return log_time(datetime.fromisoformat(text))
        except ValueError:
            raise StatusError(400, f"sinceTime: {text!r} is not a time") from None
    return None


assert set(get_args(Kind)) < set(_KINDS), "every kind of stored object has a name"  # noqa: S101
