"""The gate's rules: each looks at the evidence and yields lines of the table.

A rule that finds nothing to look at yields a failed line that says what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

from evergreen.declaration import Declaration, Metric
from evergreen.lifecycle.bootstrap import Difference
from evergreen.lifecycle.contracts import Rule
from evergreen.lifecycle.evidence import Evidence

FEWEST_CLUSTERS = 7  # fewer say nothing about how much one differs from the next
SKEW = 0.01  # the share of production answers from which on a difference is pointed out
PRODUCTION_ROWS = "production rows"


def interval_text(evidence: Evidence, difference: Difference) -> str:
    """An improvement with its interval, in the words of the table."""
    name, level = evidence.declaration.primary.name, evidence.declaration.gate.confidence
    return (
        f"{name} improves by {difference.estimate:+.5f} "
        f"({level:.0%} interval {difference.low:+.5f} to {difference.high:+.5f})"
    )


def improvement_bound(declaration: Declaration) -> float:
    """What the lower end of an improvement's interval must exceed."""
    gate = declaration.gate
    return gate.margin if gate.promote_when == "superior" else -gate.margin


def completeness(evidence: Evidence) -> Iterator[Rule]:
    """Whether everything to judge by is there, and is this run's."""
    run, minimum = evidence.trained.mlflow_run, evidence.declaration.training.holdout.min_rows
    pieces = {
        "validation report": evidence.validation
        and evidence.validation.snapshot == evidence.trained.snapshot,
        "evaluation": evidence.evaluation and evidence.evaluation.mlflow_run == run,
        "infrastructure report": evidence.infrastructure
        and evidence.infrastructure.mlflow_run == run,
    }
    for name, right in pieces.items():
        found = "of this run" if right else "missing" if right is None else "of another run"
        yield Rule(name=name, observed=found, bound="of this run", passed=bool(right))
    if evidence.validation:
        blocked = ", ".join(evidence.validation.blocked)
        yield Rule(
            name="data usable",
            observed=blocked or "yes",
            bound="nothing blocked",
            passed=not blocked,
        )
    rows = 0 if evidence.rows is None else len(evidence.rows)
    yield Rule(
        name="holdout rows",
        observed=f"{rows:,}",
        bound=f"at least {minimum:,}",
        passed=rows >= minimum,
    )
    if evidence.clusters is not None:
        clusters = int(evidence.clusters.max()) + 1 if rows else 0
        yield Rule(
            name=f"{evidence.declaration.gate.resample}s to resample",
            observed=f"{clusters:,}",
            bound=f"at least {FEWEST_CLUSTERS}",
            passed=clusters >= FEWEST_CLUSTERS,
        )
    finite = evidence.predictions("candidate") is not None
    yield Rule(
        name="candidate answers",
        observed="every row" if finite else "missing or not finite",
        bound="every row, finite",
        passed=finite,
    )


def quality(evidence: Evidence) -> Iterator[Rule]:
    """Whether the candidate is good enough by itself: baseline, floors, slices, fairness."""
    declaration, evaluation = evidence.declaration, evidence.evaluation
    assert evaluation is not None  # noqa: S101 - completeness has passed
    difference = evidence.over_baseline
    yield Rule(
        name=f"better than naive ({declaration.baseline})",
        observed=interval_text(evidence, difference) if difference else "missing",
        bound="lower end > 0",
        passed=bool(difference and difference.low > 0),
    )
    for metric, floor in declaration.gate.floors.items():
        value = evaluation.metrics["candidate"].get(metric)
        yield _floor(f"floor {metric}", declaration.metric(metric), value, floor)
    for metric, floor in declaration.gate.slice_floors.items():
        for column in declaration.evaluation.slices:
            yield from _slice_floors(evidence, metric, column, floor)
    for fairness in declaration.gate.fairness:
        yield _disparity(evidence, fairness.column, fairness.disparity_at_most)


def _floor(name: str, metric: Metric, value: float | None, floor: float) -> Rule:
    greater = metric.greater_is_better
    passed = value is not None and (value >= floor if greater else value <= floor)
    return Rule(
        name=name,
        observed="missing" if value is None else f"{value:.4f}",
        bound=f"{'at least' if greater else 'at most'} {floor:g}",
        passed=passed,
    )


def _slice_floors(evidence: Evidence, metric: str, column: str, floor: float) -> Iterator[Rule]:
    measured = evidence.declaration.metric(metric)
    minimum = evidence.declaration.evaluation.min_slice_rows
    slices = evidence.evaluation.slices.get(column, {}) if evidence.evaluation else {}
    judged = {value: found for value, found in slices.items() if found["rows"] >= minimum}
    if not judged:
        yield Rule(
            name=f"floor {metric} by {column}",
            observed=f"no slice has {minimum:,} rows",
            bound="at least one slice to judge",
            passed=False,
        )
    for value, found in judged.items():
        name = f"floor {metric} where {column} = {value}"
        yield _floor(name, measured, found.get(metric), floor)


def _disparity(evidence: Evidence, column: str, bound: float) -> Rule:
    """Demographic parity difference: the spread of selection rates between groups
    (S. Barocas, M. Hardt and A. Narayanan, "Fairness and Machine Learning", 2023, chapter 3)."""
    name, allowed = f"selection-rate disparity by {column}", f"at most {bound:g}"
    answers, rows = evidence.predictions("candidate"), evidence.rows
    if answers is None or rows is None or column not in rows:
        return Rule(name=name, observed="missing", bound=allowed, passed=False)
    groups = rows.assign(selected=answers >= 0.5).groupby(column, observed=True)["selected"]
    rates = groups.mean()[groups.size() >= evidence.declaration.evaluation.min_slice_rows]
    if len(rates) < 2:
        return Rule(
            name=name,
            observed="fewer than two groups with enough rows",
            bound=allowed,
            passed=False,
        )
    spread = float(rates.max() - rates.min())
    return Rule(
        name=name,
        observed=f"{spread:.3f} ({rates.idxmin()} to {rates.idxmax()})",
        bound=allowed,
        passed=spread <= bound,
    )


def infrastructure(evidence: Evidence) -> Iterator[Rule]:
    """Whether the candidate can be served: loads, signature, predictions, latency, memory."""
    found, gate = evidence.infrastructure, evidence.declaration.gate
    assert found is not None  # noqa: S101 - completeness has passed
    p95 = found.latency_ms.get("p95_1_row")
    yield Rule(
        name="loads in a clean process",
        observed=found.problem or "yes",
        bound="yes",
        passed=found.loads and not found.problem,
    )
    yield Rule(
        name="signature",
        observed="matches" if found.signature_matches else "differs",
        bound="matches",
        passed=found.signature_matches,
    )
    yield Rule(
        name="same predictions",
        observed="equal" if found.same_predictions else "differ",
        bound="equal to the trainer's",
        passed=found.same_predictions,
    )
    yield Rule(
        name="latency p95, 1 row",
        observed="missing" if p95 is None else f"{p95:.1f} ms",
        bound=f"at most {gate.latency_p95_ms:g} ms",
        passed=p95 is not None and p95 <= gate.latency_p95_ms,
    )
    memory = found.memory_mb
    yield Rule(
        name="peak memory",
        observed="missing" if memory is None else f"{memory:.0f} MB",
        bound=f"at most {gate.memory_mb:g} MB",
        passed=memory is not None and memory <= gate.memory_mb,
    )


def skew(evidence: Evidence) -> Iterator[Rule]:
    """Whether features as served are those of a training set, for models that are served.

    A candidate learned from what the join offline gives: where requests hold something else, its
    holdout says little about how it will answer them.
    """
    found, declared = evidence.skew, evidence.declaration.serving
    if found is None and not declared.replicas:
        return
    judged = found.partitions[-1] if found and found.partitions else None
    learned = {feature.name for feature in evidence.trained.features}
    violating = (
        [f for f in judged.features if f.violates and f.feature in learned] if judged else []
    )
    if judged is None:
        observed = "nothing served was compared yet"
    else:
        ordered = sorted(violating or judged.features, key=lambda f: (-f.share, f.feature))
        shares = ", ".join(f"{f.feature} {f.share:.2%}" for f in ordered[:3])
        more = f" and {len(ordered) - 3} more" if violating and len(ordered) > 3 else ""
        said = f"differs in {judged.partition}: {shares}{more}"
        observed = said if violating else f"none {said}" if ordered else "no feature was looked up"
    bound = found.bound if found else declared.skew.mismatch_at_most
    yield Rule(
        name="training-serving skew",
        observed=observed,
        bound=f"at most {bound:.2%} of a feature's values",
        passed=not violating,
    )


def production(evidence: Evidence) -> Iterator[Rule]:
    """Whether the candidate beats what the champion answered in production, where enough is there."""
    evaluation, champion = evidence.evaluation, evidence.champion
    assert evaluation is not None  # noqa: S101 - completeness has passed
    assert champion is not None  # noqa: S101 - asked where there is one
    problem, few = production_problem(evidence), too_few_in_production(evidence)
    rows = f"{evaluation.production_rows:,} of {evaluation.holdout_rows:,} matured holdout rows"
    said = f"{rows} were answered in production by champion {champion.version}"
    yield Rule(
        name=PRODUCTION_ROWS,
        observed=problem or (f"{said}: the verdict rests on the holdout alone" if few else said),
        bound="every recorded answer there and finite" if problem else few or "information",
        passed=not problem,
    )
    difference, bound = evidence.over_production, improvement_bound(evidence.declaration)
    if difference and not problem and not few:
        yield Rule(
            name="improvement over production",
            observed=interval_text(evidence, difference),
            bound=f"lower end > {bound:g}",
            passed=difference.low > bound,
        )
    if evaluation.production_differs is not None:
        share = evaluation.production_differs
        yield Rule(
            name="same answers as in production",
            observed=f"{'NO' if share > SKEW else 'yes'}, {share:.1%} of the logged answers differ "
            "from the champion's anew",
            bound=f"information from {SKEW:.0%} on, doesn't block",
            passed=True,
        )


def production_problem(evidence: Evidence) -> str | None:
    """Why answers that were given in production can't be judged by."""
    evaluation = evidence.evaluation
    assert evaluation is not None  # noqa: S101 - completeness has passed
    if evaluation.production_problem:
        return evaluation.production_problem
    given, usable = evaluation.production_rows, int(evidence.answered.sum())
    if given == usable:
        return None
    return f"{abs(given - usable):,} of {given:,} answers in the prediction log are missing or not finite"


def too_few_in_production(evidence: Evidence) -> str | None:
    """What would be enough to compare by, when it is not there."""
    minimum, unit = (
        evidence.declaration.training.holdout.min_rows,
        evidence.declaration.gate.resample,
    )
    if int(evidence.answered.sum()) < minimum:
        return f"at least {minimum:,} to compare by"
    if evidence.clusters is None:
        return None
    found = len(set(evidence.clusters[evidence.answered].tolist()))
    return None if found >= FEWEST_CLUSTERS else f"at least {FEWEST_CLUSTERS} {unit}s to compare by"
