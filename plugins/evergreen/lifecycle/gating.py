"""Gate: evidence in, one verdict out. It fails closed: what isn't shown is refused.

Candidate and champion answered the same rows; the paired bootstrap says how much better the
candidate is and how sure that is. Every rule is a line of a table with what was observed and
what is allowed, and the verdict names the lines that failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evergreen.declaration import METRICS, Declaration, Task
from evergreen.ledger import records
from evergreen.ledger.tables import VerdictRow
from evergreen.lifecycle import tracking
from evergreen.lifecycle.bootstrap import Difference, paired_difference
from evergreen.lifecycle.contracts import (
    Champion,
    Decision,
    Evaluation,
    InfrastructureReport,
    Rule,
    TrainedModel,
    ValidationReport,
    Verdict,
    VerdictName,
)
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


FEWEST_CLUSTERS = 7  # fewer say nothing about how much one differs from the next


@dataclass(frozen=True)
class Evidence:
    """All that the gate may look at. A missing piece is a refusal, not a default."""

    declaration: Declaration
    trained: TrainedModel
    validation: ValidationReport | None
    evaluation: Evaluation | None
    infrastructure: InfrastructureReport | None
    champion: Champion | None
    rows: pd.DataFrame | None = field(default=None, repr=False)

    def predictions(self, who: str) -> Array | None:
        """What ``who`` answered on the holdout, or None when it didn't answer every row."""
        import numpy as np

        if self.rows is None:
            return None
        if self.declaration.task is Task.MULTICLASS and self.evaluation:
            columns = [f"{who}_{k}" for k in range(len(self.evaluation.classes))]
        else:
            columns = [who]
        if not columns or not set(columns) <= set(self.rows.columns):
            return None
        values = self.rows[columns].to_numpy(dtype=float)
        values = values if self.declaration.task is Task.MULTICLASS else values[:, 0]
        return values if np.isfinite(values).all() else None

    @cached_property
    def over_champion(self) -> Difference | None:
        """The candidate's improvement over the champion."""
        return self._difference("champion")

    @cached_property
    def over_baseline(self) -> Difference | None:
        """The candidate's improvement over the naive baseline."""
        return self._difference("baseline")

    def _difference(self, who: str) -> Difference | None:
        candidate, other = self.predictions("candidate"), self.predictions(who)
        if candidate is None or other is None or self.rows is None:
            return None
        gate = self.declaration.gate
        labels = self.rows["label"].to_numpy()
        return paired_difference(
            self.declaration.primary, self.declaration.task,
            labels if self.declaration.task is Task.REGRESSION else labels.astype(int),
            candidate, other, resamples=gate.resamples, confidence=gate.confidence,
            seed=self.declaration.training.seed, clusters=self.clusters,
        )  # fmt: skip

    @cached_property
    def clusters(self) -> Array | None:
        """Which rows are resampled together: those of one hour or day, by declaration."""
        import pandas as pd

        unit = self.declaration.gate.resample
        if unit == "row" or self.rows is None:
            return None
        codes, _ = pd.factorize(self.rows["event_timestamp"].dt.floor("h" if unit == "hour" else "D"))
        return codes



def judge(evidence: Evidence, *, override: str | None = None) -> Verdict:
    """Weigh the evidence.

    :param override: a person's reason to accept a candidate whose champion can't be compared;
        every other rule still holds.
    :returns: the verdict with the whole rule table; never raises for missing evidence.
    """
    rules = [*_completeness(evidence)]
    if all(rule.passed for rule in rules):
        rules += [*_quality(evidence), *_infrastructure(evidence)]
    comparison = _comparison(evidence)
    name, reason = _verdict(evidence, rules, comparison, override)
    promotes = name in {"promote", "bootstrap"} or (
        name == "incomparable" and _overridden(rules, override)
    )
    difference = evidence.over_champion if evidence.champion else evidence.over_baseline
    return Verdict(
        model=evidence.declaration.name, verdict=name, promotes=promotes, reason=reason,
        rules=(*rules, *comparison), primary=evidence.declaration.primary.name,
        difference=difference and difference.estimate,
        interval=difference and (difference.low, difference.high),
        champion_version=evidence.champion and evidence.champion.version,
        champion_position=evidence.champion.position if evidence.champion else 0,
        mlflow_run=evidence.trained.mlflow_run,
        override=override if promotes and name == "incomparable" else None,
    )  # fmt: skip


def gate(
    declaration: Declaration, workspace: Workspace, decision: Decision, trained: TrainedModel,
    validation: ValidationReport | None, evaluation: Evaluation | None,
    infrastructure: InfrastructureReport | None,
) -> Verdict:  # fmt: skip
    """Judge a run's candidate once, and write the verdict where people look: ledger and MLflow.

    A run that was judged keeps its verdict; to judge again, start a new run.
    """
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
    there = evaluation is not None and workspace.store.exists(evaluation.predictions)
    rows = workspace.store.get_table(evaluation.predictions) if evaluation and there else None
    champion = Champion.from_row(live) if live else None
    verdict = judge(
        Evidence(declaration, trained, validation, evaluation, infrastructure, champion, rows),
        override=decision.override,
    )
    document = verdict.to_dict()
    with workspace.ledger.write() as session:
        row = VerdictRow(
            model=declaration.name, run_id=decision.run_id, verdict=verdict.verdict,
            promotes=verdict.promotes, reason=verdict.reason, as_of=decision.as_of,
            champion_version=verdict.champion_version, mlflow_run=verdict.mlflow_run,
            rules=document["rules"], evidence=document, override=verdict.override,
        )  # fmt: skip
        verdict = Verdict.model_validate(records.put(session, row, "model", "run_id").evidence)
    tracking.set_tags(
        workspace, verdict.mlflow_run,
        {"evergreen.verdict": verdict.verdict, "evergreen.reason": verdict.reason[:5000]},
    )  # fmt: skip
    return verdict


def _verdict(
    evidence: Evidence, rules: list[Rule], comparison: list[Rule], override: str | None
) -> tuple[VerdictName, str]:
    failed = [rule for rule in rules if not rule.passed]
    if failed:
        return "reject", "; ".join(f"{r.name}: {r.observed}, allowed {r.bound}" for r in failed)
    if evidence.champion is None:
        return (
            "bootstrap",
            "there is no champion; the candidate beats the naive baseline and the floors",
        )
    problem = _incomparable(evidence)
    if problem:
        allowed = f"; accepted by a person: {override}" if override else ""
        return "incomparable", f"champion {evidence.champion.version} {problem}{allowed}"
    difference, bound = evidence.over_champion, _bound(evidence.declaration)
    assert difference is not None  # noqa: S101 - _incomparable has said so
    found = _interval(evidence, difference)
    if comparison[-1].passed:
        word = "better" if bound >= 0 else "not worse"
        return "promote", f"{word} than champion {evidence.champion.version}: {found}"
    if difference.high < bound:
        return (
            "reject",
            f"worse than champion {evidence.champion.version}: {found}, must exceed {bound:g}",
        )
    return "inconclusive", f"the interval spans {bound:g}: {found}"


def _overridden(rules: list[Rule], override: str | None) -> bool:
    return bool(override) and all(rule.passed for rule in rules)


def _bound(declaration: Declaration) -> float:
    gate = declaration.gate
    return gate.margin if gate.promote_when == "superior" else -gate.margin


def _interval(evidence: Evidence, difference: Difference) -> str:
    name, level = evidence.declaration.primary.name, evidence.declaration.gate.confidence
    return (
        f"{name} improves by {difference.estimate:+.5f} "
        f"({level:.0%} interval {difference.low:+.5f} to {difference.high:+.5f})"
    )


def _incomparable(evidence: Evidence) -> str | None:
    """Why the champion can't be compared on these rows, in the words of the verdict."""
    champion, evaluation = evidence.champion, evidence.evaluation
    if champion is None or evaluation is None:
        return None
    if evaluation.champion_version != champion.version:
        return f"is live, but the evaluation compared with {evaluation.champion_version}: evaluate again"
    if evaluation.champion_problem:
        return f"can't score the holdout: {evaluation.champion_problem}"
    if champion.trained_through > evidence.trained.holdout_start:
        return (
            f"learned from rows up to {champion.trained_through.isoformat()}, which the holdout "
            f"from {evidence.trained.holdout_start.isoformat()} on would hold against the candidate: "
            "wait for newer matured rows"
        )
    if evidence.over_champion is None:
        return "did not answer every holdout row with a finite number"
    return None


def _comparison(evidence: Evidence) -> list[Rule]:
    if evidence.champion is None or evidence.evaluation is None:
        return []
    problem, bound = _incomparable(evidence), _bound(evidence.declaration)
    rules = [
        Rule(
            name="champion comparable",
            observed=problem or "yes",
            bound="on the same rows",
            passed=not problem,
        )
    ]
    difference = evidence.over_champion
    if difference and not problem:
        passed = difference.low > bound
        rules.append(Rule(name="improvement over champion", observed=_interval(evidence, difference),
                          bound=f"lower end > {bound:g}", passed=passed))  # fmt: skip
    return rules


def _completeness(evidence: Evidence) -> Iterator[Rule]:
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
        found = int(evidence.clusters.max()) + 1 if rows else 0
        yield Rule(
            name=f"{evidence.declaration.gate.resample}s to resample",
            observed=f"{found:,}",
            bound=f"at least {FEWEST_CLUSTERS}",
            passed=found >= FEWEST_CLUSTERS,
        )
    finite = evidence.predictions("candidate") is not None
    yield Rule(name="candidate answers", observed="every row" if finite else "missing or not finite",
               bound="every row, finite", passed=finite)  # fmt: skip


def _quality(evidence: Evidence) -> Iterator[Rule]:
    declaration, evaluation = evidence.declaration, evidence.evaluation
    assert evaluation is not None  # noqa: S101 - completeness has passed
    difference = evidence.over_baseline
    yield Rule(
        name=f"better than naive ({declaration.baseline})",
        observed=_interval(evidence, difference) if difference else "missing",
        bound="lower end > 0", passed=bool(difference and difference.low > 0),
    )  # fmt: skip
    for metric, floor in declaration.gate.floors.items():
        yield _floor(f"floor {metric}", metric, evaluation.metrics["candidate"].get(metric), floor)
    for metric, floor in declaration.gate.slice_floors.items():
        for column in declaration.evaluation.slices:
            yield from _slice_floors(evidence, metric, column, floor)
    for fairness in declaration.gate.fairness:
        yield _disparity(evidence, fairness.column, fairness.disparity_at_most)


def _floor(name: str, metric: str, value: float | None, floor: float) -> Rule:
    greater = METRICS[metric].greater_is_better
    passed = value is not None and (value >= floor if greater else value <= floor)
    return Rule(name=name, observed="missing" if value is None else f"{value:.4f}",
                bound=f"{'at least' if greater else 'at most'} {floor:g}", passed=passed)  # fmt: skip


def _slice_floors(evidence: Evidence, metric: str, column: str, floor: float) -> Iterator[Rule]:
    minimum = evidence.declaration.evaluation.min_slice_rows
    slices = evidence.evaluation.slices.get(column, {}) if evidence.evaluation else {}
    judged = {value: found for value, found in slices.items() if found["rows"] >= minimum}
    if not judged:
        yield Rule(name=f"floor {metric} by {column}", observed=f"no slice has {minimum:,} rows",
                   bound="at least one slice to judge", passed=False)  # fmt: skip
    for value, found in judged.items():
        yield _floor(f"floor {metric} where {column} = {value}", metric, found.get(metric), floor)


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
    return Rule(name=name, observed=f"{spread:.3f} ({rates.idxmin()} to {rates.idxmax()})",
                bound=allowed, passed=spread <= bound)  # fmt: skip


def _infrastructure(evidence: Evidence) -> Iterator[Rule]:
    found, gate = evidence.infrastructure, evidence.declaration.gate
    assert found is not None  # noqa: S101 - completeness has passed
    p95 = found.latency_ms.get("p95_1_row")
    yield Rule(name="loads in a clean process", observed=found.problem or "yes", bound="yes",
               passed=found.loads and not found.problem)  # fmt: skip
    yield Rule(name="signature", observed="matches" if found.signature_matches else "differs",
               bound="matches", passed=found.signature_matches)  # fmt: skip
    yield Rule(name="same predictions", observed="equal" if found.same_predictions else "differ",
               bound="equal to the trainer's", passed=found.same_predictions)  # fmt: skip
    yield Rule(name="latency p95, 1 row", observed="missing" if p95 is None else f"{p95:.1f} ms",
               bound=f"at most {gate.latency_p95_ms:g} ms", passed=p95 is not None and p95 <= gate.latency_p95_ms)  # fmt: skip
    memory = found.memory_mb
    yield Rule(name="peak memory", observed="missing" if memory is None else f"{memory:.0f} MB",
               bound=f"at most {gate.memory_mb:g} MB", passed=memory is not None and memory <= gate.memory_mb)  # fmt: skip
