"""Arbitrate: decide whether this run retrains; conclude: record how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import DagRunState
from airflow.sdk.exceptions import AirflowRuntimeError

from evergreen.declaration import Declaration
from evergreen.hooks.workspace import workspace_of
from evergreen.operators.base import (
    DECLINED,
    REFUSED,
    StageOperator,
    ask_a_person,
    escalations,
    moment,
)
from evergreen.operators.resources import run_cost

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Decision
    from evergreen.workspace import Workspace


ROLL_BACK = "roll_back"  # the task that a decision to roll back leaves to run


class ArbitrateOperator(StageOperator):
    """Read all open signals and decide; what the decision doesn't ask for is skipped."""

    stage = "arbitrate"

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        kwargs.setdefault("outlets", [escalations(model)])
        super().__init__(model=model, **kwargs)

    def run_stage(self, workspace: Workspace, context: Context) -> Decision:
        from evergreen.lifecycle.arbitration import arbitrate
        from evergreen.lifecycle.connection import address

        # Before anything is decided: a retrain that can't ask MLflow shall not use its signals up.
        self.log.info("MLflow: %s", address(workspace.tracking_uri))
        params, run = context["params"], context["dag_run"]
        manual = None
        if run.run_type == "manual":  # an enum that equals its text, but doesn't print it
            user = getattr(run, "triggering_user_name", None)
            manual = {
                "user": user or "unknown",
                "reason": params.get("reason") or "no reason given",
            }
        return arbitrate(
            self.model,
            workspace,
            run_id=run.run_id,
            as_of=moment(params.get("as_of")),
            manual=manual,
            tune=bool(params.get("tune")),
            override=params.get("override") or None,
            run_state=lambda run_id: _state(context, run_id),
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        if result.action == "investigate" and _to_be_asked(self.model, workspace):
            ask_a_person(context, self.model)
        if result.action != "retrain":
            back = [ROLL_BACK] if result.action == "rollback" else []
            self.skip_rest(context, reference, *back)


class ConcludeRunOperator(StageOperator):
    """Record how a retrain's run ended, whatever happened before. Meant as the DAG's teardown."""

    stage = "arbitrate"

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        kwargs.setdefault("outlets", [escalations(model)])
        super().__init__(model=model, **kwargs)

    def execute(self, context: Context) -> dict[str, Any] | None:
        from evergreen.lifecycle.arbitration import conclude

        workspace, run_id = workspace_of(self.model), context["dag_run"].run_id
        outcome = conclude(
            self.model,
            workspace,
            run_id,
            refused=_said(context, REFUSED),
            declined=_said(context, DECLINED),
        )
        self.log.info("outcome: %s", outcome or "no retrain")
        if cost := run_cost(context, self.model):
            self.log.info(cost)
        if _to_be_asked(self.model, workspace, run_id):
            ask_a_person(context, self.model)
        return {"outcome": outcome}


def _to_be_asked(model: Declaration, workspace: Workspace, run_id: str | None = None) -> bool:
    """Whether automatic retraining waits for a person who has not said no; because of a run."""
    from evergreen.lifecycle.escalation import open_escalation

    stopped = open_escalation(model, workspace)
    if stopped is None or (run_id is not None and stopped.run_id != run_id):
        return False
    return not stopped.answers or stopped.answers[-1] == "unanswered"


def _said(context: Context, key: str) -> str | None:
    """What any task of the run left under an XCom key."""
    found = context["ti"].xcom_pull(task_ids=list(context["dag"].task_ids), key=key) or []
    return next((str(reason) for reason in found if reason), None)


def _state(context: Context, run_id: str) -> str | None:
    """How another run of this DAG stands; None when Airflow has no such run any more."""
    try:
        found = context["ti"].get_dagrun_state(context["dag"].dag_id, run_id)
        return str(DagRunState(found).value)  # the enum's own str() is its name, not its value
    except AirflowRuntimeError as error:
        if "not_found" in str(error).lower() or "not found" in str(error).lower():
            return None
        raise
