"""Put Airflow's own human-in-the-loop task in the way of a promotion, where that is declared."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from evergreen.operators.base import DECLINED

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from evergreen.declaration import Declaration

ANSWER_WITHIN = timedelta(days=5)


class ApprovePromotionOperator(ApprovalOperator):
    """Ask a person whether the judged candidate may go live; silence means no.

    A rejected approval leaves no return value, so who said no is kept under a key of its own.
    """

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep who answered, then let Airflow skip or go on."""
        if self.APPROVE not in (event.get("chosen_options") or []):
            person = (event.get("responded_by_user") or {}).get("name")
            said = f"declined by {person}" if person else "nobody answered in time"
            context["ti"].xcom_push(key=DECLINED, value=said)
        return super().execute_complete(context, event)


def approval(model: Declaration) -> list[BaseOperator]:
    """The task ``approve``, or nothing when the declaration asks for no person."""
    if model.gate.approval != "always":
        return []
    return [
        ApprovePromotionOperator(
            task_id="approve",
            subject=f"Promote the candidate of {model.name}?",
            body="The gate's whole table is in the log of the task `gate` of this run.",
            defaults=ApprovalOperator.REJECT,
            response_timeout=ANSWER_WITHIN,
        )
    ]
