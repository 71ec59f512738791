"""`<model>.ingest`: register what has landed, on a sweep; what follows starts on its asset."""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Asset, CronTriggerTimetable, Param, get_parsing_context

from evergreen.declaration import usable_models
from evergreen.operators.ingestion import IngestPartitionsOperator

MODELS = Path(__file__).parents[1] / "include" / "models"

for model in usable_models(MODELS, get_parsing_context().dag_id):
    with DAG(
        dag_id=f"{model.name}.ingest",
        description=f"Register partitions of {model.data.uri}",
        doc_md=__doc__,
        schedule=CronTriggerTimetable(model.data.sweep, timezone="UTC"),
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
