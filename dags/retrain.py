"""`<model>.retrain`: decide whether to retrain; train, judge and promote on evidence.

Runs after every monitoring. The first task reads every open signal in the ledger and decides.
`suppress` skips the rest and says why and until when; `investigate` does too, and asks a person
in `<model>.escalate`; `rollback` returns to the last verified version. A candidate goes live only when the gate's whole table passes; its
verdict is in the log of `gate`, in `evergreen history` and on the MLflow run.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    chain,
    get_parsing_context,
)

from evergreen.operators.approval import approval
from evergreen.operators.arbitration import ArbitrateOperator, ConcludeRunOperator
from evergreen.operators.evaluation import EvaluateModelOperator
from evergreen.operators.extraction import ExtractSnapshotOperator
from evergreen.operators.gating import GateOperator
from evergreen.operators.infrastructure import CheckInfrastructureOperator
from evergreen.operators.preparation import BuildFeaturesOperator
from evergreen.operators.promotion import PromoteModelOperator
from evergreen.operators.rollback import RollbackModelOperator
from evergreen.operators.training import training_operator
from evergreen.operators.validation import ValidateDataOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"
# Airflow 3.3.2 runs a new DAG at once when less than a tenth of its interval has passed, also when
# told False: this says that it waits for the next time.
LATER = timedelta(0)
FORM = {
    "reason": Param(
        "",
        type="string",
        title="Why retrain now?",
        description="Kept in the ledger with your name. A manual run ignores cooldown and budget.",
        section="Manual run",
    ),
    "tune": Param(
        False,
        type="boolean",
        title="Search parameters anew",
        description="Otherwise the best parameters of the last search are used again.",
        section="Manual run",
    ),
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="As of",
        description="Decide and train as if it were then. Empty: the end of the newest partition.",
        section="Replay",
    ),
    "override": Param(
        None,
        type=["null", "string"],
        title="Accept an incomparable candidate because",
        description="Only where the champion can't score the holdout. All other rules still hold.",
        section="Override (audited)",
    ),
}

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    watched = Asset(f"x-evergreen://{model.name}/watched")
    with DAG(
        dag_id=f"{model.name}.retrain",
        description=model.description or f"Retrain {model.name} when it is worth it",
        doc_md=__doc__,
        schedule=AssetOrTimeSchedule(
            timetable=CronTriggerTimetable(
                model.triggers.schedule, timezone="UTC", run_immediately=LATER
            ),
            assets=[watched],
        )
        if model.triggers.schedule
        else [watched],
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(days=7 if model.gate.approval != "never" else 1),
        tags=["evergreen", model.name, "retrain"],
        default_args={"owner": model.owner.team},
        params=FORM,
    ):
        decision = ArbitrateOperator(task_id="arbitrate", model=model)
        snapshot = ExtractSnapshotOperator(task_id="extract", model=model, decision=decision.output)
        validation = ValidateDataOperator(
            task_id="validate_data", model=model, snapshot=snapshot.output
        )
        features = BuildFeaturesOperator(
            task_id="build_features",
            model=model,
            snapshot=snapshot.output,
            validation=validation.output,
        )
        trained = training_operator(model)(
            task_id="train", model=model, decision=decision.output, features=features.output
        )
        evaluation = EvaluateModelOperator(
            task_id="evaluate", model=model, trained=trained.output, features=features.output
        )
        infrastructure = CheckInfrastructureOperator(
            task_id="check_infrastructure",
            model=model,
            trained=trained.output,
            features=features.output,
        )
        gate = GateOperator(
            task_id="gate",
            model=model,
            decision=decision.output,
            trained=trained.output,
            validation=validation.output,
            evaluation=evaluation.output,
            infrastructure=infrastructure.output,
        )
        promotion = PromoteModelOperator(
            task_id="promote",
            model=model,
            decision=decision.output,
            verdict=gate.output,
            trained=trained.output,
            snapshot=snapshot.output,
            features=features.output,
            evaluation=evaluation.output,
        )
        back = RollbackModelOperator(task_id="roll_back", model=model, decision=decision.output)
        conclusion = ConcludeRunOperator(task_id="conclude", model=model).as_teardown()
        chain(gate, *approval(model, decision.output, gate.output), promotion, conclusion)
        chain(decision, conclusion)
        chain(back, conclusion)
