"""What is done with requests that are answered together, by whom, and what is written of it.

The champion answers on the thread that asks. What may keep others waiting is done beside it (see
`evergreen.serving.stations`): the online store is asked, and a candidate answers its share as
canary, or afterwards and only into the log in ``shadow`` mode. A batch takes both versions once,
so that a swap needs no lock and no response is of two versions. Its lines are in the prediction
log before the first of its answers leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from evergreen.declaration import Declaration
from evergreen.lifecycle.servers import SMOKE
from evergreen.serving.metrics import NOBODY, ModelMetrics, Role
from evergreen.serving.outcomes import Outcome, Record, Waiting
from evergreen.serving.predicting import Question, by_version, calm, predict, understand
from evergreen.serving.refusals import RequestError
from evergreen.serving.stations import Desk, Lookups
from evergreen.serving.trying import Canary, Shadow, Trial

if TYPE_CHECKING:
    from evergreen.serving.online import OnlineFeatures
    from evergreen.serving.spool import Spool
    from evergreen.serving.versions import Version

_NOBODY: tuple[str, Role] = (NOBODY, "none")


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

    :ivar at_work: the champion that predicts at this moment, and its role; for any thread to read.
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
        self._metrics, self._clock = metrics, clock
        self._record = Record(declaration, spool, metrics, replica)
        self._trial = Trial(declaration.name)
        self.at_work: tuple[str, Role] = _NOBODY

    def start(self, desk: Desk) -> None:
        """Begin to work beside the thread that answers.

        :param desk: where requests come back to.
        """
        name, metrics = self._declaration.name, self._metrics
        self._lookups = Lookups(name, self._online, desk)
        self._canary = Canary(name, self._trial, self._record, metrics, desk)
        self._shadow = Shadow(
            name, self._trial, self._record, metrics, self._online,
            lambda: self._versions.candidate,
        )  # fmt: skip
        for station in (self._lookups, self._canary, self._shadow):
            station.start()

    def stop(self, timeout: float) -> None:
        """End what is beside, in about ``timeout`` seconds."""
        for station in (self._lookups, self._canary, self._shadow):
            station.stop(timeout / 3)

    @property
    def aside(self) -> tuple[int, int]:
        """How many requests, and rows, wait beside for the store or the canary."""
        lookups, canary = self._lookups, self._canary
        return lookups.requests + canary.requests, lookups.rows + canary.rows

    @property
    def given_up(self) -> tuple[Version, str] | None:
        """A candidate that isn't asked any more, and why."""
        return self._trial.given_up

    def rest(self) -> None:
        """Nobody waits: the candidate has time."""
        self._shadow.free = True

    def answer(self, batch: Sequence[Waiting]) -> list[tuple[Waiting, Outcome]]:
        """What becomes of the requests; those that are left out have their turn beside."""
        self._shadow.free = False
        champion, candidate = self._versions.champion, self._versions.candidate
        if champion is None:
            reason = "no version of the model is loaded"
            error = RequestError(503, "no_version", reason, retry_after=1)
            return [(waiting, Outcome(error=error)) for waiting in batch]
        own = self._kept(batch, champion, candidate)
        self._predict([question for _, question in own if question.error is None])
        outcomes = self._record.outcomes(own)
        shadows = self._declaration.serving.candidate.mode == "shadow"
        if shadows and candidate is not None and self._trial.takes(candidate):
            self._shadow.put(q for _, q in own if q.error is None and q.role == "champion")
        return outcomes

    def _kept(
        self, batch: Sequence[Waiting], champion: Version, candidate: Version | None
    ) -> list[tuple[Waiting, Question]]:
        """Send requests for their features, or to the canary; what is left is answered here."""
        now = self._clock()
        lookups, canaries = [], []
        own: list[tuple[Waiting, Question]] = []
        for waiting in batch:
            question = waiting.question or self._question(waiting, champion, candidate, now)
            waiting.question = question
            if question.error is not None:
                own.append((waiting, question))
            elif question.looked_up and not waiting.looked:
                lookups.append(waiting)
            elif question.role == "canary":
                canaries.append(waiting)
            else:
                own.append((waiting, question))
        self._lookups.put(lookups)
        self._canary.put(canaries)
        return own

    def _question(
        self, waiting: Waiting, champion: Version, candidate: Version | None, now: datetime
    ) -> Question:
        """A request for the canary, if it falls to it and has what that needs; else the champion."""
        asked, request_id = waiting.asked, waiting.request_id
        if candidate is not None and self._is_canarys(waiting, candidate):
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

    def _is_canarys(self, waiting: Waiting, candidate: Version) -> bool:
        """Whether a request's first row is in the canary's share: always the same entities are.

        Evergreen's own smoke requests never are: they are to try the champion.
        """
        asked, request_id = waiting.asked, waiting.request_id
        declared = self._declaration.serving.candidate
        if declared.mode != "canary" or request_id.startswith(SMOKE) or waiting.spared:
            return False
        if not self._canary.takes(candidate, asked.rows):
            return False
        keys = [values[0] for values in asked.entities.values()]
        named = any(key is not None for key in keys)
        said = [self._declaration.name, *([str(key) for key in keys] if named else [request_id])]
        digest = hashlib.sha256("\x1f".join(said).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < declared.share * 2**64

    def _predict(self, questions: Sequence[Question]) -> None:
        """Let the champion answer, and say meanwhile who is at work.

        What came back from the store may still be of the version before.
        """
        for asked in by_version(questions):
            self.at_work = (asked[0].version.number, asked[0].role)
            try:
                calm(asked[0].version)
                predict(asked)
            finally:
                self.at_work = _NOBODY
