"""
# Flights from a producer

Starts when a producer has added or changed files below `s3://raw/flights/<month>/`, and no more files have arrived for
a minute. Each month with such files, also an old one, is recomputed from all its files and published.

For months without new files, trigger it with `start` and `end`.

**When it fails:** clear the failed task. The run keeps the months that it has claimed: no other run starts for them
until more files arrive. The log of `curate` names the file that it cannot read. The Iceberg table `quarantine.flights`
has the refused rows of the other files.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param
from nyc.access import READ_BY_AGENTS
from nyc.chain import curate_and_publish
from nyc.data_sets import FLIGHTS
from nyc.tags import Tag

from trilake.assets import arrivals
from trilake.operators.arrivals import TakeArrivalsOperator

with DAG(
    "flights_arrivals",
    schedule=[arrivals(FLIGHTS)],
    start_date=datetime(2013, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={
        "start": Param(None, type=["null", "string"], description="first month, such as 2013-01; default: due months"),
        "end": Param(None, type=["null", "string"], description="last month; by default the first"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.FLIGHTS],
    access_control=READ_BY_AGENTS,
    doc_md=__doc__,
):
    take = TakeArrivalsOperator(task_id="take", data_set=FLIGHTS)
    curate_and_publish(start=take.output["start"], end=take.output["end"])
