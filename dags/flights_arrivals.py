"""
# Flights that others bring

Starts when a producer has put files below `s3://raw/flights/<month>/`, or has changed some, and nothing more has come
for a minute. Every month that this touches, however long ago, is made anew from all of its files and published.

For months that nothing has come for, trigger it with `start` and `end`.

**When it fails:** clear the failed task. What the run has taken in hand is its own: no other run is started for it
until more files come. `curate` names the file that it cannot read; what it refused of the others lies in the Iceberg
table `quarantine.flights`.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param
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
        "start": Param(None, type=["null", "string"], description="first month, such as 2013-01; else what is due"),
        "end": Param(None, type=["null", "string"], description="last month; by default the first"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.FLIGHTS],
    doc_md=__doc__,
):
    take = TakeArrivalsOperator(task_id="take", data_set=FLIGHTS)
    curate_and_publish(start=take.output["start"], end=take.output["end"])
