"""`<model>.bake`: watch a version that has just gone live by its answers; roll it back when they are bad.

Exists for models with declared replicas. Smoke requests first; then, without holding a worker's
slot, errors, latency and the distribution of answers until `bake.watch` is over. By labels a
version bakes in `<model>.monitor`. Looks every hour too, for what no event announced.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, get_parsing_context

from evergreen.operators.baking import BakeOperator
from evergreen.operators.base import promotions
from evergreen.operators.rollback import RollbackModelOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    if not model.serving.replicas:
        continue
    with DAG(
        dag_id=f"{model.name}.bake",
        description=f"Watch a new version of {model.name} by its answers",
        doc_md=__doc__,
        schedule=AssetOrTimeSchedule(
            timetable=CronTriggerTimetable("@hourly", timezone="UTC"), assets=[promotions(model)]
        ),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=3 * model.bake.watch + timedelta(hours=1),
        tags=["evergreen", model.name, "bake"],
        default_args={"owner": model.owner.team},
    ):
        bake = BakeOperator(task_id="bake", model=model, part="requests")
        RollbackModelOperator(task_id="roll_back", model=model, bake=bake.output)
