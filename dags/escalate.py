"""`<model>.escalate`: retraining has stopped helping, and a person is asked what to do.

Starts when `<model>.retrain` or `<model>.monitor` find automatic retraining stopped. The task
waits under *Required Actions*; acknowledging it with a comment lets automatic retraining go on,
and the ledger keeps who said so, and why. Start it by hand to acknowledge later.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Asset, get_parsing_context

from evergreen.operators.escalation import EscalateOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    with DAG(
        dag_id=f"{model.name}.escalate",
        description=f"Ask a person when retraining {model.name} doesn't help",
        doc_md=__doc__,
        schedule=[Asset(f"x-evergreen://{model.name}/escalations")],
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=model.escalation.answer_within + timedelta(days=1),
        tags=["evergreen", model.name, "escalate"],
        default_args={"owner": model.owner.team},
    ):
        EscalateOperator(task_id="escalate", model=model)
