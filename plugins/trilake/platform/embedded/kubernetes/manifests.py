"""Validation of SparkApplications: the resource's schema, the operator's defaults, and the limits of this platform."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kubeflow_spark_api.models.spark_v1beta2_spark_application_spec import SparkV1beta2SparkApplicationSpec
from pydantic import ValidationError

from trilake.platform.embedded.kubernetes.status import Cause, StatusError

GROUP, VERSION, PLURAL, KIND = "sparkoperator.k8s.io", "v1beta2", "sparkapplications", "SparkApplication"
RESOURCE = f"{PLURAL}.{GROUP}"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")

# Allowed values and minimums of the CustomResourceDefinition that the pydantic models lack.
_VALUES = {
    "type": ("Java", "Python", "Scala", "R"),
    "mode": ("cluster", "client"),
    "pythonVersion": ("2", "3"),
    "restartPolicy.type": ("Never", "Always", "OnFailure"),
}
_MINIMUM = {
    "driver.cores": 1,
    "executor.cores": 1,
    "executor.instances": 1,
    "restartPolicy.onFailureRetries": 0,
    "restartPolicy.onFailureRetryInterval": 1,
    "restartPolicy.onSubmissionFailureRetries": 0,
    "restartPolicy.onSubmissionFailureRetryInterval": 1,
}
# Fields that would change the result of a run, and that are not possible without pods: path -> name of the feature.
_REFUSED = {
    "suspend": "suspending",
    "proxyUser": "proxy users",
    "sparkConfigMap": "config maps",
    "hadoopConfigMap": "config maps",
    "deps.packages": "package resolution at run time",
    "deps.repositories": "package resolution at run time",
    "driver.initContainers": "init containers",
    "driver.sidecars": "sidecars",
    "driver.configMaps": "config maps",
    "driver.secrets": "mounted Secrets (envFrom, envSecretKeyRefs and env are supported)",
    "driver.template": "pod templates",
}
_WORDS = {
    "int_type": "integer",
    "string_type": "string",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
}
_METADATA = ("name", "generateName", "namespace", "labels", "annotations", "ownerReferences")


def admit(document: Any, *, namespace: str, strict: bool) -> tuple[dict[str, Any], list[str]]:
    """Validate an application. Returns its stored form (with defaults, without unknown fields) and the unknown fields.

    :param strict: refuse unknown fields (the request's ``fieldValidation=Strict``).
    :raises StatusError: 400 the document is not a SparkApplication; 422 it is invalid, and the causes name the fields.
    """
    if not isinstance(document, dict):
        raise StatusError(400, "the body is not an object")
    for field, expected in (("apiVersion", f"{GROUP}/{VERSION}"), ("kind", KIND)):
        if document.get(field) != expected:
            raise StatusError(400, f"{field} is {document.get(field)!r}, expected {expected!r}")
    cleaned = _without_nulls(document)
    metadata = cleaned.get("metadata")
    if not isinstance(metadata, dict):
        raise StatusError(400, "metadata is not an object")
    if metadata.get("namespace", namespace) != namespace:
        raise StatusError(400, "the namespace of the provided object does not match the namespace sent on the request")
    spec = cleaned.get("spec")
    causes = [*_metadata_causes(metadata)]
    dropped: list[str] = []
    if isinstance(spec, dict):
        admitted, spec_causes = _spec(spec)
        causes += spec_causes
        dropped = [f"spec{path}" for path in _missing(spec, admitted)]
    else:
        admitted = {}
        causes.append(Cause("spec", "Required value", "FieldValueRequired"))
    dropped += [f"metadata.{field}" for field in metadata if field not in _METADATA]
    dropped += [field for field in cleaned if field not in ("apiVersion", "kind", "metadata", "spec", "status")]
    name = str(metadata.get("name") or metadata.get("generateName") or "")
    if causes:
        messages = ", ".join(f"{cause.field}: {cause.message}" for cause in causes)
        messages = messages if len(causes) == 1 else f"[{messages}]"
        raise StatusError(422, f'{KIND}.{GROUP} "{name}" is invalid: {messages}', kind=KIND, name=name, causes=causes)
    if strict and dropped:
        unknown = ", ".join(f'unknown field "{path}"' for path in dropped)
        raise StatusError(400, f'{KIND} in version "{VERSION}" cannot be handled: strict decoding error: {unknown}')
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {field: metadata[field] for field in _METADATA if field in metadata},
        "spec": _with_defaults(admitted),
    }, dropped


def _spec(spec: dict[str, Any]) -> tuple[dict[str, Any], list[Cause]]:
    causes = []
    try:
        # only by alias: the models also accept spark_version for sparkVersion, the real server does not
        model = SparkV1beta2SparkApplicationSpec.model_validate(spec, by_alias=True, by_name=False)
        admitted: dict[str, Any] = model.model_dump(by_alias=True, exclude_none=True, mode="json")
    except ValidationError as e:
        return {}, [_cause(error) for error in e.errors(include_url=False)]
    for path, values in _VALUES.items():
        value = _get(admitted, path)
        if value is not None and value not in values:
            supported = ", ".join(f'"{v}"' for v in values)
            causes.append(
                Cause(
                    f"spec.{path}",
                    f'Unsupported value: "{value}": supported values: {supported}',
                    "FieldValueNotSupported",
                )
            )
    for path, minimum in _MINIMUM.items():
        value = _get(admitted, path)
        if value is not None and value < minimum:
            causes.append(
                Cause(
                    f"spec.{path}",
                    f"Invalid value: {value}: spec.{path} in body should be greater than or equal to {minimum}",
                )
            )
    if admitted.get("type") == "R":
        causes.append(_forbidden("type", "R"))
    causes += [_forbidden(path, feature) for path, feature in _REFUSED.items() if _get(admitted, path)]
    for number, volume in enumerate(admitted.get("volumes") or ()):
        if "emptyDir" not in volume:
            causes.append(_forbidden(f"volumes[{number}]", "volumes other than emptyDir"))
    return admitted, causes


def _forbidden(path: str, feature: str) -> Cause:
    return Cause(
        f"spec.{path}",
        f"Forbidden: the embedded platform has no {feature}; run this on a Kubernetes cluster",
        "FieldValueForbidden",
    )


def _cause(error: Mapping[str, Any]) -> Cause:
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    if error["type"] == "missing":
        return Cause(path, "Required value", "FieldValueRequired")
    if expected_type := _WORDS.get(error["type"]):
        value = error["input"]
        type_names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
        # the message has only the type, because the value may be a secret in the wrong field
        return Cause(
            path,
            f'Invalid value: "{type_names.get(type(value), "null")}": {path} in body must be of type {expected_type}',
            "FieldValueTypeInvalid",
        )
    return Cause(path, f"Invalid value: {error['msg']}")


def _metadata_causes(metadata: Mapping[str, Any]) -> Iterator[Cause]:
    name = metadata.get("name")
    if not name and not metadata.get("generateName"):
        yield Cause("metadata.name", "Required value: name or generateName is required", "FieldValueRequired")
    elif name is not None and (not isinstance(name, str) or len(name) > 253 or not _NAME.fullmatch(name)):
        yield Cause("metadata.name", f"Invalid value: {json.dumps(name)}: must be a lowercase RFC 1123 subdomain")
    prefix = metadata.get("generateName") or ""
    if not isinstance(prefix, str) or not _NAME.fullmatch(f"{prefix}0"):
        yield Cause(
            "metadata.generateName",
            f"Invalid value: {json.dumps(prefix)}: must be the beginning of a lowercase RFC 1123 name",
        )
    owners = metadata.get("ownerReferences") or []
    if not isinstance(owners, list) or not all(isinstance(owner, dict) for owner in owners):
        yield Cause("metadata.ownerReferences", "Invalid value: metadata.ownerReferences must be an array of objects")
    for field in ("labels", "annotations"):
        texts = metadata.get(field) or {}
        if not isinstance(texts, dict):
            yield Cause(f"metadata.{field}", f"Invalid value: metadata.{field} must be an object of strings")
            continue
        for key, value in texts.items():
            if not isinstance(value, str) or not _LABEL_KEY.fullmatch(key) or len(key.rpartition("/")[2]) > 63:
                yield Cause(
                    f"metadata.{field}", f'Invalid value: "{key}": a qualified name with a string value is required'
                )
            elif field == "labels" and (len(value) > 63 or not _LABEL_VALUE.fullmatch(value)):
                yield Cause("metadata.labels", f'Invalid value: "{value}": must be at most 63 of [-A-Za-z0-9_.]')


def _with_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with the defaults that the operator's webhook sets."""
    restart = {"type": "Never", **spec.get("restartPolicy", {})}
    if restart["type"] != "Never":
        restart = {"onFailureRetryInterval": 5, "onSubmissionFailureRetryInterval": 5, **restart}
    driver = {"cores": 1, "memory": "1g", **spec["driver"]}
    executor = {"cores": 1, "memory": "1g", **spec["executor"]}
    if not (spec.get("dynamicAllocation") or {}).get("enabled"):
        executor.setdefault("instances", 1)
    return {"mode": "cluster", **spec, "restartPolicy": restart, "driver": driver, "executor": executor}


def _get(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _missing(given: Any, admitted: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(admitted, dict):
        for key, value in given.items():
            if key not in admitted:
                yield f"{path}.{key}"
            else:
                yield from _missing(value, admitted[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(admitted, list):
        for number, (given_item, admitted_item) in enumerate(zip(given, admitted, strict=False)):
            yield from _missing(given_item, admitted_item, f"{path}[{number}]")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
