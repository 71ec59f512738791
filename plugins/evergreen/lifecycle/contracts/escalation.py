"""What is known when automatic retraining has stopped, and what a person said to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import AwareDatetime

from evergreen.lifecycle.contracts.base import Result

AnswerName = Literal["acknowledged", "declined", "unanswered"]


class EscalationReport(Result):
    """Automatic retraining has stopped and nobody has acknowledged it.

    ``cause`` is ``futile`` after too many retrains that didn't help, ``rollback`` after a machine
    rolled a version back. ``run_id`` is the last futile retrain's, or the one's that had put that
    version live; ``answers`` is what was said so far, in order.
    """

    kind = "escalation"
    id: int
    cause: Literal["futile", "rollback"] = "futile"
    run_id: str
    as_of: AwareDatetime
    priority: str
    futile: int
    reason: str
    answers: tuple[AnswerName, ...] = ()

    @property
    def why(self) -> str:
        """What stopped it, in a few words; ``reason`` has the rest."""
        if self.cause == "rollback":
            return f"a version was sent back by machine; its retrain was {self.run_id}"
        return f"{self.futile} futile retrains in a row, the last one {self.run_id}"

    def describe(self) -> Iterator[str]:
        yield f"{self.priority}: {self.why}"
        yield f"as of {self.as_of.isoformat()}: {self.reason}"
        yield f"answered so far: {', '.join(self.answers) or 'nothing'}"
        yield "next: a person; until one acknowledges, nothing is retrained automatically"


class EscalationAnswer(Result):
    """What was said to an escalation, by whom, and why."""

    kind = "answer"
    escalation: int
    run_id: str
    answer: AnswerName
    person: str | None
    comment: str

    def describe(self) -> Iterator[str]:
        yield f"{self.answer} by {self.person or 'nobody'}: {self.comment or 'no comment'}"
        yield {
            "acknowledged": "next: automatic retraining resumes; futile retrains are counted anew",
            "declined": "next: automatic retraining stays stopped until a person acknowledges",
            "unanswered": "next: automatic retraining stays stopped; a person is asked again",
        }[self.answer]
