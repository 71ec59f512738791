"""One model's life: decisions with what came of them, points, and what belongs to a promotion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from evergreen.ledger import Ledger, chronicle, records
from evergreen.ledger.tables import (
    DecisionRow,
    MeasurementRow,
    PartitionRow,
    PromotionRow,
    VerdictRow,
)

MODEL = "example"
DAY = datetime(2013, 1, 2, tzinfo=UTC)
fresh = count(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


def decision(number: int, action: str = "suppress", model: str = MODEL) -> DecisionRow:
    return DecisionRow(
        model=model, run_id=f"run {number}", action=action, cause=None, causes=[], reasons=["why"],
        as_of=DAY + timedelta(days=number), sequence=number, tune=False,
    )  # fmt: skip


def verdict(number: int, *, mlflow: str, promotes: bool = True, model: str = MODEL) -> VerdictRow:
    return VerdictRow(
        model=model, run_id=f"run {number}", verdict="promote" if promotes else "reject",
        promotes=promotes, reason="", as_of=DAY, mlflow_run=mlflow, rules=[], evidence={},
    )  # fmt: skip


def promotion(
    position: int, *, version: str, kind: str = "better", mlflow: str = "m", model: str = MODEL,
    run: str | None = None, as_of: datetime = DAY,
) -> PromotionRow:  # fmt: skip
    return PromotionRow(
        model=model, position=position, run_id=run or f"run {position}", version=version, kind=kind,
        reason="", as_of=as_of, mlflow_run=mlflow, model_uri="u", snapshot_uri="s",
        snapshot_digest="d", trained_through=DAY, origin={},
    )  # fmt: skip


def measured(day: int, *, kind: str = "drift", version: str = "1", judged: bool = True,
             violates: tuple[str, ...] = (), model: str = MODEL, **evidence: Any) -> MeasurementRow:  # fmt: skip
    start = DAY + timedelta(days=day)
    return MeasurementRow(
        model=model, kind=kind, window=f"window {day}", version=version, start=start,
        end=start + timedelta(days=1), as_of=start, sequence=next(fresh), digest="d",
        judged=judged, violates=list(violates), evidence=evidence,
    )  # fmt: skip


def test_decisions_come_in_pages_newest_first(ledger: Ledger) -> None:
    with ledger.write() as session:
        session.add_all(decision(number) for number in range(7))
        session.add(decision(7, model="another"))
    found: list[str] = []
    before = None
    with ledger.read() as session:
        for size in (3, 3, 1, 0):
            some = chronicle.entries(session, MODEL, before=before, limit=3)
            assert len(some) == size
            found += [entry.decision.run_id for entry in some]
            before = some[-1].decision.id if some else before
    assert found == [f"run {number}" for number in range(6, -1, -1)]


def test_an_entry_has_what_came_of_its_own_decision(ledger: Ledger) -> None:
    with ledger.write() as session:
        rows = [decision(1, "retrain"), decision(2, "retrain"), decision(3)]
        other = decision(1, "retrain", model="another")
        session.add_all([*rows, other])
        session.flush()
        records.conclude(session, rows[0], "failed", "killed")
        records.conclude(session, rows[0], "promoted", "cleared")
        records.conclude(session, rows[1], "rejected", "worse")
        records.conclude(session, other, "declined", "not ours")
        session.add_all([
            verdict(1, mlflow="a"), verdict(2, mlflow="b", promotes=False),
            verdict(1, mlflow="c", promotes=False, model="another"), promotion(1, version="1"),
        ])  # fmt: skip
    with ledger.read() as session:
        third, second, first = chronicle.entries(session, MODEL)
        assert (third.outcome, third.verdict, third.promotion) == (None, None, None)
        assert second.outcome
        assert second.outcome.outcome == "rejected"
        assert second.verdict
        assert second.verdict.mlflow_run == "b"
        assert second.promotion is None
        assert first.outcome
        assert first.outcome.outcome == "promoted"  # the later one
        assert first.verdict
        assert first.verdict.mlflow_run == "a"
        assert first.promotion
        assert first.promotion.version == "1"
        assert chronicle.entry_of(session, MODEL, "run 1") == first
        assert chronicle.entry_of(session, MODEL, "run 9") is None
        assert chronicle.entry_of(session, "nobody", "run 1") is None


def test_entries_are_what_history_says(ledger: Ledger) -> None:
    with ledger.write() as session:
        rows = [decision(number, "retrain") for number in range(4)]
        session.add_all(rows)
        session.flush()
        for row in rows[:3]:
            records.conclude(session, row, "promoted", "")
        session.add_all([verdict(0, mlflow="a"), promotion(1, version="1", run="run 0")])
    with ledger.read() as session:
        for entry, known in zip(
            chronicle.entries(session, MODEL),
            reversed(records.history(session, MODEL)),
            strict=True,
        ):
            assert vars(entry) == known


def test_a_point_is_the_latest_of_its_window(ledger: Ledger) -> None:
    band = {"value": 0.4, "low": 0.3, "high": 0.5}
    with ledger.write() as session:
        for row in (
            measured(2, share=0.9, share_bound=0.3, reference="a digest"),
            measured(1, share=0.1, share_bound=0.3),
            measured(2, share=0.5, share_bound=0.3, violates=("inputs",)),
            measured(2, share=0.7, share_bound=0.3, version="2"),
            measured(1, kind="performance", realised={"log_loss": band, "roc_auc": {}},
                     estimated={}, reference={"log_loss": 0.37}, basis="realised"),
            measured(1, kind="concept"),
            measured(3, share=0.8, model="another"),
        ):  # fmt: skip
            session.add(row)
            session.flush()
    with ledger.read() as session:
        points = chronicle.points(session, MODEL, "log_loss")
        without = chronicle.points(session, MODEL, None)
    assert [(p.kind, p.window, p.version, p.share) for p in points] == [
        ("drift", "window 1", "1", 0.1),
        ("performance", "window 1", "1", None),
        ("drift", "window 2", "1", 0.5),
        ("drift", "window 2", "2", 0.7),
    ]
    assert (points[1].reference, points[1].basis) == (0.37, "realised")
    assert (points[0].reference, points[0].basis) == (None, None)
    assert points[2].violates == ("inputs",)
    assert points[2].bound == 0.3
    assert (points[1].realised, points[1].estimated) == (band, None)
    assert without[1].realised is None


def test_a_timeline_is_bounded_and_keeps_the_newest(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chronicle, "DRAWN", 2)  # else it takes 2,000 rows to see the bound
    with ledger.write() as session:
        session.add_all(measured(day, share=0.1) for day in range(6))
        session.add_all(decision(number) for number in range(4))
    with ledger.read() as session:
        assert [p.window for p in chronicle.points(session, MODEL, None)] == [
            f"window {day}" for day in (2, 3, 4, 5)
        ]
        assert [p.window for p in chronicle.points(session, MODEL, None, limit=1)] == ["window 5"]
        assert [run for *_, run in chronicle.decided(session, MODEL)] == ["run 2", "run 3"]


def test_the_verdict_of_a_version_that_came_back_is_the_one_it_passed(ledger: Ledger) -> None:
    with ledger.write() as session:
        session.add_all([
            verdict(1, mlflow="first"), verdict(2, mlflow="second"),
            verdict(9, mlflow="first", promotes=False),  # judged once more, as a candidate
            promotion(1, version="1", mlflow="first"), promotion(2, version="2", mlflow="second"),
            promotion(3, version="1", kind="rollback", mlflow="first", run="a rollback"),
        ])  # fmt: skip
    with ledger.read() as session:
        back = records.champion(session, MODEL)
        assert back is not None
        found = chronicle.verdict_of(session, back)
        assert found is not None
        assert (found.run_id, found.promotes) == ("run 1", True)
        assert [row.version for row in chronicle.promotions(session, MODEL)] == ["1", "2", "1"]
        assert len(chronicle.promotions(session, MODEL, limit=1)) == 1
        other = promotion(4, version="4", mlflow="unknown")
        assert chronicle.verdict_of(session, other) is None


def test_the_latest_window_is_one_that_the_version_answered_while_live(ledger: Ledger) -> None:
    live = promotion(3, version="1", kind="rollback", as_of=DAY + timedelta(days=5))
    with ledger.write() as session:
        session.add(live)
        session.add_all([measured(1), measured(4), measured(9, version="2")])
    with ledger.read() as session:
        assert chronicle.latest(session, live, "drift") is None
    with ledger.write() as session:
        session.add_all([measured(5), measured(6), measured(7, judged=False),
                         measured(8, kind="performance")])  # fmt: skip
    with ledger.read() as session:
        found = chronicle.latest(session, live, "drift")
        assert found is not None
        assert found.window == "window 6"


def test_the_latest_window_may_be_asked_for_by_what_it_was_judged_by(ledger: Ledger) -> None:
    live = promotion(1, version="1")
    with ledger.write() as session:
        session.add_all([
            live, measured(1, kind="performance", basis="realised"),
            measured(2, kind="performance", basis="estimated"),
        ])  # fmt: skip
    with ledger.read() as session:
        for basis, window in ((None, "window 2"), ("realised", "window 1"), ("nothing", None)):
            found = chronicle.latest(session, live, "performance", basis)
            assert (found and found.window) == window


def test_a_decision_on_the_timeline_has_what_came_of_it(ledger: Ledger) -> None:
    with ledger.write() as session:
        rows = [decision(number, "retrain") for number in range(3)]
        session.add_all(rows)
        session.flush()
        records.conclude(session, rows[0], "failed", "")
        records.conclude(session, rows[0], "promoted", "")  # it was cleared and ran again
        records.conclude(session, rows[1], "rejected", "")
    with ledger.read() as session:
        found = chronicle.decided(session, MODEL)
        assert [row.outcome for row in found] == ["promoted", "rejected", None]
        assert all(row.recorded_at.tzinfo for row in found)


def test_reports_are_the_measurements_that_have_a_page(ledger: Ledger) -> None:
    with ledger.write() as session:
        session.add_all([
            measured(1, report="file:///a"), measured(2, report=None), measured(3),
            measured(4, report="file:///b"), measured(4, kind="performance", report="file:///c"),
        ])  # fmt: skip
    with ledger.read() as session:
        found = chronicle.reports(session, MODEL)
        assert [row.window for row in found] == ["window 4", "window 1"]
        assert len(chronicle.reports(session, MODEL, limit=1)) == 1


def test_events_and_signals_are_in_order(ledger: Ledger) -> None:
    with ledger.write() as session:
        row = promotion(1, version="1")
        session.add(row)
        session.flush()
        for name in ("aliased", "completed", "verified"):
            records.add_event(session, row, name, {})
    with ledger.read() as session:
        names = [each.event for each in chronicle.events(session, row.id)]
        assert names == ["aliased", "completed", "verified"]


def test_a_model_is_known_by_its_data_or_by_a_decision(ledger: Ledger) -> None:
    with ledger.write() as session:
        session.add(decision(1))
        session.add(PartitionRow(
            model="fed", source="data", key="a", revision=1, start=DAY, end=DAY, digest="d",
            rows=1, late=False, files={}, maturity={},
        ))  # fmt: skip
        records.raise_signal(session, "asked_for", "drift", "1", DAY, {})
    with ledger.read() as session:
        known = [name for name in (MODEL, "fed", "asked_for") if chronicle.known(session, name)]
    assert known == [MODEL, "fed"]
