"""`<model>.score`: the champion answers for every partition that has no predictions yet.

A partition is answered by the version that was live when it began. Predictions are in the
store at `predictions/model=<model>/partition=<key>/`; a repeat replaces them. Where replicas are
declared, the newest features go online. `<model>.monitor` starts next.
"""

from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    chain,
    get_parsing_context,
)

from evergreen.operators.extraction import ExtractSnapshotOperator
from evergreen.operators.preparation import BuildFeaturesOperator, MaterializeFeaturesOperator
from evergreen.operators.scoring import ScoreBatchOperator
from evergreen.operators.validation import ValidateDataOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"
# Airflow 3.3.2 runs a new DAG at once when less than a tenth of its interval has passed, also when
# told False: this says that it waits for the next time.
LATER = timedelta(0)

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    with DAG(
        dag_id=f"{model.name}.score",
        description=f"Score new partitions with the champion of {model.name}",
        doc_md=__doc__,
        schedule=AssetOrTimeSchedule(  # the day's sweep goes on where an event was lost
            timetable=CronTriggerTimetable("@daily", timezone="UTC", run_immediately=LATER),
            assets=[Asset(f"x-evergreen://{model.name}/partitions")],
        ),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=6),
        tags=["evergreen", model.name, "score"],
        default_args={"owner": model.owner.team},
        params={
            "partitions": Param(
                [],
                type="array",
                items={"type": "string"},
                title="Score these partitions again",
                description="Keys like 2013-02. Empty: all that have no predictions.",
                section="Manual run",
            )
        },
    ):
        snapshot = ExtractSnapshotOperator(task_id="extract", model=model, purpose="score")
        validation = ValidateDataOperator(
            task_id="validate_data", model=model, snapshot=snapshot.output
        )
        features = BuildFeaturesOperator(
            task_id="build_features",
            model=model,
            snapshot=snapshot.output,
            validation=validation.output,
        )
        score = ScoreBatchOperator(
            task_id="score", model=model, snapshot=snapshot.output, features=features.output
        )
        # A teardown: a champion that can't answer must not keep the arbiter from being asked.
        scored = EmptyOperator(
            task_id="announce", outlets=[Asset(f"x-evergreen://{model.name}/predictions")]
        ).as_teardown()
        chain([snapshot, score], scored)
        if model.serving.replicas:
            online = MaterializeFeaturesOperator(
                task_id="materialize", model=model, features=features.output
            )
            chain(online, scored)
