"""
# LakeHook, SparkApplicationHook

Shows what your own task can use: the object store, the Iceberg catalog, the ledger of publications, and the list of
Spark applications.

**When it fails:** the error names the service that did not answer. Clear the task when the service is back.
"""

from datetime import datetime

from airflow.sdk import DAG, task

with DAG("platform_hooks", schedule=None, start_date=datetime(2013, 1, 1), catchup=False, doc_md=__doc__):

    @task
    def look_at_the_lake() -> dict[str, int]:
        from contextlib import closing

        from trilake.hooks.lake import LakeHook

        lake = LakeHook()
        with closing(lake.catalog()) as catalog:
            namespaces = len(catalog.list_namespaces())
        return {
            "buckets": len(lake.s3_client().list_buckets()["Buckets"]),
            "namespaces": namespaces,
            "publications": len(lake.ledger().publications()),
        }

    @task
    def look_at_spark() -> int:
        import asyncio

        from trilake.hooks.spark import SparkApplicationHook

        return len(asyncio.run(SparkApplicationHook().find("trilake/dag")))

    look_at_the_lake() >> look_at_spark()
