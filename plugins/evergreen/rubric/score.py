"""The ML Test Score: 28 findings, four sections, and the smallest of them.

E. Breck, S. Cai, E. Nielsen, M. Salib and D. Sculley, "The ML Test Score: A Rubric for ML
Production Readiness and Technical Debt Reduction", IEEE Big Data 2017. Half a point for a test
that is done by hand and written down, a whole one for a test that runs by itself, regularly. A
section is the sum of its tests, the score the smallest section.

A person's declaration raises what is known; what Evergreen measures itself and found failing it
doesn't touch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.declaration.scorecard import SECTIONS, TESTS, DeclaredTest, RubricTest, Section
from evergreen.rubric import data, infrastructure, model, monitoring, people
from evergreen.rubric.asking import know
from evergreen.rubric.known import Judged, Known

By = Literal["automatic", "partly", "declared", "none"]

_JUDGES: dict[str, Callable[[Known], Judged]] = {
    **people.TESTS,
    **data.TESTS,
    **model.TESTS,
    **infrastructure.TESTS,
    **monitoring.TESTS,
}
#: The paper's reading of a score up to a bound, in our words.
_READINGS = (
    (0.0, "a research project rather than a system in production"),
    (1.0, "not untested, but serious holes in reliability are to be expected"),
    (2.0, "a first pass at what production asks; more has to be invested"),
    (3.0, "reasonably tested; more of it could be automatic"),
    (5.0, "strongly tested and monitored: fit for what must not fail"),
)
_BEST = "exceptionally tested and monitored"


@dataclass(frozen=True)
class Finding:
    """One test of the 28.

    :ivar id: its key in ``ml_test_score``.
    :ivar number: its place in its section, 1 to 7.
    :ivar points: 0, 0.5 or 1.
    :ivar by: how the points came: ``automatic`` is a whole one, ``partly`` half of what Evergreen
        sees, ``declared`` by a person.
    :ivar todo: what to do next; None only for a whole point.
    """

    id: str
    section: Section
    number: int
    title: str
    points: float
    by: By
    evidence: str
    todo: str | None


@dataclass(frozen=True)
class Score:
    """A model's score.

    :ivar findings: all 28, in the paper's order.
    :ivar sections: section → the sum of its points, 0 to 7.
    :ivar total: the smallest section.
    :ivar reading: what such a total means.
    """

    model: str
    findings: tuple[Finding, ...]
    sections: dict[Section, float]
    total: float
    reading: str

    def to_dict(self) -> dict[str, Any]:
        """The score as plain values."""
        return asdict(self)


def score_of(declaration: Declaration, session: Session) -> Score:
    """Score a model by its declaration and the newest of its ledger.

    :param session: of `Ledger.read`. Some fifteen short queries, however old the model is; the
        store is not read, the model's folder only for its suite.
    """
    known = know(declaration, session)
    findings = tuple(
        _finding(test, _JUDGES[test.id](known), declaration.ml_test_score.get(test.id))
        for test in TESTS.values()
    )
    sections = {
        section: sum(found.points for found in findings if found.section == section)
        for section in SECTIONS
    }
    total = min(sections.values())
    return Score(declaration.name, findings, sections, total, reading(total))


def reading(total: float) -> str:
    """What a total means: the paper's table of scores, in our words."""
    return next((words for bound, words in _READINGS if total <= bound), _BEST)


def _finding(test: RubricTest, judged: Judged, said: DeclaredTest | None) -> Finding:
    """A test's points: what is known, or what a person says where that is more."""
    points, evidence, todo = judged.points, judged.evidence, judged.todo
    by: By = "automatic" if points == 1 else "partly" if points else "none"
    if said is not None:
        words = f"{said.by}, {said.on.isoformat()}: {said.evidence}"
        if judged.failing:
            evidence = f"{evidence}. Declared by {words}; what is measured and fails comes first"
        elif said.points > points:
            points, by, evidence = said.points, "declared", f"{words} ({evidence})"
            todo = None if points == 1 else _automate(test.id)
    return Finding(test.id, test.section, test.number, test.title, points, by, evidence, todo)


def _automate(name: str) -> str:
    return f"let it run by itself, regularly; then declare `points: 1` in `ml_test_score.{name}`"
