"""Put Airflow's own human-in-the-loop task in the way of a promotion, where that is declared."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.standard.operators.hitl import ApprovalOperator

from evergreen.declaration import Declaration
from evergreen.hooks.workspace import workspace_of
from evergreen.operators.base import DECLINED, Observed, TellsLineage

if TYPE_CHECKING:
    from airflow.sdk import Context

ANSWER_WITHIN = timedelta(days=5)


class ApprovePromotionOperator(TellsLineage, ApprovalOperator):
    """Ask a person whether the judged candidate may go live; silence means no.

    A rejected approval leaves no return value, so who said no is kept under a key of its own.

    :param model: the model's declaration; ``gate.approval`` says on which verdicts to ask.
    :param decision: the arbiter's decision. (templated)
    :param verdict: the verdict's reference. (templated)
    """

    stage: ClassVar[str] = "approve"
    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "decision", "verdict")

    def __init__(self, *, model: Declaration, decision: Any, verdict: Any, **kwargs: Any) -> None:
        kwargs.setdefault("subject", f"Promote the candidate of {model.name}?")
        kwargs.setdefault("body", "The gate's whole table is in the log of the task `gate`.")
        kwargs.setdefault("defaults", self.REJECT)
        kwargs.setdefault("response_timeout", ANSWER_WITHIN)
        super().__init__(**kwargs)
        self.model = model
        self.decision = decision
        self.verdict = verdict

    def execute(self, context: Context) -> Any:
        """Ask, or pass at once on a verdict that needs no person."""
        from evergreen.lifecycle.contracts import Decision, Verdict

        seen = self._observed = self._given()
        store = seen.store
        verdict = Verdict.load(store, self.verdict)
        futile = Decision.load(store, self.decision).futile
        asked = self.model.gate.approval
        occasions = {verdict.verdict, *(["escalated"] if futile else [])}
        if isinstance(asked, str) or occasions & set(asked.on):
            self.log.info("waiting for a person: %s: %s", verdict.verdict, verdict.reason)
            return super().execute(context)
        self.log.info("%s needs no person; declared are %s", verdict.verdict, ", ".join(asked.on))
        seen.conclusion, seen.finished = "nobody asked", True
        return None

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep who answered, then let Airflow skip or go on."""
        seen = self._observed = self._given()
        seen.conclusion = "approved"
        if self.APPROVE not in (event.get("chosen_options") or []):
            person = (event.get("responded_by_user") or {}).get("name")
            said = f"declined by {person}" if person else "nobody answered in time"
            context["ti"].xcom_push(key=DECLINED, value=said)
            seen.conclusion = "declined" if person else "unanswered"
        answer = super().execute_complete(context, event)
        seen.finished = True
        return answer

    def _given(self) -> Observed:
        return Observed(workspace_of(self.model).store, [self.decision, self.verdict])


def approval(model: Declaration, decision: Any, verdict: Any) -> list[ApprovePromotionOperator]:
    """The task ``approve``, or nothing when the declaration never asks for a person."""
    if model.gate.approval == "never":
        return []
    return [
        ApprovePromotionOperator(task_id="approve", model=model, decision=decision, verdict=verdict)
    ]
