"""`<model>.ingest`: register what has landed, on a sweep; what follows starts on its asset.

With `data.arrival` declared, AWS hints that something has landed, and the sweep's next run comes
at once: `<model>.arrive` waits for the next partition's key, or a queue of the bucket's events is
watched. The sweep stays: it finds what no hint announced.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    get_parsing_context,
)

from evergreen.declaration import Declaration
from evergreen.operators.ingestion import IngestPartitionsOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"
ARRIVE = """`<model>.arrive`: wait on S3 for the partition that is expected next, then hint to ingest.

Exists for models that declare `data.arrival.sensor`. Waits in the triggerer, without a slot.
"""


def arrivals(model: Declaration) -> Asset:
    """What hints that a partition has landed; watches the declared queue, if there is one."""
    uri = f"x-evergreen://{model.name}/arrivals"
    if model.data.arrival is None or model.data.arrival.queue is None:
        return Asset(uri)
    from evergreen.sensors.arrival import queue_watcher  # noqa: PLC0415 - imports boto3

    return Asset(uri, watchers=[queue_watcher(model)])


for model in runnable_models(MODELS, get_parsing_context().dag_id):
    sweep = CronTriggerTimetable(model.data.sweep, timezone="UTC")
    hinted = model.data.arrival is not None
    with DAG(
        dag_id=f"{model.name}.ingest",
        description=f"Register partitions of {model.data.uri}",
        doc_md=__doc__,
        schedule=AssetOrTimeSchedule(timetable=sweep, assets=[arrivals(model)])
        if hinted
        else sweep,
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=1),
        tags=["evergreen", model.name, "ingest"],
        default_args={"owner": model.owner.team},
        params={
            "as_of": Param(
                None,
                type=["null", "string"],
                format="date-time",
                title="As of",
                description="Partitions that end later are not taken. Empty: when the run is due.",
                section="Replay",
            )
        },
    ):
        IngestPartitionsOperator(
            task_id="ingest", model=model, outlets=[Asset(f"x-evergreen://{model.name}/partitions")]
        )

    if model.data.arrival is None or model.data.arrival.sensor is None:
        continue
    from evergreen.sensors.arrival import AwaitPartitionSensor  # it imports boto3

    with DAG(
        dag_id=f"{model.name}.arrive",
        description=f"Wait for the next partition of {model.data.uri}",
        doc_md=ARRIVE,
        schedule=sweep,
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(days=2),
        tags=["evergreen", model.name, "arrive"],
        default_args={"owner": model.owner.team},
    ):
        AwaitPartitionSensor(
            task_id="await_partition",
            model=model,
            outlets=[arrivals(model)],
            timeout=timedelta(days=1).total_seconds(),
            soft_fail=True,
        )
