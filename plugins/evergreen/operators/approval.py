"""Put Airflow's own human-in-the-loop task in the way of a promotion, where that is declared."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from evergreen.declaration import Declaration

ANSWER_WITHIN = timedelta(days=5)


def approval(model: Declaration) -> list[BaseOperator]:
    """The task ``approve``, or nothing when the declaration asks for no person."""
    if model.gate.approval != "always":
        return []
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    return [
        ApprovalOperator(
            task_id="approve",
            subject=f"Promote the candidate of {model.name}?",
            body="The gate's whole table is in the log of the task `gate` of this run.",
            defaults=ApprovalOperator.REJECT,
            response_timeout=ANSWER_WITHIN,
        )
    ]
