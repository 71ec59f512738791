"""Questions that wait together are answered together: one lookup, one frame, one predict a version.

A question keeps its own errors: one that lacks a column, or whose features can't be had, or on
which the model fails, costs its neighbours at most a second try, each by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import local
from typing import TYPE_CHECKING, Any

import msgspec

from evergreen.declaration import Declaration, Task
from evergreen.errors import EvergreenError
from evergreen.lifecycle.fitted import FittedModel, shaped
from evergreen.serving.columns import values_of
from evergreen.serving.metrics import Role
from evergreen.serving.payloads import Asked
from evergreen.serving.refusals import RequestError

if TYPE_CHECKING:
    import numpy as np

    from evergreen.serving.online import OnlineFeatures
    from evergreen.serving.versions import Version

    Array = np.ndarray[Any, np.dtype[Any]]

_log = logging.getLogger(__name__)
REJECTED, FAILED = "features_rejected", "model_failed"
CHARGED = frozenset({FAILED})
"""The errors that count for the version that was asked: lacking features are the store's doing."""
_encode = msgspec.json.Encoder().encode
_calmed = local()


@dataclass(slots=True)
class Question:
    """A request as one version understands it.

    :ivar values: feature → a value a row; from the request, and from the online store.
    :ivar looked_up: the features that came from the online store.
    :ivar answers: as ``predict_proba`` or ``predict`` gave them, shape (rows, …).
    :ivar error: why there are none.
    """

    asked: Asked
    request_id: str
    version: Version
    role: Role
    served_at: datetime
    values: dict[str, list[Any]] = field(default_factory=dict)
    looked_up: tuple[str, ...] = ()
    fallback: list[str | None] = field(default_factory=list)
    ages: list[float | None] = field(default_factory=list)
    answers: Array | None = None
    error: RequestError | None = None

    def likely(self) -> list[float]:
        """The probability that is watched, a row: of class 1, or the highest. None of values."""
        if self.answers is None or not self.version.fitted.task.classifies:
            return []
        binary = self.version.fitted.task is Task.BINARY
        found: list[float] = (self.answers[:, 1] if binary else self.answers.max(axis=1)).tolist()
        return found


def understand(question: Question, online: OnlineFeatures) -> None:
    """Take the features that the request itself brings.

    :raises RequestError: when it lacks one, or one is of another type.
    """
    features = question.version.fitted.features
    table = question.asked.table.named(features)
    rows = question.asked.rows
    if question.asked.route == "predict":
        elsewhere = set(online.names)
        question.looked_up = tuple(f.name for f in features if f.name in elsewhere)
        features = tuple(f for f in features if f.name not in elsewhere)
    question.values = values_of(table, features)
    question.fallback, question.ages = [None] * rows, [None] * rows


def look_up(questions: Sequence[Question], online: OnlineFeatures) -> None:
    """Read the online features of one version's questions at once; note whose can't be had."""
    asking = [question for question in questions if question.looked_up]
    if not asking:
        return
    rows = [row for question in asking for row in _keys(question.asked)]
    try:
        looked = online.lookup(asking[0].looked_up, rows)
    except EvergreenError as error:
        _log.warning("features can't be looked up: %s", error)
        for question in asking:
            question.error = _rejected("features: unreachable")
        return
    start = 0
    for question in asking:
        end = start + question.asked.rows
        for name in question.looked_up:
            question.values[name] = looked.values[name][start:end]
        question.fallback = looked.fallback[start:end]
        question.ages = looked.age_seconds[start:end]
        for row, problem in enumerate(looked.problem[start:end]):
            if problem is not None:
                question.error = _rejected(problem, row)
                break
        start = end


def _keys(asked: Asked) -> Iterator[dict[str, Any]]:
    for row, moment in enumerate(asked.moments):
        keys = {name: values[row] for name, values in asked.entities.items()}
        yield {**keys, "event_timestamp": moment}


def _rejected(problem: str, row: int | None = None) -> RequestError:
    return RequestError(503, REJECTED, problem, row=row, retry_after=1)


def by_version(questions: Iterable[Question]) -> list[list[Question]]:
    """Questions of one version each, in order."""
    found: dict[int, list[Question]] = {}
    for question in questions:
        found.setdefault(id(question.version), []).append(question)
    return list(found.values())


def calm(version: Version) -> None:
    """One thread of OpenMP and BLAS: on few rows a team of them costs more than it saves.

    For the thread that calls, and again for each version, which may have loaded another library.
    """
    if getattr(_calmed, "version", None) is not version:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

        threadpool_limits(limits=1)
        _calmed.version = version


def predict(questions: Sequence[Question]) -> None:
    """Let one version answer questions at once; note those that it can't answer.

    When the whole fails, each is asked by itself, once: what makes the model fail is in one.
    """
    if not questions:
        return
    fitted = questions[0].version.fitted
    values = {
        feature.name: [value for q in questions for value in q.values[feature.name]]
        for feature in fitted.features
    }
    try:
        answers = ask(fitted, values, sum(question.asked.rows for question in questions))
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        if len(questions) > 1:
            for question in questions:
                predict([question])
        else:
            _log.warning(
                "version %s failed: %s: %r",  # %r: a model's text must not look like our own lines
                questions[0].version.number,
                type(error).__name__,
                str(error),
            )
            questions[0].error = _failed()
        return
    _hand_out(questions, answers)


def ask(fitted: FittedModel, values: Mapping[str, Sequence[Any]], rows: int) -> Array:
    """An estimator's raw answers to columns of values, float64, shape (rows, …).

    :raises ValueError: when there aren't as many answers as rows.
    """
    import numpy as np
    import pandas as pd

    columns = {
        feature.name: np.array(
            values[feature.name], dtype="float64" if feature.type == "number" else "object"
        )
        for feature in fitted.features
    }
    frame = pd.DataFrame(columns, copy=False)
    estimator = fitted.estimator
    found = estimator.predict_proba(frame) if fitted.task.classifies else estimator.predict(frame)
    answers = np.asarray(found, dtype=np.float64)
    if len(answers) != rows:
        raise ValueError(f"{len(answers)} answers to {rows} rows")
    return answers


def _hand_out(questions: Sequence[Question], answers: Array) -> None:
    """Give each question its own; one with an answer that isn't finite gets none."""
    import numpy as np

    finite = np.isfinite(answers).reshape(len(answers), -1).min(axis=1)
    whole, start = bool(finite.all()), 0
    for question in questions:
        end = start + question.asked.rows
        if whole or finite[start:end].all():
            question.answers = answers[start:end]
        else:
            row = int(np.argmin(finite[start:end]))
            _log.warning("version %s answered NaN or infinity", question.version.number)
            question.error = _failed(row)
        start = end


def _failed(row: int | None = None) -> RequestError:
    return RequestError(500, FAILED, "the model could not answer this request", row=row)


def answer_of(question: Question, model: str) -> bytes:
    """The body of an answered question."""
    if question.answers is None:
        raise ValueError("the question has no answers")
    if question.asked.route == "invocations":
        return _encode({"predictions": question.answers.tolist()})
    known = zip(_told(question.version.fitted, question.answers), question.fallback, question.ages,
                strict=True)  # fmt: skip
    found = [
        {**told, "fallback": fallback, "feature_age_seconds": age} for told, fallback, age in known
    ]
    return _encode(
        {
            "model": model,
            "version": question.version.number,
            "request_id": question.request_id,
            "predictions": found,
        }
    )


def _told(fitted: FittedModel, answers: Array) -> Iterator[dict[str, Any]]:
    if fitted.task is not Task.MULTICLASS:
        yield from ({"prediction": value} for value in shaped(fitted.task, answers).tolist())
        return
    classes = fitted.classes or tuple(map(str, range(answers.shape[1])))
    for row in answers.tolist():
        likeliest = max(range(len(row)), key=row.__getitem__)
        yield {"probabilities": dict(zip(classes, row, strict=True)), "class": classes[likeliest]}


def lines_of(question: Question, declaration: Declaration, replica: str) -> Iterator[bytes]:
    """The prediction log's lines of an answered question, one a row."""
    if question.answers is None:
        raise ValueError("the question has no answers")
    fitted, asked = question.version.fitted, question.asked
    served_at = iso(question.served_at)
    names = [feature.name for feature in fitted.features]
    rows = zip(*(question.values[name] for name in names), strict=True)
    empty = [None] * asked.rows
    entities = [asked.entities.get(name, empty) for name in declaration.data.entities]
    predictions = shaped(fitted.task, question.answers).tolist()
    online = list(question.looked_up)
    for row, values in enumerate(rows):
        moment = asked.moments[row]
        yield _encode(
            {
                "request_id": question.request_id,
                "request_row": row,
                "served_at": served_at,
                "replica": replica,
                "route": asked.route,
                "role": question.role,
                "model_version": question.version.number,
                "event_timestamp": served_at if moment is None else iso(moment),
                "entities": dict(
                    zip(declaration.data.entities, (e[row] for e in entities), strict=True)
                ),
                "features": dict(zip(names, values, strict=True)),
                "online": online,
                "slices": {name: found[row] for name, found in asked.slices.items()},
                "prediction": predictions[row],
                "fallback": question.fallback[row],
                "feature_age": question.ages[row],
            }
        )


def iso(moment: datetime) -> str:
    """A UTC moment as the log spells it: to the microsecond."""
    return moment.isoformat(timespec="microseconds")
