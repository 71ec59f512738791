"""The gate fails closed: whatever is missing, wrong or uncertain, nothing goes live."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.lifecycle.contracts import (
    Champion,
    Check,
    Evaluation,
    Feature,
    FeatureSkew,
    InfrastructureReport,
    PartitionSkew,
    Reference,
    SkewReport,
    TrainedModel,
    ValidationReport,
)
from evergreen.lifecycle.evidence import Evidence
from evergreen.lifecycle.gating import judge
from evergreen.lifecycle.metrics import measure_all
from tests.builders import declare
from tests.lifelike import SMALL, Life

START = datetime(2013, 2, 1, tzinfo=UTC)
REF = Reference(kind="features", uri="file:///features", digest="f")
ROWS = 600


def answers(quality: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and answers that know the chance of each with ``quality`` 0 (nothing) to 1."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(2, 4, ROWS)
    labels = rng.binomial(1, chance)
    return labels, np.clip(quality * chance + (1 - quality) * chance.mean(), 0.01, 0.99)


def evidence(candidate: float = 1.0, champion: float | None = 0.3, **declared: Any) -> Evidence:
    """Evidence for a candidate of one quality against a champion of another."""
    declared = {"evaluation": {"primary": "log_loss", "metrics": ["roc_auc"]}, **declared}
    declaration = declare(Path(), **declared)
    labels, ours = answers(candidate)
    rows = pd.DataFrame(
        {
            "label": labels,
            "candidate": ours,
            "baseline": labels.mean(),
            "group": np.where(np.arange(ROWS) % 2, "a", "b"),
        }
    )
    rows["event_timestamp"] = pd.date_range(START, periods=ROWS, freq="h")
    if champion is not None:
        rows["champion"] = answers(champion)[1]
    metrics = {
        who: measure_all(declaration, labels, rows[who].to_numpy())
        for who in ("candidate", "baseline")
    }
    live = champion is not None
    return Evidence(
        declaration=declaration,
        trained=TrainedModel(
            model="example",
            mlflow_run="run",
            model_uri="models:/m",
            experiment="e",
            estimator="x",
            features=(Feature(name="x", type="number"),),
            classes=("0", "1"),
            feature_set=REF,
            snapshot="s",
            predictions_digest="p",
            code_digest="c",
            environment_digest="e",
            parameters={},
            training_rows=1,
            holdout_start=START,
            trained_through=START,
        ),
        validation=ValidationReport(model="example", snapshot="s"),
        evaluation=Evaluation(
            model="example",
            mlflow_run="run",
            holdout_digest="h",
            holdout_rows=ROWS,
            champion_version="1" if live else None,
            predictions="file:///p",
            classes=("0", "1"),
            metrics=metrics,
            slices={
                "group": {
                    v: {"rows": 300.0, **measure_all(declaration, labels[m], ours[m])}
                    for v in "ab"
                    for m in [(rows["group"] == v).to_numpy()]
                }
            },
        ),
        infrastructure=InfrastructureReport(
            model="example",
            mlflow_run="run",
            loads=True,
            signature_matches=True,
            same_predictions=True,
            latency_ms={"p95_1_row": 5.0},
            memory_mb=300.0,
        ),
        champion=Champion(
            version="1",
            position=1,
            mlflow_run="old",
            model_uri="models:/o",
            snapshot=REF,
            trained_through=START,
            as_of=START,
        )
        if live
        else None,
        rows=rows,
    )


def test_a_clearly_better_candidate_is_promoted() -> None:
    verdict = judge(evidence())
    assert (verdict.verdict, verdict.promotes) == ("promote", True)
    assert verdict.interval is not None
    assert verdict.interval[0] > 0
    assert "better than champion 1" in verdict.reason
    assert all(rule.passed for rule in verdict.rules)


def test_a_worse_candidate_is_rejected_with_the_interval() -> None:
    verdict = judge(evidence(candidate=0.3, champion=1.0))
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    assert "95% interval" in verdict.reason


def test_an_identical_twin_is_inconclusive() -> None:
    verdict = judge(evidence(candidate=0.7, champion=0.7))
    assert (verdict.verdict, verdict.promotes, verdict.difference) == ("inconclusive", False, 0.0)


def test_without_a_champion_the_naive_baseline_must_be_beaten() -> None:
    verdict = judge(evidence(champion=None))
    assert (verdict.verdict, verdict.promotes, verdict.champion_position) == ("bootstrap", True, 0)
    naive = judge(evidence(candidate=0.0, champion=None))
    assert (naive.verdict, naive.promotes) == ("reject", False)
    assert "better than naive (prior)" in naive.reason


def test_not_worse_is_enough_where_that_is_declared() -> None:
    gate = {"promote_when": "non_inferior", "margin": 0.02}
    assert judge(evidence(0.7, 0.7, gate=gate)).verdict == "promote"
    assert judge(evidence(0.3, 1.0, gate=gate)).verdict != "promote"


def test_a_margin_asks_for_more() -> None:
    assert judge(evidence(gate={"margin": 0.5})).verdict == "reject"


MISSING = {
    "validation": (None, "validation report: missing"),
    "evaluation": (None, "evaluation: missing"),
    "infrastructure": (None, "infrastructure report: missing"),
    "rows": (None, "holdout rows: 0"),
}


@pytest.mark.parametrize("piece", MISSING)
def test_missing_evidence_is_refused_and_named(piece: str) -> None:
    value, words = MISSING[piece]
    verdict = judge(replace(evidence(), **{piece: value}))  # type: ignore[arg-type]  # the piece is chosen by name
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loads": False, "problem": "OSError: gone"}, "OSError: gone"),
        ({"signature_matches": False}, "signature: differs"),
        ({"same_predictions": False}, "same predictions: differ"),
        ({"latency_ms": {"p95_1_row": 900.0}}, "latency p95, 1 row: 900.0 ms"),
        ({"latency_ms": {}}, "latency p95, 1 row: missing"),
        ({"memory_mb": 9000.0}, "peak memory: 9000 MB"),
        ({"memory_mb": None}, "peak memory: missing"),
        ({"mlflow_run": "other"}, "infrastructure report: of another run"),
    ],
)
def test_every_infrastructure_rule_refuses(change: dict[str, Any], words: str) -> None:
    given_ = evidence()
    assert given_.infrastructure is not None
    verdict = judge(replace(given_, infrastructure=given_.infrastructure.model_copy(update=change)))
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"gate": {"floors": {"roc_auc": 0.99}}}, "floor roc_auc"),
        ({"gate": {"floors": {"log_loss": 0.01}}}, "at most 0.01"),
        (
            {
                "gate": {"slice_floors": {"roc_auc": 0.99}},
                "evaluation": {
                    "primary": "log_loss",
                    "metrics": ["roc_auc"],
                    "slices": ["group"],
                    "min_slice_rows": 100,
                },
            },
            "floor roc_auc where group = a",
        ),
        (
            {
                "gate": {"slice_floors": {"roc_auc": 0.1}},
                "evaluation": {
                    "primary": "log_loss",
                    "metrics": ["roc_auc"],
                    "slices": ["group"],
                    "min_slice_rows": 500,
                },
            },
            "no slice has 500 rows",
        ),
        (
            {"gate": {"fairness": [{"column": "absent", "disparity_at_most": 0.1}]}},
            "disparity by absent: missing",
        ),
        (
            {"training": {"estimator": "a.B", "holdout": {"min_rows": 601}}},
            "holdout rows: 600, allowed at least 601",
        ),
    ],
)
def test_every_declared_bound_refuses(declared: dict[str, Any], words: str) -> None:
    verdict = judge(evidence(**declared))
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    assert words in verdict.reason


def test_unequal_selection_is_refused_where_groups_are_declared() -> None:
    given_ = evidence(
        gate={"fairness": [{"column": "group", "disparity_at_most": 0.2}]},
        evaluation={"primary": "log_loss", "min_slice_rows": 100},
    )
    assert given_.rows is not None
    assert judge(given_).promotes
    unfair = given_.rows.assign(
        candidate=given_.rows["candidate"].where(given_.rows["group"] == "a", 0.99)
    )
    assert any(
        "selection-rate disparity" in r.name and not r.passed
        for r in judge(replace(given_, rows=unfair)).rules
    )


def test_few_days_say_nothing_when_days_are_resampled() -> None:
    given_ = evidence(gate={"resample": "day"})
    assert given_.rows is not None
    assert judge(given_).verdict == "promote"
    one_day = given_.rows.assign(event_timestamp=pd.Timestamp(START))
    assert "days to resample: 1, allowed at least 7" in judge(replace(given_, rows=one_day)).reason


def test_blocked_data_is_refused() -> None:
    check = Check(name="c", partition="p", severity="block", passed=False, observed="", bound="")
    report = ValidationReport(model="example", snapshot="s", blocked=("2013-01",), checks=(check,))
    assert "data usable: 2013-01" in judge(replace(evidence(), validation=report)).reason


@pytest.mark.parametrize("problem", ["missing column x", None])
def test_an_incomparable_champion_needs_a_person(problem: str | None) -> None:
    given_ = evidence()
    assert given_.evaluation is not None
    assert given_.champion is not None
    if problem:
        given_ = replace(
            given_, evaluation=given_.evaluation.model_copy(update={"champion_problem": problem})
        )
    else:
        later = given_.champion.model_copy(
            update={"trained_through": datetime(2013, 3, 1, tzinfo=UTC)}
        )
        given_ = replace(given_, champion=later)
    verdict = judge(given_)
    assert (verdict.verdict, verdict.promotes) == ("incomparable", False)
    assert (problem or "learned from rows up to 2013-03-01") in verdict.reason
    accepted = judge(given_, override="schema change agreed in review")
    assert (accepted.verdict, accepted.promotes) == ("incomparable", True)
    assert accepted.override == "schema change agreed in review"
    assert "agreed in review" in accepted.reason


def test_an_override_overrides_nothing_else() -> None:
    given_ = evidence(gate={"floors": {"roc_auc": 0.99}})
    assert given_.evaluation is not None
    broken = given_.evaluation.model_copy(update={"champion_problem": "missing column x"})
    assert not judge(replace(given_, evaluation=broken), override="please").promotes
    assert not judge(evidence(0.3, 1.0), override="please").promotes


KPI = {"name": "delay_cost", "function": "kpi:cost"}


@pytest.mark.parametrize("greater", [False, True])
def test_a_kpi_judges_as_the_primary_metric(greater: bool, tmp_path: Path) -> None:
    """From the declaration through training, evaluation and the real gate."""
    code = """
        def cost(labels, predictions):
            missed, alarm = labels * (1 - predictions) * 90, (1 - labels) * predictions * 90
            return SIGN * (missed + alarm)
    """
    (tmp_path / "kpi.py").write_text(dedent(code).replace("SIGN", "-1" if greater else "1"))
    bound = -40.0 if greater else 40.0
    measured = {
        "primary": "delay_cost",
        "kpi": {**KPI, "greater_is_better": greater},
        "slices": ["kind"],
        "min_slice_rows": 20,
    }
    gate = {**SMALL["gate"], "floors": {"delay_cost": bound}, "slice_floors": {"delay_cost": bound}}
    weak = {**SMALL["training"], "parameters": {"C": 1e-3}}
    life = Life.begin(tmp_path, evaluation=measured, training=weak)
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    life.land(3)
    better = Life(
        declare(tmp_path, **SMALL | {"evaluation": measured, "gate": gate}), life.workspace
    )
    decision = better.decide("run 2")
    verdict, run = better.judge(decision)
    assert (verdict.verdict, verdict.primary) == ("promote", "delay_cost")
    assert "better than champion 1: delay_cost improves by +" in verdict.reason
    rules = {rule.name: rule for rule in verdict.rules}
    word = "at least -40" if greater else "at most 40"
    assert rules["floor delay_cost"].bound == rules["floor delay_cost where kind = a"].bound == word
    costs = {who: found["delay_cost"] for who, found in run.evaluation.metrics.items()}
    ordered = sorted(costs, key=costs.__getitem__, reverse=greater)
    assert ordered == ["candidate", "champion", "baseline"]
    assert max(run.evaluation.importance, key=run.evaluation.importance.__getitem__) == "x"
    dear = gate | {"floors": {"delay_cost": bound / 10}}
    too_dear = Evidence(
        declare(tmp_path, **SMALL | {"evaluation": measured, "gate": dear}),
        run.trained,
        run.validation,
        run.evaluation,
        run.infrastructure,
        run.champion,
        life.workspace.store.get_table(run.evaluation.predictions),
    )
    assert "floor delay_cost" in judge(too_dear).reason


def skewed(**shares: float) -> SkewReport:
    """The newest judged comparison: feature → share of its values that differ."""
    found = [
        FeatureSkew(feature=name, mismatches=1, missing=0, share=share, violates=share > 0.01)
        for name, share in shares.items()
    ]
    part = PartitionSkew(
        partition="2013-02",
        digest="d",
        start=START,
        end=START,
        rows=9,
        compared=9,
        features=tuple(found),
    )
    return SkewReport(model="example", as_of=START, bound=0.01, partitions=(part,))


SERVED = {"serving": {"replicas": ["http://127.0.0.1:8080"]}}


@pytest.mark.parametrize(
    ("skew", "observed", "passed"),
    [
        (None, "nothing served was compared yet", True),
        (SkewReport(model="example", as_of=START, bound=0.01), "nothing served", True),
        (skewed(), "no feature was looked up", True),
        (skewed(x=0.01, y=0.0), "none differs in 2013-02: x 1.00%, y 0.00%", True),
        (skewed(x=0.009, y=0.25, z=1.0), "differs in 2013-02: z 100.00%, y 25.00%", False),
        (
            skewed(a=0.2, b=0.2, c=0.2, d=0.2, e=0.0),
            "a 20.00%, b 20.00%, c 20.00% and 1 more",
            False,
        ),
    ],
)
def test_features_as_served_must_be_those_of_training(
    skew: SkewReport | None, observed: str, passed: bool
) -> None:
    verdict = judge(replace(_learned(*"abcdexyz"), skew=skew))
    (rule,) = [rule for rule in verdict.rules if rule.name == "training-serving skew"]
    assert observed in rule.observed
    assert (rule.passed, rule.bound) == (passed, "at most 1.00% of a feature's values")
    assert (verdict.verdict, verdict.promotes) == (("promote" if passed else "reject"), passed)
    assert passed or f"training-serving skew: {rule.observed}, allowed" in verdict.reason


def _learned(*names: str) -> Evidence:
    """Evidence for a candidate of a served model that takes these features."""
    given = evidence(**SERVED)
    features = tuple(Feature(name=name, type="number") for name in names)
    return replace(given, trained=given.trained.model_copy(update={"features": features}))


def test_skew_of_what_the_candidate_does_not_take_is_no_reason() -> None:
    verdict = judge(replace(_learned("x"), skew=skewed(x=0.0, y=0.5)))
    assert verdict.promotes


def test_skew_is_asked_for_where_something_is_served() -> None:
    names = [rule.name for rule in judge(evidence()).rules]
    assert "training-serving skew" not in names
    undeclared = judge(replace(evidence(), skew=skewed(x=0.5)))
    assert undeclared.verdict == "reject", "what was compared counts, declared or not"
    problem = replace(evidence(**SERVED), skew=skewed(x=0.5))
    assert problem.evaluation is not None
    broken = problem.evaluation.model_copy(update={"champion_problem": "gone"})
    overridden = judge(replace(problem, evaluation=broken), override="please")
    assert not overridden.promotes


def answered(given_: Evidence, logged: np.ndarray, **told: Any) -> Evidence:
    """Evidence whose champion answered ``logged`` in production; NaN where it was not asked."""
    assert given_.rows is not None
    assert given_.evaluation is not None
    facts = {"production_rows": int(np.isfinite(logged).sum()), "production_differs": 0.0, **told}
    return replace(
        given_,
        rows=given_.rows.assign(production=logged),
        evaluation=given_.evaluation.model_copy(update=facts),
    )


def test_only_rows_answered_in_production_are_compared_with_it() -> None:
    """Hours without an answer are no clusters of their own, and no row is missing for it."""
    given_ = evidence(gate={"resample": "hour"})
    assert given_.rows is not None
    logged = np.where(np.arange(ROWS) % 2, given_.rows["champion"], np.nan)
    half = answered(given_, logged)
    assert "against its 300 answers in production" in judge(half).reason
    assert half.over_production is not None
    alone = evidence(gate={"resample": "hour"})
    assert alone.rows is not None
    odd = replace(alone, rows=alone.rows[np.arange(ROWS) % 2 == 1].reset_index(drop=True))
    assert half.over_production == odd.over_champion


def test_a_production_margin_is_the_champions() -> None:
    non_inferior = {"promote_when": "non_inferior", "margin": 0.02}
    given_ = evidence(0.7, 0.7, gate=non_inferior)
    assert given_.rows is not None
    assert judge(answered(given_, given_.rows["candidate"].to_numpy())).verdict == "promote"
    better = answered(given_, given_.rows["label"].to_numpy() * 0.9 + 0.05)
    assert judge(better).verdict == "reject"


def test_production_is_not_asked_where_the_champion_cannot_be_compared() -> None:
    given_ = evidence()
    assert given_.evaluation is not None
    broken = answered(given_, np.full(ROWS, np.nan), production_rows=5, champion_problem="gone")
    verdict = judge(broken, override="agreed")
    assert (verdict.verdict, verdict.promotes) == ("incomparable", True)
    assert not any("production" in rule.name for rule in verdict.rules)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    candidate=st.floats(0, 1),
    champion=st.none() | st.floats(0, 1),
    hole=st.none() | st.sampled_from(["candidate", "champion", "baseline", "production"]),
    logged=st.none() | st.floats(0, 1),
)
def test_what_goes_live_has_shown_everything(
    candidate: float, champion: float | None, hole: str | None, logged: float | None
) -> None:
    """The law of the gate: promotion means every rule passed, and a NaN anywhere stops it."""
    given_ = evidence(candidate, champion)
    if champion is not None and logged is not None:
        given_ = answered(given_, answers(logged)[1])
    if hole is not None and given_.rows is not None and hole in given_.rows:
        given_.rows.loc[0, hole] = np.nan
    verdict = judge(given_)
    assert verdict.promotes == (verdict.verdict in {"promote", "bootstrap"})
    if verdict.promotes:
        assert all(rule.passed for rule in verdict.rules)
        assert hole is None or hole not in given_.rows or (hole == "champion" and champion is None)
    assert verdict.reason
