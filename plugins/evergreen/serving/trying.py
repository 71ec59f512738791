"""The candidate, tried beside the champion: it answers a share as canary, or all in the shadow.

Either way on threads of its own, so that a candidate that is slow, or never answers, keeps nobody
but itself: a canary's requests then go to the champion, and the candidate isn't asked any more
until its alias moves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from evergreen.errors import UnavailableError
from evergreen.serving.metrics import ModelMetrics
from evergreen.serving.outcomes import Record, Waiting
from evergreen.serving.patience import Beside
from evergreen.serving.predicting import Question, by_version, calm, look_up, predict, understand
from evergreen.serving.refusals import RequestError
from evergreen.serving.stations import Desk, Station

if TYPE_CHECKING:
    from evergreen.serving.online import OnlineFeatures
    from evergreen.serving.versions import Version

_log = logging.getLogger(__name__)
#: Seconds that a canary has for a batch: at least, more for each row, and at most. Clients wait.
CANARY = (1.0, 0.003, 10.0)
#: Seconds that a candidate has for a batch in the shadow, where nobody waits.
SHADOW = 60.0
#: Requests and rows that may wait for the canary; the champion answers the others.
CANARY_REQUESTS, CANARY_ROWS = 256, 2_048
#: Rows that may wait for the candidate's answer in the shadow; the oldest go without.
SHADOW_ROWS = 2_048


class Trial:
    """Asks a candidate, for so long; one that takes longer is given up. For one thread.

    :ivar given_up: the version that isn't asked any more, and why; for any thread to read.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._beside = Beside("the candidate")
        self._asked: Version | None = None
        self.given_up: tuple[Version, str] | None = None

    def takes(self, candidate: Version) -> bool:
        """Whether it is still asked."""
        given_up = self.given_up
        return given_up is None or given_up[0] is not candidate

    def predict(self, questions: Sequence[Question], seconds: float, role: str) -> bool:
        """Whether the candidate answered, or failed, within ``seconds``."""
        version = questions[0].version
        if version is not self._asked:  # what another left hanging is none of this one's
            self._beside.close()
            self._beside, self._asked = Beside("the candidate"), version
        try:
            self._beside.call(lambda: _predict(questions), seconds)
        except UnavailableError:
            rows = sum(question.asked.rows for question in questions)
            reason = (
                f"not asked any more as {role}: it took more than {seconds:.1f} s for {rows} "
                f"{'row' if rows == 1 else 'rows'}. Move the alias to have another one tried."
            )
            _log.warning("%s: version %s is %s", self._model, version.number, reason)
            self.given_up = (version, reason)
            return False
        return True

    def close(self) -> None:
        """Let go of what hangs."""
        self._beside.close()


def _predict(questions: Sequence[Question]) -> None:
    calm(questions[0].version)
    predict(questions)


class Canary(Station[Waiting]):
    """Answers the candidate's share of the requests."""

    def __init__(
        self, name: str, trial: Trial, record: Record, metrics: ModelMetrics, desk: Desk
    ) -> None:
        super().__init__(f"canary {name}")
        self._trial, self._record, self._metrics, self._desk = trial, record, metrics, desk

    def takes(self, candidate: Version, rows: int) -> bool:
        """Whether it may have a request of so many rows: it keeps up, and has room."""
        crowded = self.rows + rows > CANARY_ROWS and self.requests
        return self._trial.takes(candidate) and not crowded and self.requests < CANARY_REQUESTS

    def put(self, items: Iterable[Waiting]) -> None:
        """Let requests wait for the canary."""
        waiting = list(items)
        for each in waiting:
            if each.question is not None:
                each.held_by = (each.question.version.number, "canary")
        super().put(waiting)

    def stop(self, timeout: float) -> None:
        self._trial.close()
        super().stop(timeout)

    def _do(self, taken: Sequence[Waiting]) -> None:
        whose = {id(each.question): each for each in taken}
        for questions in by_version(each.question for each in taken if each.question):
            self._answer([(whose[id(question)], question) for question in questions])

    def _answer(self, asked: Sequence[tuple[Waiting, Question]]) -> None:
        """Let one version answer; the champion does when it can't in time."""
        questions = [question for _, question in asked]
        version, least, row, most = questions[0].version, *CANARY
        seconds = min(least + row * sum(question.asked.rows for question in questions), most)
        if not self._trial.takes(version):
            self._spare([waiting for waiting, _ in asked])
        elif self._trial.predict(questions, seconds, "canary"):
            self._desk.settle(self._record.outcomes(asked))
        else:
            for _ in asked:
                self._metrics.request(version.number, "canary", 504)
            self._spare([waiting for waiting, _ in asked])

    def _failed(self, taken: Sequence[Waiting]) -> None:
        self._spare([waiting for waiting in taken if not waiting.future.done()])

    def _spare(self, waiting: Sequence[Waiting]) -> None:
        """Let the champion answer."""
        for each in waiting:
            each.question, each.looked, each.spared, each.held_by = None, False, True, None
        self._desk.give_back(waiting)


class Shadow(Station[Question]):
    """Lets the candidate answer what the champion has answered, into the log only.

    It begins when the champion has nothing to do; what piles up meanwhile goes without.
    """

    def __init__(
        self,
        name: str,
        trial: Trial,
        record: Record,
        metrics: ModelMetrics,
        online: OnlineFeatures,
        candidate: Callable[[], Version | None],
    ) -> None:
        super().__init__(f"shadow {name}")
        self._trial, self._record, self._metrics = trial, record, metrics
        self._online, self._candidate = online, candidate
        self._free = True

    @property
    def free(self) -> bool:
        """Whether the champion has nothing to do."""
        return self._free

    @free.setter
    def free(self, free: bool) -> None:
        self._free = free
        if free and self.requests:
            with self._changed:
                self._changed.notify_all()

    def put(self, items: Iterable[Question]) -> None:
        """Keep answered questions for the candidate, the newest `SHADOW_ROWS` rows of them."""
        with self._changed:
            super().put(items)
            while self.rows - self._at_hand > SHADOW_ROWS:
                oldest = self._queue.popleft()
                self._forget([oldest])
                self._metrics.dropped(oldest.asked.rows)

    def stop(self, timeout: float) -> None:
        self._trial.close()
        super().stop(timeout)

    def _ready(self) -> bool:
        return self._free and super()._ready()

    def _do(self, taken: Sequence[Question]) -> None:
        candidate = self._candidate()
        if candidate is None or candidate is taken[0].version or not self._trial.takes(candidate):
            return
        shadows = [self._again(question, candidate) for question in taken]
        lacking = [q for q in shadows if not set(q.looked_up) <= set(q.values)]
        look_up([q for q in lacking if q.error is None], self._online)
        asked = [question for question in shadows if question.error is None]
        if asked and not self._trial.predict(asked, SHADOW, "shadow"):
            for _ in asked:
                self._metrics.request(candidate.number, "shadow", 504)
            return
        self._record.append([question for question in shadows if question.error is None])
        self._record.count(shadows)
        for question in shadows:
            code = question.error.status if question.error else 200
            if code != 503:  # the store's doing or the log's, and the request is counted already
                self._metrics.request(candidate.number, "shadow", code)

    def _again(self, question: Question, candidate: Version) -> Question:
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
