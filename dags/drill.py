"""`<model>.drill`: prove that a rollback works, and how many seconds it takes, without touching production.

Starts a server of its own, moves it from the live version to the last verified one and back, and
compares answers. A drill that fails, fails the task and tells who is declared to hear of it.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, CronTriggerTimetable, get_parsing_context

from evergreen.operators.rollback import DrillRollbackOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"
# Airflow 3.3.2 runs a new DAG at once when less than a tenth of its interval has passed, also when
# told False: this says that it waits for the next time.
LATER = timedelta(0)

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    if model.rollback.drill is None:
        continue
    with DAG(
        dag_id=f"{model.name}.drill",
        description=f"Prove that {model.name} can be rolled back",
        doc_md=__doc__,
        schedule=CronTriggerTimetable(model.rollback.drill, timezone="UTC", run_immediately=LATER),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=1),
        tags=["evergreen", model.name, "drill"],
        default_args={"owner": model.owner.team},
    ):
        DrillRollbackOperator(task_id="drill", model=model)
