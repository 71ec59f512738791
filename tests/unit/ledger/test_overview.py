"""What is asked of many models at once is what is asked of each, in as many statements for forty
models as for three."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.orm import Session

from evergreen.ledger import Ledger, acts, chronicle, overview, records
from evergreen.ledger.tables import (
    AnswerRow,
    ConsumedSignalRow,
    DecisionRow,
    EscalationRow,
    MeasurementRow,
    PromotionRow,
    VerdictRow,
)
from tests.many import fill, model_name

DAY = datetime(2013, 1, 2, tzinfo=UTC)
NAMES = [model_name(number) for number in range(4)]
fresh = count()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Four models of 120 decisions each, whose lives differ. Not to be changed."""
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('many')}/ledger.db")
    fill(ledger, 4, 120, measured=30)
    with ledger.write() as session:
        acts.pause(session, NAMES[0], key="1", person="vera", comment="audit")
        acts.pause(session, NAMES[1], key="1", person="vera", comment="audit")
        acts.resume(session, NAMES[1], key="2", person="ann", comment="")
        acts.act(session, NAMES[0], "2", "retrain", "ann", "newer than the pause")
        stopped = records.last_escalation(session, NAMES[3])
        assert stopped is not None
        for number, said in enumerate(("unanswered", "acknowledged")):
            session.add(
                AnswerRow(model=NAMES[3], escalation_id=stopped.id, run_id=f"r{number}",
                          answer=said, person="vera", comment="seen")
            )  # fmt: skip
        stopped_again = EscalationRow(
            model=NAMES[0], cause="rollback", decision_id=7, as_of=DAY, priority="P2", futile=0,
            reason="what it promoted was rolled back",
        )  # fmt: skip
        session.add(stopped_again)
        _measure(session, NAMES[1], "2030-01-01", DAY + timedelta(days=9000), judged=False)
    return ledger


def _measure(
    session: Session, model: str, window: str, start: datetime, *, judged: bool = True,
    kind: str = "drift", version: str = "3", violates: Iterable[str] = (), **evidence: Any,
) -> None:  # fmt: skip
    sequence = next(fresh)
    session.add(
        MeasurementRow(
            model=model, kind=kind, window=window, version=version, start=start,
            end=start + timedelta(days=1), as_of=start, sequence=sequence, digest="d",
            judged=judged, violates=list(violates), evidence=evidence,
        )
    )  # fmt: skip


def test_an_empty_ledger_has_nothing(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/ledger.db").read() as session:
        assert overview.live(session, []) == {}
        assert overview.open_signals(session, ["nobody"]) == {}
        assert overview.measured(session, []) == {}


def same_as_one_by_one(session: Session, names: list[str]) -> None:
    """Compare every function with the one that asks for one model."""
    live = each(names, lambda name: records.champion(session, name))
    assert overview.live(session, names) == live
    last = each(names, lambda name: chronicle.entries(session, name, limit=1))
    assert overview.last_decisions(session, names) == {m: e[0].decision for m, e in last.items()}
    stops = each(names, lambda name: records.last_escalation(session, name))
    assert overview.last_escalations(session, names) == {
        name: (row, list(records.answers_to(session, row.id))) for name, row in stops.items()
    }
    promotions = [row.id for row in live.values()]
    come = each(promotions, lambda key: set(records.events_of(session, key)))
    assert overview.events(session, promotions) == come
    paused = each(names, lambda name: acts.pause_of(session, name))
    assert overview.pauses(session, names) == paused
    signals = each(names, lambda name: one_by_one(session, name))
    assert overview.open_signals(session, names) == signals
    verdicts = each(live.values(), lambda row: chronicle.verdict_of(session, row))
    assert overview.primaries(session, live.values()) == {
        row.model: verdict.evidence["primary"] for row, verdict in verdicts.items()
    }
    measured = overview.measured(session, live.values())
    for name, row in live.items():
        latest = (
            chronicle.latest(session, row, "drift"), chronicle.latest(session, row, "performance"),
            chronicle.latest(session, row, "performance", "realised"),
        )  # fmt: skip
        expected = {(found.kind, found.window): found for found in latest if found}
        found = {(each.kind, each.window): each for each in measured.get(name, [])}
        assert set(found) == set(expected)
        for key, one in found.items():
            told = expected[key].evidence
            assert (one.judged, one.violates) == (True, tuple(expected[key].violates))
            assert (one.share, one.share_bound) == (told.get("share"), told.get("share_bound"))
            assert (one.realised, one.reference) == (
                told.get("realised", {}), told.get("reference", {})
            )  # fmt: skip
            assert one.end == expected[key].end


def each(keys: Iterable[Any], ask: Callable[[Any], Any]) -> dict[Any, Any]:
    """Key → what is found for it, where something is."""
    return {key: found for key in keys if (found := ask(key))}


def one_by_one(session: Session, model: str) -> Counter[str]:
    return Counter(signal.cause for signal in records.open_signals(session, model))


def test_every_answer_is_that_of_each_model(ledger: Ledger) -> None:
    with ledger.read() as session:
        same_as_one_by_one(session, [*NAMES, "nobody"])
        assert set(overview.pauses(session, NAMES)) == {NAMES[0]}
        assert len(overview.last_escalations(session, NAMES)) == 2
        assert any(overview.open_signals(session, NAMES).values())


@pytest.mark.parametrize("size", [1, 3])
def test_many_names_are_asked_for_in_parts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(overview, "_AT_ONCE", size)  # else it takes 5,000 models
    with ledger.read() as session, counted(session) as statements:
        same_as_one_by_one(session, NAMES)
        before = len(statements)
        overview.pauses(session, NAMES)
        assert len(statements) - before == -(-len(NAMES) // size)


def test_forty_models_take_as_many_statements_as_three(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forty = Ledger(f"sqlite:///{tmp_path}/forty.db")
    fill(forty, 40, 55, measured=2)
    some = [model_name(each) for each in range(3, 33)]
    with forty.read() as session:
        same_as_one_by_one(session, some)
        monkeypatch.setattr(overview, "_AT_ONCE", 25)  # else it takes 5,000 models
        same_as_one_by_one(session, [*some, "nobody"])
        monkeypatch.undo()
    taken = []
    for which, number in ((ledger, 3), (forty, 40)):
        names = [model_name(each) for each in range(number)]
        with which.read() as session, counted(session) as statements:
            live = overview.live(session, names)
            assert len(live) == number
            overview.last_decisions(session, names)
            overview.last_escalations(session, names)
            overview.events(session, [row.id for row in live.values()])
            overview.measured(session, live.values())
            overview.primaries(session, live.values())
            overview.open_signals(session, names)
            overview.pauses(session, names)
        taken.append(len(statements))
    assert taken[0] == taken[1] <= 15


@contextmanager
def counted(session: Session) -> Iterator[list[str]]:
    """The statements that a session sends meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    bind = session.get_bind()
    event.listen(bind, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(bind, "before_cursor_execute", note)


def decided(model: str, run_id: str, action: str = "retrain") -> DecisionRow:
    return DecisionRow(
        model=model, run_id=run_id, action=action, causes=[], reasons=[], as_of=DAY, sequence=1,
        tune=False,
    )  # fmt: skip


def test_a_metric_is_that_of_the_verdict_the_version_passed(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.write() as session:
        for run, primary in (("theirs", "log_loss"), ("another", "roc_auc")):
            verdict = VerdictRow(
                model="example", run_id=run, verdict="promote", promotes=True, reason="",
                as_of=DAY, mlflow_run=run, rules=[], evidence={"primary": primary},
            )  # fmt: skip
            session.add(verdict)
        live = PromotionRow(
            model="example", position=1, run_id="theirs", version="1", kind="first", reason="",
            as_of=DAY, mlflow_run="theirs", model_uri="u", snapshot_uri="s", snapshot_digest="d",
            trained_through=DAY, origin={},
        )  # fmt: skip
        session.add(live)
    with ledger.read() as session:
        assert overview.primaries(session, [live]) == {"example": "log_loss"}


def test_of_late_labels_the_newest_window_judged_by_them_is_told(ledger: Ledger) -> None:
    """Beside the newest window of each kind; a window measured again is what was measured last."""
    with ledger.write() as session:
        (live,) = overview.live(session, [NAMES[2]]).values()
        told = []
        for day, basis, violates in (
            (1, "realised", ["performance"]), (2, "realised", ["concept"]), (2, "realised", []),
            (3, "estimated", ["target"]), (3, "estimated", []), (4, "nothing", ["target"]),
        ):  # fmt: skip
            start = live.as_of + timedelta(days=9000 + day)
            _measure(session, NAMES[2], f"late {day}", start, kind="performance", basis=basis,
                     judged=basis != "nothing", violates=violates, version=live.version)  # fmt: skip
            session.flush()
            found = overview.measured(session, [live])[NAMES[2]]
            told.append([(each.window, *each.violates) for each in found if each.basis])
        session.rollback()
    assert told == [
        [("late 1", "performance")],
        [("late 2", "concept")],
        [("late 2",)],
        [("late 3", "target"), ("late 2",)],
        [("late 3",), ("late 2",)],
        [("late 4", "target"), ("late 3",), ("late 2",)],
    ]


def test_labels_are_not_looked_for_without_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what a page costs would grow with the history of a model that never gets any."""
    monkeypatch.setattr(overview, "_LATE", 3)  # else it takes 1,000 windows to see the bound
    with ledger.write() as session:
        (live,) = overview.live(session, [NAMES[2]]).values()
        bases = []
        for day, basis in enumerate(("realised", *["estimated"] * 3)):
            start = live.as_of + timedelta(days=9000 + day)
            _measure(session, NAMES[2], f"late {day}", start, kind="performance", basis=basis,
                     version=live.version)  # fmt: skip
            session.flush()
            found = overview.measured(session, [live])[NAMES[2]]
            bases.append([each.basis for each in found if each.basis])
        session.rollback()
    both = ["estimated", "realised"]
    assert bases == [["realised"], both, both, ["estimated"]]


# A model's life under the arbiter's law: what may happen, in any order.
Life = list[tuple[str, int]]
happenings = st.tuples(
    st.sampled_from(["raise", "suppress", "retrain", "lose", "promote", "clear"]), st.integers(0, 3)
)
CAUSES = ("drift", "new_data", "performance", "manual")


class _Lived:
    """Does to a model what the arbiter, and the runs that it starts, may do."""

    def __init__(self, session: Session, model: str) -> None:
        self.session, self.model, self.number = session, model, 0

    def happen(self, what: str, which: int) -> None:
        """:param which: of the causes or decisions there are."""
        self.number += 1
        step: Callable[[int], None] = getattr(self, f"_{what}")
        step(which)
        self.session.flush()

    def _raise(self, which: int) -> None:
        records.raise_signal(self.session, self.model, CAUSES[which], f"{self.number}", DAY, {})

    def _suppress(self, which: int) -> None:
        """It leaves signals open, and closes those that mean nothing any more."""
        self._decide("suppress", list(records.open_signals(self.session, self.model))[:which])

    def _retrain(self, which: int) -> None:
        """It takes all; none is decided while another one runs."""
        if not records.in_flight(self.session, self.model):
            self._decide("retrain", list(records.open_signals(self.session, self.model)))

    def _decide(self, action: str, taken: list[Any]) -> None:
        row = decided(self.model, f"run {self.number}", action)
        self.session.add(row)
        self.session.flush()
        self.session.add_all(
            ConsumedSignalRow(model=self.model, signal_id=signal.id, decision_id=row.id)
            for signal in taken
        )

    def _lose(self, which: int) -> None:
        for row in records.in_flight(self.session, self.model):
            records.conclude(self.session, row, records.LOST[which % 2], "")

    def _promote(self, which: int) -> None:
        for row in records.in_flight(self.session, self.model):
            records.conclude(self.session, row, "promoted", "")

    def _clear(self, which: int) -> None:
        """A lost run is run again, and now something comes of it."""
        flying = records.in_flight(self.session, self.model)
        ended = [r for r in records.retrains(self.session, self.model) if r not in flying]
        if ended:
            records.conclude(self.session, ended[which % len(ended)], "rejected", "")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """One ledger for all examples of a law, each of which takes models of its own."""
    return Ledger(f"sqlite:///{tmp_path_factory.mktemp('shared')}/ledger.db")


@settings(max_examples=60, deadline=None)  # each writes some hundred rows
@given(lives=st.lists(st.lists(happenings, max_size=16), min_size=1, max_size=3))
def test_open_signals_are_those_that_each_model_has(shared: Ledger, lives: list[Life]) -> None:
    example = next(fresh)
    models = [f"model_{example}_{number}" for number in range(len(lives))]
    with shared.write() as session:
        for step in range(max(map(len, lives))):  # turn by turn, so that ids are interleaved
            for model, life in zip(models, lives, strict=True):
                lived = _Lived(session, model)
                lived.number = step
                if step < len(life):
                    lived.happen(*life[step])
        expected = {m: found for m in models if (found := one_by_one(session, m))}
        assert overview.open_signals(session, models) == expected
