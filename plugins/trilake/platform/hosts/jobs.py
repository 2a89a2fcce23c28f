"""Stops all Spark jobs on vps_2. A restore does this before it starts the stores again.

A job that began before the loss has files in S3 that the backup may not have. If it went on with the restored catalog,
it would commit a snapshot that names them.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from trilake.errors import UnreachableError
from trilake.spark.application import API_GROUP, API_VERSION, NAMESPACE, PLURAL

# Seconds that drivers and executors may take to end. Kubernetes kills them after 30.
_END_S = 180
_POLL_S = 1.0
_TIMEOUT_S = 15
_HINT = (
    f"If vps_2 runs, do this there before you start Airflow: `kubectl --namespace {NAMESPACE} delete {PLURAL} --all`."
)


def stop_all(kubeconfig: Path) -> list[str]:
    """Delete all applications, and wait until their pods have ended. Returns the applications' names.

    :raises UnreachableError: Kubernetes does not answer, or a pod does not end.
    """
    return asyncio.run(_stop_all(kubeconfig))


async def _stop_all(kubeconfig: Path) -> list[str]:
    from aiohttp import ClientError
    from kubernetes_asyncio.client import ApiException, CoreV1Api, CustomObjectsApi
    from kubernetes_asyncio.config import ConfigException, new_client_from_config

    where = (API_GROUP, API_VERSION, NAMESPACE, PLURAL)
    try:
        async with await new_client_from_config(str(kubeconfig)) as connection:
            applications, pods = CustomObjectsApi(connection), CoreV1Api(connection)
            listed = await applications.list_namespaced_custom_object(*where, _request_timeout=_TIMEOUT_S)
            names = [str(item["metadata"]["name"]) for item in listed["items"]]
            for name in names:
                try:
                    await applications.delete_namespaced_custom_object(*where, name, _request_timeout=_TIMEOUT_S)
                except ApiException as e:
                    if e.status != 404:  # it has ended by itself
                        raise
            until = time.monotonic() + _END_S
            while left := [
                pod.metadata.name
                for pod in (await pods.list_namespaced_pod(NAMESPACE, _request_timeout=_TIMEOUT_S)).items
                if "spark-role" in (pod.metadata.labels or {})
            ]:
                if time.monotonic() > until:
                    raise UnreachableError(f"{', '.join(left)} on vps_2 did not end within {_END_S} s.", hint=_HINT)
                await asyncio.sleep(_POLL_S)
            return names
    except (ClientError, OSError, TimeoutError, ApiException, ConfigException) as e:
        raise UnreachableError(
            f"The Spark jobs on vps_2 could not be stopped: Kubernetes does not answer ({type(e).__name__}).",
            hint=_HINT,
        ) from None
