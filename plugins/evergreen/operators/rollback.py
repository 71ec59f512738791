"""Roll back to an earlier version, by a person or by machine; and drill that it would work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.errors import RollbackError
from evergreen.notifications import ModelNotifier
from evergreen.operators.base import StageOperator, ask_a_person, escalations, moment, promotions

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import DrillReport, Rollback
    from evergreen.workspace import Workspace


class RollbackModelOperator(StageOperator):
    """Return to an earlier version, and quarantine the one that is live.

    Asked by a person, what the run's form holds wins over the parameters here. After a bake or
    the arbiter it is the machine that asks: skipped unless they say so, only for the version that
    they meant, and a person is asked to look at it in ``<model>.escalate``.

    :param model: the model's declaration.
    :param version: to which version; the last verified one when None. (templated)
    :param reason: why; kept in the ledger. (templated)
    :param force: even if that version is quarantined; ``true`` or ``false`` as text, too. (templated)
    :param bake: a bake report's reference. (templated)
    :param decision: the arbiter's decision's reference. (templated)
    """

    stage = "roll_back"
    template_fields: Sequence[str] = ("version", "reason", "force", "bake", "decision")

    def __init__(
        self,
        *,
        model: Declaration,
        version: Any = None,
        reason: str = "",
        force: Any = False,
        bake: Any = None,
        decision: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [promotions(model), escalations(model)])
        super().__init__(model=model, **kwargs)
        self.version = version
        self.reason = reason
        self.force = force
        self.bake = bake
        self.decision = decision
        self.by_machine = bake is not None or decision is not None

    def run_stage(self, workspace: Workspace, context: Context) -> Rollback:
        from evergreen.lifecycle.rollback import roll_back

        run_id = f"{context['dag_run'].dag_id}/{context['dag_run'].run_id}"
        asked = self._by_machine(workspace, run_id) if self.by_machine else self._by_person(context)
        return roll_back(self.model, workspace, run_id=run_id, **asked)

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        ModelNotifier(
            model=self.model,
            event="rolled_back",
            title=f"version {result.version} is live again, {result.replaced} was rolled back",
            body="\n".join(result.describe()),
        ).notify(context)
        if result.person is None and _to_be_asked(self.model, workspace):
            ask_a_person(context, self.model)

    def _by_machine(self, workspace: Workspace, run_id: str) -> dict[str, Any]:
        """What the stage before asks for.

        :raises RollbackError: when it handed nothing over; nobody's word is no reason.
        """
        from evergreen.ledger import records

        reason, position = self._asked(workspace)
        with workspace.ledger.read() as session:
            live = records.champion(session, self.model.name)
            mine = records.promotion_of(session, self.model.name, run_id)
        if mine is None and live is not None and live.position != position:
            raise AirflowSkipException(f"version {live.version} went live since; it is not meant")
        return {"reason": reason, "position": position}

    def _asked(self, workspace: Workspace) -> tuple[str, int]:
        from evergreen.lifecycle.contracts import BakeReport, Decision
        from evergreen.lifecycle.rollback import disproved

        if self.bake is not None:
            baked = BakeReport.load(workspace.store, self.bake)
            if baked.outcome != "roll_back" or baked.position is None:
                raise AirflowSkipException(f"the bake says {baked.outcome}: {baked.reason}")
            return baked.reason, baked.position
        if self.decision is None:
            raise RollbackError(
                f"{self.model.name}: the task before handed nothing over, so nobody asks for a "
                f"rollback. To roll back by hand, use the form of {self.model.name}.rollback."
            )
        decided = Decision.load(workspace.store, self.decision)
        if decided.action != "rollback":
            raise AirflowSkipException(f"the arbiter says {decided.action}")
        meant = disproved(self.model, workspace)
        if meant is None:
            raise AirflowSkipException("nothing has disproved a version of this model")
        return "; ".join(decided.reasons), meant[0].position

    def _by_person(self, context: Context) -> dict[str, Any]:
        form = context["params"]
        return {
            "person": getattr(context["dag_run"], "triggering_user_name", None) or "unknown",
            "reason": str(form.get("reason") or self.reason or ""),
            "version": str(form.get("version") or self.version or "").strip() or None,
            "force": _yes(form.get("force")) or _yes(self.force),
        }


class DrillRollbackOperator(StageOperator):
    """Drill a rollback on a server of its own, beside production.

    A drill that didn't pass fails its task without a retry, its table in the log, and tells who
    is declared to hear of it.

    :param model: the model's declaration.
    :param as_of: the moment the drill is noted with; the data watermark when empty. (templated)
    """

    stage = "roll_back"
    template_fields: Sequence[str] = ("as_of",)

    def __init__(self, *, model: Declaration, as_of: str | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.as_of = as_of

    def run_stage(self, workspace: Workspace, context: Context) -> DrillReport:
        from evergreen.lifecycle.drilling import drill

        run = context["dag_run"]
        return drill(
            self.model,
            workspace,
            run_id=f"{run.dag_id}/{run.run_id}",
            as_of=moment(self.as_of or context["params"].get("as_of")),
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        if not result.passed:
            raise AirflowFailException("\n".join(result.describe()))


def _to_be_asked(model: Declaration, workspace: Workspace) -> bool:
    """Whether automatic retraining waits for a person who has not said no."""
    from evergreen.lifecycle.escalation import open_escalation

    stopped = open_escalation(model, workspace)
    return stopped is not None and (not stopped.answers or stopped.answers[-1] == "unanswered")


def _yes(value: Any) -> bool:
    """A form's yes, also as text: a template makes one of it."""
    return str(value).strip().lower() in {"true", "1", "yes"}
