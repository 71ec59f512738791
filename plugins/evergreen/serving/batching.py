"""What is done with requests that are answered together, by whom, and what is written of it.

The champion answers. A candidate in ``canary`` mode answers its share in the same batch; in
``shadow`` mode it answers afterwards and only into the log, when there is time. A batch takes
both objects once, so that a swap needs no lock and no response is of two versions. Its lines are
in the prediction log before the first of its answers leaves.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from evergreen.declaration import Declaration
from evergreen.lifecycle.servers import SMOKE
from evergreen.serving.metrics import NOBODY, ModelMetrics, Role
from evergreen.serving.payloads import Asked
from evergreen.serving.predicting import (
    CHARGED,
    Question,
    answer_of,
    lines_of,
    look_up,
    predict,
    understand,
)
from evergreen.serving.refusals import RequestError

if TYPE_CHECKING:
    from evergreen.serving.online import OnlineFeatures
    from evergreen.serving.spool import Spool
    from evergreen.serving.versions import Version

_log = logging.getLogger(__name__)
#: Rows that are answered together; one request with more is a batch of its own.
BATCH_ROWS = 512
#: Rows that may wait for the candidate's answer in the shadow; the oldest go without.
SHADOW_ROWS = 2_048
_NOBODY: tuple[str, Role] = (NOBODY, "none")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a request: a body, or an error. Who gave it is NOBODY when no version did."""

    body: bytes = b""
    error: RequestError | None = None
    version: str = NOBODY
    role: Role = "none"


class Aliased(Protocol):
    """Who answers at this moment; see `evergreen.serving.versions.Versions`."""

    @property
    def champion(self) -> Version | None:
        """None while no version is loaded."""

    @property
    def candidate(self) -> Version | None:
        """None while none is tried."""


class Batches:
    """Answers one model's batches. For one thread.

    :ivar at_work: the version that predicts at this moment, and its role; for any thread to read.
    :param replica: this process, for the log.
    :param clock: the time, aware.
    """

    def __init__(
        self,
        declaration: Declaration,
        versions: Aliased,
        online: OnlineFeatures,
        spool: Spool,
        metrics: ModelMetrics,
        *,
        replica: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._declaration, self._versions, self._online = declaration, versions, online
        self._spool, self._metrics = spool, metrics
        self._replica, self._clock = replica, clock
        self._shadows: deque[Question] = deque()
        self._shadow_rows = 0
        self._calmed: Version | None = None
        self.at_work: tuple[str, Role] = _NOBODY

    @property
    def behind(self) -> bool:
        """Whether the candidate has something to answer in the shadow."""
        return bool(self._shadows)

    def answer(self, batch: Sequence[tuple[Asked, str]]) -> list[Outcome]:
        """What becomes of each request.

        :param batch: requests and their ids.
        """
        champion, candidate = self._versions.champion, self._versions.candidate
        if champion is None:
            reason = "no version of the model is loaded"
            error = RequestError(503, "no_version", reason, retry_after=1)
            return [Outcome(error=error)] * len(batch)
        self._calm(champion)
        now = self._clock()
        questions = [self._question(*each, champion, candidate, now) for each in batch]
        self._ask([q for q in questions if q.role == "champion"])
        self._ask([q for q in questions if q.role == "canary"])
        outcomes = self._outcomes(questions)
        if candidate is not None and self._declaration.serving.candidate.mode == "shadow":
            self._remember(question for question in questions if question.role == "champion")
        return outcomes

    def answer_shadows(self) -> None:
        """Let the candidate answer some of what the champion has answered, into the log only."""
        taken: list[Question] = []
        rows = 0
        while self._shadows and (not taken or rows + self._shadows[0].asked.rows <= BATCH_ROWS):
            taken.append(self._shadows.popleft())
            rows += taken[-1].asked.rows
        self._shadow_rows -= rows
        candidate = self._versions.candidate
        if candidate is None or candidate is taken[0].version:
            return
        shadows = [self._shadow(question, candidate) for question in taken]
        self._ask_again(shadows)
        self._append([question for question in shadows if question.error is None])
        self._count(shadows)
        for question in shadows:
            code = question.error.status if question.error else 200
            if code != 503:  # the store's doing or the log's, and the request is counted already
                self._metrics.request(candidate.number, "shadow", code)

    def _question(
        self,
        asked: Asked,
        request_id: str,
        champion: Version,
        candidate: Version | None,
        now: datetime,
    ) -> Question:
        """A request for the canary, if it falls to it and has what that needs; else the champion."""
        if candidate is not None and self._is_canarys(asked, request_id):
            question = Question(asked, request_id, candidate, "canary", now)
            try:
                understand(question, self._online)
            except RequestError:  # right for the champion, perhaps: it says what is wrong
                pass
            else:
                return question
        question = Question(asked, request_id, champion, "champion", now)
        try:
            understand(question, self._online)
        except RequestError as error:
            question.error = error
        return question

    def _is_canarys(self, asked: Asked, request_id: str) -> bool:
        """Whether a request's first row is in the canary's share: always the same entities are.

        Evergreen's own smoke requests never are: they are to try the champion.
        """
        declared = self._declaration.serving.candidate
        if declared.mode != "canary" or request_id.startswith(SMOKE):
            return False
        keys = [values[0] for values in asked.entities.values()]
        named = any(key is not None for key in keys)
        said = [self._declaration.name, *([str(key) for key in keys] if named else [request_id])]
        digest = hashlib.sha256("\x1f".join(said).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < declared.share * 2**64

    def _ask(self, questions: Sequence[Question]) -> None:
        """Look up and predict for one version's questions."""
        look_up([q for q in questions if q.error is None], self._online)
        self._predict([q for q in questions if q.error is None])

    def _predict(self, questions: Sequence[Question]) -> None:
        """Predict for one version's questions, and say meanwhile who is at work."""
        if not questions:
            return
        self.at_work = (questions[0].version.number, questions[0].role)
        try:
            predict(questions)
        finally:
            self.at_work = _NOBODY

    def _outcomes(self, questions: Sequence[Question]) -> list[Outcome]:
        """Write the log, then say what is answered: nothing is, when it can't be written."""
        name = self._declaration.name
        answered = [question for question in questions if question.error is None]
        bodies = {id(question): answer_of(question, name) for question in answered}
        self._append(answered)
        self._count(questions)
        return [_outcome(question, bodies.get(id(question), b"")) for question in questions]

    def _append(self, answered: Sequence[Question]) -> None:
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

    def _count(self, questions: Iterable[Question]) -> None:
        for question in questions:
            if question.looked_up and question.role != "shadow":
                self._metrics.looked_up(question.fallback, question.ages)
            if question.error is None:
                rows, likely = question.asked.rows, question.likely()
                self._metrics.answered(question.version.number, question.role, rows, likely)

    def _remember(self, questions: Iterable[Question]) -> None:
        """Keep answered questions for the candidate, the newest `SHADOW_ROWS` rows of them."""
        for question in questions:
            if question.error is None:
                self._shadows.append(question)
                self._shadow_rows += question.asked.rows
        while self._shadow_rows > SHADOW_ROWS:
            rows = self._shadows.popleft().asked.rows
            self._shadow_rows -= rows
            self._metrics.dropped(rows)

    def _shadow(self, question: Question, candidate: Version) -> Question:
        """The same question for the candidate, with the features that were looked up already."""
        shadow = Question(
            question.asked, question.request_id, candidate, "shadow", question.served_at
        )
        try:
            understand(shadow, self._online)
        except RequestError as error:
            shadow.error = error
        if set(shadow.looked_up) <= set(question.looked_up):
            shadow.values |= {name: question.values[name] for name in shadow.looked_up}
            shadow.fallback, shadow.ages = question.fallback, question.ages
        return shadow

    def _ask_again(self, shadows: Sequence[Question]) -> None:
        """Predict for shadows; those are looked up for whom the champion's features don't do."""
        lacking = [q for q in shadows if not set(q.looked_up) <= set(q.values)]
        look_up([q for q in lacking if q.error is None], self._online)
        self._predict([q for q in shadows if q.error is None])

    def _calm(self, version: Version) -> None:
        """One thread of OpenMP and BLAS: on few rows a team of them costs more than it saves.

        Again for each version, which may have loaded another library.
        """
        if self._calmed is not version:
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

            threadpool_limits(limits=1)
            self._calmed = version


def _outcome(question: Question, body: bytes) -> Outcome:
    """A request counts for its version when that answered or failed."""
    if question.error is not None and question.error.code not in CHARGED:
        return Outcome(error=question.error)
    return Outcome(body, question.error, question.version.number, question.role)
