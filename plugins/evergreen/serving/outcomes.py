"""What becomes of requests: who waits, what they are told, and what is written of it before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evergreen.declaration import Declaration
from evergreen.serving.metrics import NOBODY, ModelMetrics, Role
from evergreen.serving.payloads import Asked
from evergreen.serving.predicting import CHARGED, Question, answer_of, lines_of
from evergreen.serving.refusals import RequestError
from evergreen.serving.spool import Spool

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a request: a body, or an error. Who gave it is NOBODY when no version did.

    :ivar store_seconds: that the online store took, which are no version's doing.
    """

    body: bytes = b""
    error: RequestError | None = None
    version: str = NOBODY
    role: Role = "none"
    store_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits for its answer.

    :ivar question: as a version understands it, once one does.
    :ivar looked: whether the online store has been asked for it.
    :ivar spared: whether the champion answers it, though it is in the canary's share.
    :ivar held_by: who has it aside at this moment: the canary, or the online store, which is no
        version; None while its turn is the champion's.
    :ivar store_seconds: that it has waited for the online store.
    """

    asked: Asked
    request_id: str
    future: asyncio.Future[Outcome]
    loop: asyncio.AbstractEventLoop
    question: Question | None = None
    looked: bool = False
    spared: bool = False
    held_by: tuple[str, Role] | None = None
    store_seconds: float = 0.0


AT_STORE: tuple[str, Role] = (NOBODY, "none")


class Record:
    """Writes answers into the prediction log, and counts them. For any thread.

    :param replica: this process, for the log.
    """

    def __init__(
        self, declaration: Declaration, spool: Spool, metrics: ModelMetrics, replica: str
    ) -> None:
        self._declaration, self._spool = declaration, spool
        self._metrics, self._replica = metrics, replica

    def outcomes(
        self, settled: Sequence[tuple[Waiting, Question]]
    ) -> list[tuple[Waiting, Outcome]]:
        """Write the log, then say what is answered: nothing is, when it can't be written."""
        name = self._declaration.name
        questions = [question for _, question in settled]
        answered = [question for question in questions if question.error is None]
        bodies = {id(question): answer_of(question, name) for question in answered}
        self.append(answered)
        self.count(questions)
        return [
            (waiting, _outcome(question, bodies.get(id(question), b""), waiting.store_seconds))
            for waiting, question in settled
        ]

    def append(self, answered: Sequence[Question]) -> None:
        """Put answers into the prediction log; when that fails there are none."""
        lines = [line for q in answered for line in lines_of(q, self._declaration, self._replica)]
        if not lines:
            return
        try:
            self._spool.append(lines)
        except OSError as error:
            _log.error("%s: the prediction log: %s", self._declaration.name, error)
            self._metrics.log_failed()
            reason = "the prediction log can't be written; nothing is answered without it"
            for question in answered:
                question.error = RequestError(503, "log_unavailable", reason, retry_after=1)

    def count(self, questions: Iterable[Question]) -> None:
        """Count what was looked up and what was answered."""
        for question in questions:
            if question.looked_up and question.role != "shadow":
                self._metrics.looked_up(question.fallback, question.ages)
            if question.error is None:
                rows, likely = question.asked.rows, question.likely()
                self._metrics.answered(question.version.number, question.role, rows, likely)


def _outcome(question: Question, body: bytes, store_seconds: float) -> Outcome:
    """A request counts for its version when that answered or failed."""
    if question.error is not None and question.error.code not in CHARGED:
        return Outcome(error=question.error)
    version, role = question.version.number, question.role
    return Outcome(body, question.error, version, role, store_seconds)
