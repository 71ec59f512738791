"""What is enough to retrain, and what holds it back: the arbiter's rules, without a ledger.

`decide` is a pure function of a `Situation` and the declaration's triggers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from evergreen.declaration import Declaration, format_duration
from evergreen.declaration.schema import Budget
from evergreen.lifecycle.contracts import Action

CAUSES = (
    "manual",
    "performance",
    "drift",
    "new_data",
    "schedule",
)  # the first one present names a run


@dataclass(frozen=True)
class Violated:
    """How often a cause that monitoring watches was violated lately.

    :ivar windows: the judged windows its trigger looks back on, oldest first.
    :ivar violating: those with an open signal, and signals that others raised.
    """

    windows: tuple[str, ...] = ()
    violating: tuple[str, ...] = ()


@dataclass(frozen=True)
class Situation:
    """What the arbiter knows when it decides.

    :ivar as_of: the moment it decides for.
    :ivar causes: causes with an open signal.
    :ivar new_rows: labelled rows that matured since the last training.
    :ivar violated: cause → what monitoring found lately, for ``performance`` and ``drift``.
    :ivar stopped: why automatic retraining waits for a person; None when it doesn't.
    :ivar paused: who paused automatic retraining, and why; None when nobody has.
    :ivar disproved: why the live version is to be rolled back; None when it isn't.
    :ivar restores: the verified version to go back to; None when there is none.
    :ivar bootstrapped: whether some version has ever been live.
    :ivar trained: when the trainings so far were decided, ascending; for the cooldown.
    :ivar spent: when automatic retrains were decided, ascending, whatever became of them.
    :ivar in_flight: runs of other decisions that have not ended.
    """

    as_of: datetime
    causes: frozenset[str]
    new_rows: int
    violated: Mapping[str, Violated] = field(default_factory=dict)
    stopped: str | None = None
    paused: str | None = None
    disproved: str | None = None
    restores: str | None = None
    bootstrapped: bool = True
    trained: Sequence[datetime] = ()
    spent: Sequence[datetime] = ()
    in_flight: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What the arbiter says. ``cause`` is set when it says retrain."""

    action: Action
    reasons: tuple[str, ...]
    cause: str | None = None
    until: datetime | None = None


def decide(declaration: Declaration, situation: Situation) -> Answer:
    """Decide, by the declared triggers. Reads nothing but its arguments."""
    answer = _at_once(situation) or _without_weighing(declaration, situation)
    if answer is not None:
        return answer
    reasons = [
        _heard(declaration, situation, cause) for cause in CAUSES if cause in situation.causes
    ]
    enough = [cause for cause, sufficient, _ in reasons if sufficient]
    said = tuple(text for _, _, text in reasons)
    if not enough:
        return Answer("suppress", said)
    for until, why in _holds(declaration, situation):
        return Answer("suppress", (*said, why), until=until)
    return Answer("retrain", (*said, *_allowances(declaration, situation)), enough[0])


def _at_once(situation: Situation) -> Answer | None:
    """What is answered whether or not automatic retraining is held back.

    A run under way comes first: nothing is decided beside it. Then a person's wish, which is heard
    while a model is stopped or paused too: both hold back what the machine does by itself. Then
    the rollback of a disproved version: a pause is about learning, not about safety.
    """
    if situation.in_flight:
        return Answer("suppress", (f"a retrain is under way: {', '.join(situation.in_flight)}",))
    if "manual" in situation.causes:
        return Answer("retrain", ("a person asked: cooldown and budget don't apply",), "manual")
    if situation.disproved is not None and situation.restores is not None:
        back = f"version {situation.restores} is the last verified one: back to it"
        return Answer("rollback", (situation.disproved, back))
    return None


def _without_weighing(declaration: Declaration, situation: Situation) -> Answer | None:
    """What is answered before causes are weighed.

    A stop comes before a pause: it asks for a person, and a pause that hid the question would let
    it wait for as long as it holds. So a pause only ever takes the place of a retrain, or of
    another reason to suppress one. Neither answers a signal: they stay open.
    """
    if situation.stopped is not None:
        return Answer("investigate", (situation.stopped, "stopped until a person acknowledges it"))
    if situation.paused is not None:
        how = f"resume in Models, or by `evergreen resume {declaration.name}`"
        return Answer("suppress", (situation.paused, how))
    if not situation.causes:
        return Answer("suppress", ("nothing asks for a retrain",))
    return None


def _heard(declaration: Declaration, situation: Situation, cause: str) -> tuple[str, bool, str]:
    """Whether a cause is enough by itself, and the sentence that says so."""
    if cause == "schedule":
        return cause, True, f"schedule: {declaration.triggers.schedule} is due"
    if cause == "new_data":
        return cause, *_arrived(declaration, situation)
    return cause, *_violations(declaration, situation, cause)


def _arrived(declaration: Declaration, situation: Situation) -> tuple[bool, str]:
    trigger = declaration.triggers.new_data
    if trigger is not None:
        needed = trigger.min_rows
    elif not situation.bootstrapped:  # a model without a version can't wait for it to go bad
        needed = declaration.training.window.min_rows
    else:
        return False, "new_data: arrived, but it is not a declared trigger"
    return situation.new_rows >= needed, (
        f"new_data: {situation.new_rows:,} labels matured since the last training, "
        f"{needed:,} needed"
    )


def _violations(declaration: Declaration, situation: Situation, cause: str) -> tuple[bool, str]:
    """N of the last M judged windows, and something new to learn from."""
    trigger = declaration.triggers.drift if cause == "drift" else declaration.triggers.performance
    if trigger is None:
        return False, f"{cause}: not a declared trigger"
    found = situation.violated.get(cause, Violated())
    said = (
        f"{cause}: {len(found.violating)} of the last {trigger.of} windows violate "
        f"({', '.join(found.violating[-trigger.of :]) or 'none'}), {trigger.violations} needed"
    )
    if len(found.violating) < trigger.violations:
        return False, said
    if situation.new_rows < 1:
        return False, f"{said}; no label matured since the last training: nothing new to learn from"
    return True, said


def _holds(declaration: Declaration, situation: Situation) -> Iterator[tuple[datetime, str]]:
    """What holds a justified retrain back, and until when."""
    triggers = declaration.triggers
    if situation.trained and triggers.cooldown:
        until = max(situation.trained) + triggers.cooldown
        if situation.as_of < until:
            yield until, f"cooldown: {format_duration(triggers.cooldown)} since the last training"
    if triggers.budget:
        recent = _recent(declaration, situation)
        if len(recent) >= triggers.budget.runs:
            until = recent[-triggers.budget.runs] + triggers.budget.per
            yield until, _spent(triggers.budget, recent)


def _allowances(declaration: Declaration, situation: Situation) -> Iterator[str]:
    triggers = declaration.triggers
    if triggers.cooldown and situation.trained:
        yield f"cooldown: {format_duration(triggers.cooldown)}, last training {max(situation.trained).isoformat()}"
    if triggers.budget:
        yield _spent(triggers.budget, _recent(declaration, situation))


def _spent(budget: Budget, recent: Sequence[datetime]) -> str:
    return f"budget: {len(recent)} of {budget.runs} runs spent in {format_duration(budget.per)}"


def _recent(declaration: Declaration, situation: Situation) -> list[datetime]:
    budget = declaration.triggers.budget
    if budget is None:
        return []
    return [
        moment
        for moment in situation.spent
        if situation.as_of - budget.per < moment <= situation.as_of
    ]
