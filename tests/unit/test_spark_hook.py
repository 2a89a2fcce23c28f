"""What Kubernetes and Spark say of a failure, as a person reads it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from kubernetes_asyncio.client.exceptions import ApiException

from trilake.errors import ConfigurationError
from trilake.hooks.spark import error_message, refusal, without_frames
from trilake.operators.spark import LONGEST_RUN_SECONDS, SparkApplicationOperator
from trilake.spark.maintenance import ORPHANS_STAY

FORBIDDEN = (
    'Failure executing: POST at: https://10.96.0.1:443/api/v1/namespaces/spark/pods. Message: pods "d" is forbidden'
)
# Of spark-operator 2.5.2, shortened
SPARK_SUBMIT = f"""failed to run spark-submit: WARNING: Using incubator modules: jdk.incubator.vector
26/11/23 15:29:19 WARN NativeCodeLoader: Unable to load native-hadoop library for your platform...
Using Spark's default log4j profile: org/apache/spark/log4j2-defaults.properties
26/11/23 15:29:25 ERROR Client: Please check "kubectl auth can-i create pod" first. It should be yes.
Exception in thread "main" io.fabric8.KubernetesClientException: {FORBIDDEN}. Received status: Status(code=403).
\tat io.fabric8.kubernetes.client.KubernetesClientException.copyAsCause(KubernetesClientException.java:205)
\tat org.apache.spark.deploy.SparkSubmit$$anon$2.doSubmit(SparkSubmit.scala:1132)
\tat java.base/java.util.concurrent.CompletableFuture$UniApply.tryFire(CompletableFuture.java:646)
Caused by: io.fabric8.KubernetesClientException: {FORBIDDEN}. Received status: Status(code=403).
\tat java.base/java.lang.Thread.run(Thread.java:840)
\t... 14 more
"""


def test_of_a_failed_submission_its_errors_are_told_once() -> None:
    application = {"status": {"applicationState": {"errorMessage": SPARK_SUBMIT}}}
    assert error_message(application).splitlines() == [
        "failed to run spark-submit: WARNING: Using incubator modules: jdk.incubator.vector",
        '26/11/23 15:29:25 ERROR Client: Please check "kubectl auth can-i create pod" first. It should be yes.',
        f'Exception in thread "main" io.fabric8.KubernetesClientException: {FORBIDDEN}',
    ]


def test_an_application_that_has_not_failed_has_no_error() -> None:
    assert error_message({}) == ""


def test_what_merely_looks_like_a_stack_frame_stays() -> None:
    lines = ["  at the end of the day (UTC) 5 rows", "	at a.b.C.d(E.java:1)", "at a.b.C.d(E.java:1)", "... 3 more"]
    assert without_frames("\n".join(lines)) == [lines[0], *lines[2:]]


def test_a_refusal_is_the_servers_message_without_headers() -> None:
    error = ApiException(status=403, reason="Forbidden")
    assert refusal(error) == "403 Forbidden"
    error.body = b'{"kind": "Status", "message": "pods is forbidden", "code": 403}'
    assert refusal(error) == "pods is forbidden"
    error.body = b"<html>"
    assert refusal(error) == "403 Forbidden"


def test_a_job_may_not_run_for_as_long_as_the_upkeep_leaves_what_it_writes() -> None:
    assert timedelta(seconds=LONGEST_RUN_SECONDS) < ORPHANS_STAY
    SparkApplicationOperator(task_id="t", job="j", run_timeout_seconds=LONGEST_RUN_SECONDS)
    with pytest.raises(ConfigurationError, match="Job j has run_timeout_seconds="):
        SparkApplicationOperator(task_id="t", job="j", run_timeout_seconds=LONGEST_RUN_SECONDS + 1)
