"""`<model>.rollback`: return to an earlier version, by hand.

Without a version the last verified one comes back. What is left is quarantined: no machine puts
it live again. Online features, the monitoring reference and the replicas follow; the ledger keeps
who asked, when and why. `evergreen rollback MODEL` starts the same.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param, get_parsing_context

from evergreen.operators.rollback import RollbackModelOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"
FORM = {
    "reason": Param(
        "",
        type="string",
        title="Why roll back?",
        description="Kept in the ledger with your name.",
        section="Rollback",
    ),
    "version": Param(
        None,
        type=["null", "string"],
        title="To which version",
        description="Empty: the last verified one.",
        section="Rollback",
    ),
    "force": Param(
        False,
        type="boolean",
        title="Even if it is quarantined",
        description="A quarantined version is refused otherwise.",
        section="Rollback",
    ),
}

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    with DAG(
        dag_id=f"{model.name}.rollback",
        description=f"Return {model.name} to an earlier version",
        doc_md=__doc__,
        schedule=None,
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=1),
        tags=["evergreen", model.name, "rollback"],
        default_args={"owner": model.owner.team},
        params=FORM,
    ):
        RollbackModelOperator(task_id="roll_back", model=model)
