"""The namespace's other objects, as clients read them: the driver's pod, events and Secrets."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trilake.platform.embedded.kubernetes.manifests import GROUP, KIND, VERSION

CONTAINER = "spark-kubernetes-driver"
NODE = "localhost"


def now() -> str:
    """The current time in Kubernetes' format: whole seconds in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def driver_pod(application: Mapping[str, Any]) -> dict[str, Any]:
    """A new driver pod, as a submission creates it: pending, with no container started."""
    metadata, spec, status = application["metadata"], application["spec"], application["status"]
    driver = spec["driver"]
    name = status["driverInfo"]["podName"]
    labels = {
        **(driver.get("labels") or {}),
        "spark-role": "driver",
        "spark-app-name": metadata["name"],
        "spark-app-selector": status["sparkApplicationId"],
        "spark-version": spec["sparkVersion"],
        f"{GROUP}/app-name": metadata["name"],
        f"{GROUP}/launched-by-spark-operator": "true",
        f"{GROUP}/submission-id": status["submissionID"],
    }
    image = driver.get("image") or spec.get("image") or ""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "uid": str(uuid.uuid4()),
            "labels": labels,
            "annotations": dict(driver.get("annotations") or {}),
            "creationTimestamp": now(),
            "ownerReferences": [
                {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": KIND,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": {
            "containers": [
                {
                    "name": CONTAINER,
                    "image": image,
                    "args": ["driver", *spec.get("arguments", ())],
                    "env": list(driver.get("env") or ()),
                    "envFrom": list(driver.get("envFrom") or ()),
                    "resources": {},
                }
            ],
            "restartPolicy": "Never",
            "serviceAccountName": driver.get("serviceAccount") or "default",
        },
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
        },
    }


def set_waiting(pod: dict[str, Any], reason: str, message: str = "") -> None:
    """The pod is scheduled, but its container has not started."""
    _set(pod, "Pending", {"waiting": {"reason": reason, **({"message": message} if message else {})}})


def set_running(pod: dict[str, Any]) -> None:
    pod["status"].setdefault("startTime", now())
    _set(pod, "Running", {"running": {"startedAt": pod["status"]["startTime"]}})


def set_terminated(pod: dict[str, Any], exit_code: int, finished: float) -> None:
    state = {
        "exitCode": exit_code,
        "reason": "Completed" if exit_code == 0 else "Error",
        "startedAt": pod["status"].get("startTime") or time_text(finished),
        "finishedAt": time_text(finished),
    }
    _set(pod, "Succeeded" if exit_code == 0 else "Failed", {"terminated": state})


def _set(pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
    image = pod["spec"]["containers"][0]["image"]
    running = phase == "Running"
    pod["spec"]["nodeName"] = NODE
    pod["status"] |= {
        "phase": phase,
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if running else "False"},
        ],
        "containerStatuses": [
            {
                "name": CONTAINER,
                "image": image,
                "imageID": image,
                "ready": running,
                "started": running,
                "restartCount": 0,
                "state": state,
                "lastState": {},
            }
        ],
    }


def event_of(about: Mapping[str, Any], kind: str, reason: str, message: str) -> dict[str, Any]:
    """:param kind: Normal or Warning."""
    metadata, moment = about["metadata"], now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata["namespace"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": moment,
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": "spark-operator" if about["kind"] == KIND else "kubelet"},
    }


def secret_object(name: str, namespace: str, texts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "namespace": namespace, "uid": f"secret-{name}", "resourceVersion": "1"},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
    }
