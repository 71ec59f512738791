"""The ML Test Score: nothing for free, nothing taken away by good news, and always what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.declaration import Declaration, read_declaration
from evergreen.declaration.scorecard import SECTIONS, TESTS
from evergreen.ledger import acts, records
from evergreen.ledger.tables import (
    DecisionRow,
    DrillRow,
    EscalationRow,
    MeasurementRow,
    PartitionRow,
    PromotionRow,
    SkewRow,
    VerdictRow,
)
from evergreen.rehearsal import Rehearsal
from evergreen.rubric import Finding, Score, score_of
from evergreen.rubric.model import PAIRS, moves_together
from evergreen.rubric.score import reading
from tests.builders import declare, workspace_in
from tests.lifelike import Life

MODELS = Path(__file__).parents[2] / "include" / "models"
DOCS = Path(__file__).parents[2] / "docs"
START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL = "example"
#: Lines of a verdict, as the gate names them; `test_a_lived_ledger…` holds them against the gate.
RULES = (
    "data usable",
    "candidate answers",
    "better than naive (prior)",
    "floor log_loss where kind = a",
    "selection-rate disparity by kind",
    "same predictions",
    "latency p95, 1 row",
    "peak memory",
    "improvement over champion",
    "same answers as in production",
)
ORIGIN = {part: {"digest": part * 4} for part in ("trained", "features", "evaluation")}
SAID = {"points": 1, "by": "vera", "evidence": "written down", "on": "2013-01-01"}
#: Everything that a declaration can give points by.
ALL: dict[str, Any] = {
    "validation": {"suite": "expectations.json"},
    "training": {"search": {"parameters": {"C": [0.1, 1.0]}}},
    "evaluation": {
        "slices": ["kind"],
        "kpi": {"name": "margin", "function": "kpi:margin", "greater_is_better": False},
    },
    "gate": {
        "slice_floors": {"log_loss": 0.9},
        "fairness": [{"column": "kind", "disparity_at_most": 0.5}],
    },
    "triggers": {"schedule": "@monthly"},
    "escalation": {"notify": [{"channel": "apprise"}]},
    "serving": {"candidate": {"mode": "canary"}},
}

Write = Callable[[Session], None]


def declared(folder: Path, **sections: Any) -> Declaration:
    suite = {"expectations": [{"type": "expect_column_to_exist", "kwargs": {"column": "x"}}]}
    (folder / "expectations.json").write_text(json.dumps(suite))
    return declare(folder, **{**ALL, **sections})


def decide(tune: bool, run: str = "tuned", day: int = 30) -> Write:
    def write(session: Session) -> None:
        session.add(
            DecisionRow(
                model=MODEL, run_id=run, action="retrain", cause="drift", causes=[], reasons=[],
                as_of=START + day * DAY, sequence=1, tune=tune,
            )
        )  # fmt: skip

    return write


def verdict(run: str, *rules: str, observed: str = "yes", override: str | None = None) -> Write:
    def write(session: Session) -> None:
        lines = [{"name": r, "observed": observed, "bound": "b", "passed": True} for r in rules]
        session.add(
            VerdictRow(
                model=MODEL, run_id=run, verdict="promote", promotes=True, reason="better",
                as_of=START, champion_version=None, mlflow_run=run, rules=lines, evidence={},
                override=override,
            )
        )  # fmt: skip

    return write


def promotion(session: Session, position: int = 1, **rest: Any) -> PromotionRow:
    row = PromotionRow(
        **{
            "model": MODEL, "position": position, "run_id": f"r{position}",
            "version": str(position), "replaced": None, "kind": "promote", "reason": "better",
            "as_of": START + 20 * DAY, "mlflow_run": "m", "model_uri": "u", "snapshot_uri": "s",
            "snapshot_digest": "d" * 20, "trained_through": START + 20 * DAY, "origin": ORIGIN,
            **rest,
        }
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def promoted(session: Session) -> None:
    promotion(session)


def events(*names: str) -> Write:
    def write(session: Session) -> None:
        live = records.champion(session, MODEL)
        for name in names if live else ():
            assert live is not None
            records.add_event(session, live, name, {})

    return write


def drill(*, passed: bool = True, day: int = 30) -> Write:
    def write(session: Session) -> None:
        session.add(
            DrillRow(
                model=MODEL, run_id=f"drill {day}", version="2", target="1", passed=passed,
                as_of=START + day * DAY, restore_seconds=1.5, return_seconds=1.0, evidence={},
            )
        )  # fmt: skip

    return write


def skew(*violates: str) -> Write:
    def write(session: Session) -> None:
        session.add(
            SkewRow(
                model=MODEL, partition="p", digest="".join(violates), start=START, end=START + DAY,
                as_of=START + 30 * DAY, sequence=1, rows=500, judged=True, violates=[*violates],
                evidence={},
            )
        )  # fmt: skip

    return write


def measured(kind: str, day: int, evidence: dict[str, Any], *violates: str) -> Write:
    def write(session: Session) -> None:
        at = START + day * DAY
        session.add(
            MeasurementRow(
                model=MODEL, kind=kind, window=f"{at:%Y-%m-%d}", version="1", start=at,
                end=at + DAY, as_of=at + DAY, sequence=day, digest="", judged=True,
                violates=[*violates], evidence=evidence,
            )
        )  # fmt: skip

    return write


def window(day: int, loss: float, margin: float, *violates: str, basis: str = "realised") -> Write:
    intervals = {"log_loss": {"value": loss}, "margin": {"value": margin}}
    evidence = {
        "realised": intervals,
        "estimated": intervals,
        "slices": {"kind": {}},
        "basis": basis,
    }
    return measured("performance", day, evidence, *violates)


def windows(session: Session) -> None:
    for day in range(20, 20 + PAIRS):
        window(day, day / 10, day / 5)(session)


def landed(session: Session, day: int = 30) -> None:
    session.add(
        PartitionRow(
            model=MODEL, key=f"{day}", revision=1, start=START + (day - 1) * DAY,
            end=START + day * DAY, digest="d", rows=1, late=False, files={}, maturity={},
        )
    )  # fmt: skip


def columns(**importance: float) -> dict[str, Any]:
    return {"columns": [{"column": c, "importance": i} for c, i in importance.items()]}


#: Good news, each alone; the promotion's verdict holds those of `RULES` that are drawn.
NEWS: dict[str, Write] = {
    "promotion": promoted,
    "completed": events("completed"),
    "watched": events("watched"),
    "drill": drill(),
    "skew": skew(),
    "drift": measured("drift", 29, columns(x=0.4, kind=0.1)),
    "windows": windows,
    "tuned": decide(True),
    **{f"verdict {i}": verdict(f"other {i}", "improvement over champion") for i in range(3)},
    **{f"probe {i}": verdict(f"probe {i}", "latency p95, 1 row", "peak memory") for i in range(2)},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session of a real ledger; tests write inside `past`, which leaves nothing."""
    with workspace_in(tmp_path_factory.mktemp("ledger")).ledger.write() as session:
        yield session
        session.rollback()


def past(session: Session, declaration: Declaration, *writes: Write) -> Score:
    """The score after some past; the ledger is as it was afterwards."""
    point = session.begin_nested()
    landed(session)
    for write in writes:
        write(session)
    session.flush()
    found = score_of(declaration, session)
    point.rollback()
    return found


def of(score: Score, name: str) -> Finding:
    return next(found for found in score.findings if found.id == name)


def whole(*but: str, **instead: Write) -> list[Write]:
    """All good news, with some left out or replaced."""
    rules = verdict("r1", *(rule for rule in RULES if rule not in but))
    news = {**NEWS, "rules": rules, **instead}
    return [write for name, write in news.items() if name not in but]


news = st.sets(st.sampled_from([*NEWS, *RULES]))
said = st.dictionaries(st.sampled_from([*TESTS]), st.sampled_from([0.5, 1.0]), max_size=28)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=news, more=news, by=said, also=said)
def test_good_news_and_declarations_never_lower_a_score(
    first: set[str],
    more: set[str],
    by: dict[str, float],
    also: dict[str, float],
    session: Session,
    tmp_path: Path,
) -> None:
    def scored(drawn: set[str], people: dict[str, float]) -> Score:
        section = {name: {**SAID, "points": points} for name, points in people.items()}
        rules = verdict("r1", *(rule for rule in RULES if rule in drawn))
        writes = [write for name, write in NEWS.items() if name in drawn]
        return past(session, declared(tmp_path, ml_test_score=section), rules, *writes)

    people = {name: max(by.get(name, 0.0), also.get(name, 0.0)) for name in {**by, **also}}
    before, after = scored(first, by), scored(first | more, people)
    for score in (before, after):
        assert [found.id for found in score.findings] == [*TESTS]
        assert Counter(found.section for found in score.findings) == dict.fromkeys(SECTIONS, 7)
        assert {found.points for found in score.findings} <= {0.0, 0.5, 1.0}
        assert all((found.todo is None) == (found.points == 1) for found in score.findings)
        assert all((found.by == "none") == (found.points == 0) for found in score.findings)
        for section, points in score.sections.items():
            assert points == sum(f.points for f in score.findings if f.section == section)
        assert score.total == min(score.sections.values())
    for old, new in zip(before.findings, after.findings, strict=True):
        assert new.points >= old.points, (old, new)
        assert old.points >= by.get(old.id, 0.0), "what a person said counts at least"
    assert after.total >= before.total


def test_nothing_is_given_for_free(session: Session) -> None:
    """The demo's declaration, of which nothing has happened yet: half a point for its suite."""
    score = past(session, read_declaration(MODELS / "flight_delay"))
    assert {found.id: found.points for found in score.findings if found.points} == {
        "feature_schema": 0.5
    }
    assert (score.total, score.reading) == (0, reading(0))


def test_all_that_can_be_seen_is_given_for_all_that_happened(
    session: Session, tmp_path: Path
) -> None:
    score = past(session, declared(tmp_path), *whole())
    assert score.sections == {"data": 2.0, "model": 5.5, "infrastructure": 4.5, "monitoring": 6.5}
    assert {f.id for f in score.findings if f.by == "partly"} == {
        "simpler_not_better",
        "pipeline_tested",
        "dependency_changes",
    }
    everything = declared(tmp_path, ml_test_score=dict.fromkeys(TESTS, SAID))
    best = past(session, everything, *whole())
    assert set(best.sections.values()) == {7.0}
    assert of(best, "feature_schema").by == "automatic", "what is known is not claimed by a person"
    assert of(best, "privacy_controls").by == "declared"
    assert "vera, 2013-01-01: written down" in of(best, "privacy_controls").evidence


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("rolled_back", [*whole("drill"), drill(), drill(passed=False, day=31)]),
        ("not_skewed", [*whole("skew"), skew("x")]),
        (
            "not_skewed",
            [*whole("skew"), verdict("n", "same answers as in production", observed="NO, 20%")],
        ),
        ("prediction_quality", [*whole(), window(29, 9.0, 9.0, "performance")]),
        ("canaried", [*whole(), events("disproved")]),
        (
            "metrics_correlate",
            [*whole("windows"), *(window(20 + i, i / 10, -i / 5) for i in range(PAIRS))],
        ),
    ],
)
def test_what_is_measured_and_fails_cannot_be_declared_away(
    name: str, bad: list[Write], session: Session, tmp_path: Path
) -> None:
    finding = of(past(session, declared(tmp_path, ml_test_score={name: SAID}), *bad), name)
    assert (finding.points, finding.by) == (0, "none")
    assert "vera" in finding.evidence
    assert "comes first" in finding.evidence
    assert finding.todo


def stop(session: Session) -> None:
    decide(False, "stopped")(session)
    session.flush()
    row = records.decision_of(session, MODEL, "stopped")
    assert row is not None
    session.add(
        EscalationRow(
            model=MODEL, decision_id=row.id, as_of=START, priority="P1", futile=2, reason="in vain"
        )
    )


def pause(session: Session) -> None:
    acts.pause(session, MODEL, key="k", person="vera", comment="audit")


def stale(session: Session) -> None:
    landed(session, 300)


def over(session: Session) -> None:
    """The promotion's verdict, let in by a person."""
    verdict("r1", *RULES, override="no champion to compare with")(session)


@pytest.mark.parametrize(
    ("name", "writes", "words"),
    [
        ("not_stale", [*whole(), stop], "evergreen acknowledge example"),
        ("not_stale", [*whole(), pause], "evergreen resume example"),
        ("not_stale", [*whole(), stale], "declare `triggers.schedule`"),
        ("not_skewed", [*whole(), stale], "example.monitor"),
        ("rolled_back", [*whole(), stale], "evergreen drill example"),
        ("rolled_back", whole("drill"), "evergreen drill example"),
        ("numerically_stable", [*whole(), stale], "example.monitor"),
        ("data_invariants", [*whole(), stale], "example.monitor"),
        ("prediction_quality", [*whole(), stale], "example.monitor"),
        (
            "prediction_quality",
            [*whole(), window(29, 0.1, 0.1, basis="estimated")],
            "enough labels",
        ),
        ("hyperparameters_tuned", whole("tuned"), "evergreen retrain example --tune"),
        ("staleness_known", whole("verdict 1", "verdict 2", RULES[-2]), "until 3 are there"),
        ("quality_on_slices", whole("floor log_loss where kind = a"), "evergreen retrain"),
        ("inclusion", whole("selection-rate disparity by kind"), "evergreen retrain"),
        ("reproducible", whole("same predictions"), "evergreen retrain example"),
        (
            "features_beneficial",
            whole("drift", worse=measured("drift", 29, columns(x=0.4, kind=0.0))),
            "drop kind",
        ),
        ("validated_before_serving", whole("rules", over=over), "by evidence alone"),
        ("computing_performance", whole("probe 0", "probe 1"), "second version"),
    ],
)
def test_half_is_given_for_half_and_says_what_to_do(
    name: str, writes: list[Write], words: str, session: Session, tmp_path: Path
) -> None:
    finding = of(past(session, declared(tmp_path), *writes), name)
    assert (finding.points, finding.by) == (0.5, "partly")
    assert words in (finding.todo or "")


@pytest.mark.parametrize(
    ("name", "sections", "writes", "points", "words"),
    [
        ("canaried", {"serving": {}}, whole(), 0.5, "mode: canary"),
        ("canaried", {}, whole("watched"), 0.0, "declare `serving.replicas`"),
        ("not_skewed", {"serving": {}}, whole("skew"), 1.0, ""),
        (
            "not_skewed",
            {"serving": {"replicas": ["http://a:1"]}},
            whole("skew"),
            0.0,
            "serving.skew.min_rows",
        ),
        (
            "computing_performance",
            {"serving": {"replicas": ["http://a:1"]}},
            whole("watched"),
            0.5,
            "example.bake",
        ),
        ("quality_on_slices", {"gate": {}}, whole(), 0.5, "declare `gate.slice_floors`"),
        (
            "quality_on_slices",
            {"gate": {}, "evaluation": {}},
            whole("windows"),
            0.0,
            "declare `evaluation.slices`",
        ),
        ("inclusion", {"gate": {}}, whole(), 0.0, "declare `gate.fairness`"),
        ("hyperparameters_tuned", {"training": {}}, whole(), 0.0, "declare `training.search`"),
        (
            "metrics_correlate",
            {"evaluation": {}, "gate": {}},
            whole(),
            0.5,
            "declare `evaluation.kpi`",
        ),
        ("metrics_correlate", {}, whole("windows"), 0.0, "example.monitor"),
        ("not_stale", {"triggers": {}}, whole(), 0.0, "declare `triggers`"),
        ("rolled_back", {"rollback": {"drill": None}}, whole("drill"), 0.0, "evergreen drill"),
        ("dependency_changes", {"escalation": {}}, whole(), 0.0, "declare `escalation.notify`"),
        ("feature_schema", {"validation": {}}, whole(), 0.0, "declare `validation.suite`"),
        ("data_invariants", {"validation": {}}, whole(), 0.5, "declare `validation.suite`"),
        ("feature_schema", {"validation": {"suite": "no.json"}}, whole(), 0.0, "evergreen check"),
        (
            "validated_before_serving",
            {"gate": {"promote_when": "non_inferior"}},
            whole("floor log_loss where kind = a"),
            0.5,
            "declare `gate.floors`",
        ),
    ],
)
def test_what_is_declared_counts_and_what_is_missing_is_named(
    name: str,
    sections: dict[str, Any],
    writes: list[Write],
    points: float,
    words: str,
    session: Session,
    tmp_path: Path,
) -> None:
    finding = of(past(session, declared(tmp_path, **sections), *writes), name)
    assert finding.points == points, finding
    assert words in (finding.todo or "")


def test_a_version_that_came_back_keeps_its_verdict(session: Session, tmp_path: Path) -> None:
    def back(session: Session) -> None:
        promotion(session, 2)
        promotion(session, 3, version="1", kind="rollback")

    score = past(session, declared(tmp_path), *whole("drill"), back)
    assert of(score, "validated_before_serving").points == 1
    assert "went back to version 1; never drilled" in of(score, "rolled_back").evidence


@settings(deadline=None)  # the first example imports
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=20))
def test_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    from scipy.stats import spearmanr

    found = moves_together(pairs)
    if len(pairs) < PAIRS or 1 in {len({x for x, _ in pairs}), len({y for _, y in pairs})}:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


def test_readings_are_the_papers_steps() -> None:
    steps = [reading(total) for total in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 5, 5.5, 7)]
    assert [steps.index(words) for words in steps] == [0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9]


def test_an_old_model_costs_as_many_questions_as_a_young_one(
    session: Session, tmp_path: Path
) -> None:
    asked: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    def aged(runs: int) -> Write:
        def write(session: Session) -> None:
            for i in range(2, 2 + runs):
                promotion(session, i)
                verdict(f"r{i}", *RULES)(session)
                decide(False, f"r{i}", 1)(session)
                window(100 + i, 0.4, 0.2)(session)

        return write

    declaration, numbers = declared(tmp_path), []
    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", count)
    for runs in (3, 300):
        point = session.begin_nested()
        for write in (*whole(), aged(runs)):
            write(session)
        session.flush()
        session.expunge_all()
        asked.clear()
        score_of(declaration, session)
        numbers.append(len(asked))
        point.rollback()
    event.remove(engine, "before_cursor_execute", count)
    assert numbers[0] == numbers[1] <= 15


def test_a_lived_ledger_gives_what_it_shows(tmp_path: Path) -> None:
    """The names of rules and the shape of evidence are those that gate and monitoring write."""
    sections: dict[str, Any] = {
        "gate": {
            "resamples": 400, "latency_p95_ms": 5000, "memory_mb": 8000,
            "slice_floors": {"log_loss": 0.9},
            "fairness": [{"column": "kind", "disparity_at_most": 0.9}],
        },
        "evaluation": {"primary": "log_loss", "slices": ["kind"], "min_slice_rows": 20},
        "monitoring": {"min_rows": 50, "drift": {"sample": 500}},
    }  # fmt: skip
    life = Life.begin(tmp_path, **sections)
    goes = Rehearsal(life.declaration, life.workspace)
    life.land(1)
    life.land(2)
    goes.retrain("first")
    life.land(3)
    life.score()
    goes.watch()
    assert life.judge(life.decide("second"))[0].champion_version == "1"
    with life.workspace.ledger.read() as session:
        score = score_of(life.declaration, session)
    points = {found.id: found.points for found in score.findings}
    assert {name for name, found in points.items() if found == 1} == {
        "quality_on_slices",
        "inclusion",
        "reproducible",
        "validated_before_serving",
        "not_skewed",
        "not_stale",
        "numerically_stable",
        "computing_performance",
        "prediction_quality",
    }
    for name in ("features_beneficial", "staleness_known", "simpler_not_better", "pipeline_tested"):
        assert points[name] == 0.5, of(score, name)


def test_the_command_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    folder = tmp_path / "models" / MODEL
    folder.mkdir(parents=True)
    written = declare(folder, ml_test_score={"debuggable": {**SAID, "evidence": "[/x] [bold]"}})
    (folder / "model.yaml").write_text(written.model_dump_json(exclude_defaults=True))
    ask = ["rubric", MODEL, "--models", str(tmp_path / "models")]
    found = json.loads(CliRunner().invoke(app, [*ask, "--json"]).output)
    assert (found["total"], found["sections"]["infrastructure"]) == (0, 1)
    assert len(found["findings"]) == 28
    shown = CliRunner().invoke(app, ask, terminal_width=200)
    assert shown.exit_code == 0, shown.output
    for words in ("infrastructure: 1 of 7", "[/x] [bold]", "→", "ML Test Score of example: 0"):
        assert words in shown.output


def test_the_page_in_docs_names_every_test() -> None:
    page = (DOCS / "ml-test-score.md").read_text()
    for test in TESTS.values():
        assert f"| {test.number} | `{test.id}` | {test.title} |" in page
