"""Gate: evidence in, one verdict out. It fails closed: what isn't shown is refused.

Candidate and champion answered the same rows; the paired bootstrap says how much better the
candidate is and how sure that is. Where the champion answered enough of these rows in production,
the candidate must beat those answers too. Every rule is a line of a table with what was observed
and what is allowed, and the verdict names the lines that failed.
"""

from __future__ import annotations

from collections.abc import Iterator

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import VerdictRow
from evergreen.lifecycle import tracking
from evergreen.lifecycle.bootstrap import Difference
from evergreen.lifecycle.contracts import (
    Champion,
    Decision,
    Evaluation,
    InfrastructureReport,
    Rule,
    SkewReport,
    TrainedModel,
    ValidationReport,
    Verdict,
    VerdictName,
)
from evergreen.lifecycle.evidence import Evidence
from evergreen.lifecycle.rules import (
    completeness,
    improvement_bound,
    infrastructure,
    interval_text,
    production,
    production_problem,
    quality,
    skew,
    too_few_in_production,
)
from evergreen.workspace import Workspace


def judge(evidence: Evidence, *, override: str | None = None) -> Verdict:
    """Weigh the evidence.

    :param override: a person's reason to accept a candidate whose champion can't be compared;
        every other rule still holds.
    :returns: the verdict with the whole rule table; never raises for missing evidence.
    """
    rules = [*completeness(evidence)]
    if all(rule.passed for rule in rules):
        rules += [*quality(evidence), *infrastructure(evidence), *skew(evidence)]
    comparison = [*_comparison(evidence)]
    name, reason = _verdict(evidence, rules, override)
    promotes = name in {"promote", "bootstrap"} or (
        name == "incomparable" and _overridden(rules, override)
    )
    difference = evidence.over_champion if evidence.champion else evidence.over_baseline
    logged = evidence.over_production if _judged_by_production(evidence) else None
    return Verdict(
        model=evidence.declaration.name,
        verdict=name,
        promotes=promotes,
        reason=reason,
        rules=(*rules, *comparison),
        primary=evidence.declaration.primary.name,
        difference=difference and difference.estimate,
        interval=difference and (difference.low, difference.high),
        production_rows=evidence.evaluation.production_rows if evidence.evaluation else 0,
        production_difference=logged and logged.estimate,
        production_interval=logged and (logged.low, logged.high),
        champion_version=evidence.champion and evidence.champion.version,
        champion_position=evidence.champion.position if evidence.champion else 0,
        mlflow_run=evidence.trained.mlflow_run,
        override=override if promotes and name == "incomparable" else None,
    )


def gate(
    declaration: Declaration,
    workspace: Workspace,
    decision: Decision,
    trained: TrainedModel,
    validation: ValidationReport | None,
    evaluation: Evaluation | None,
    infrastructure: InfrastructureReport | None,
) -> Verdict:
    """Judge a run's candidate once, and write the verdict where people look: ledger and MLflow.

    A run that was judged keeps its verdict; to judge again, start a new run.
    """
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
    there = evaluation is not None and workspace.store.exists(evaluation.predictions)
    rows = workspace.store.get_table(evaluation.predictions) if evaluation and there else None
    champion = Champion.from_row(live) if live else None
    served = served_skew(declaration, workspace)
    verdict = judge(
        Evidence(
            declaration, trained, validation, evaluation, infrastructure, champion, rows, served
        ),
        override=decision.override,
    )
    document = verdict.to_dict()
    with workspace.ledger.write() as session:
        row = VerdictRow(
            model=declaration.name,
            run_id=decision.run_id,
            verdict=verdict.verdict,
            promotes=verdict.promotes,
            reason=verdict.reason,
            as_of=decision.as_of,
            champion_version=verdict.champion_version,
            mlflow_run=verdict.mlflow_run,
            rules=document["rules"],
            evidence=document,
            override=verdict.override,
        )
        verdict = Verdict.model_validate(records.put(session, row, "model", "run_id").evidence)
    tracking.set_tags(
        workspace,
        verdict.mlflow_run,
        {"evergreen.verdict": verdict.verdict, "evergreen.reason": verdict.reason[:5000]},
    )
    return verdict


def served_skew(declaration: Declaration, workspace: Workspace) -> SkewReport | None:
    """Features as served beside offline, in the newest partition where enough was compared.

    :returns: without a partition when none was judged; None when nothing was ever served.
    """
    with workspace.ledger.read() as session:
        rows = records.skews(session, declaration.name)
    if not rows:
        return None
    judged = [row for row in rows if row.judged]
    report = SkewReport.model_validate((judged or rows)[-1].evidence)
    return report if judged else report.model_copy(update={"partitions": ()})


def _verdict(
    evidence: Evidence, rules: list[Rule], override: str | None
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
    unusable = production_problem(evidence)
    if unusable:
        return "reject", f"what the champion answered in production can't be judged by: {unusable}"
    return _compared(evidence)


def _compared(evidence: Evidence) -> tuple[VerdictName, str]:
    """By every comparison: one that is surely lost rejects, one that is not won holds back."""
    bound = improvement_bound(evidence.declaration)
    differences = dict(_differences(evidence))
    found = {who: interval_text(evidence, each) for who, each in differences.items()}
    worse = [who for who, each in differences.items() if each.high < bound]
    if worse:
        told = "; ".join(f"{who}: {found[who]}" for who in worse)
        return "reject", f"worse than {told}, must exceed {bound:g}"
    open_ = [who for who, each in differences.items() if not each.low > bound]
    if open_:
        told = "; ".join(f"{found[who]} against {who}" for who in open_)
        return "inconclusive", f"the interval spans {bound:g}: {told}"
    word = "better" if bound >= 0 else "not worse"
    told = "; ".join(f"{word} than {who}: {text}" for who, text in found.items())
    return "promote", told + _basis(evidence)


def _differences(evidence: Evidence) -> Iterator[tuple[str, Difference]]:
    assert evidence.champion is not None  # noqa: S101 - _incomparable has said so
    assert evidence.over_champion is not None  # noqa: S101 - _incomparable has said so
    version = evidence.champion.version
    yield f"champion {version}", evidence.over_champion
    if _judged_by_production(evidence) and evidence.over_production is not None:
        rows = int(evidence.answered.sum())
        yield f"its {rows:,} answers in production", evidence.over_production


def _judged_by_production(evidence: Evidence) -> bool:
    """Whether the candidate is held against what the champion answered in production."""
    if evidence.champion is None or evidence.evaluation is None or _incomparable(evidence):
        return False
    return not production_problem(evidence) and not too_few_in_production(evidence)


def _basis(evidence: Evidence) -> str:
    """On how many production rows a promotion rests, in the words of its reason."""
    if _judged_by_production(evidence):
        return ""
    assert evidence.evaluation is not None  # noqa: S101 - completeness has passed
    return (
        f"; it rests on the holdout's {evidence.evaluation.holdout_rows:,} rows alone: champion "
        f"{evidence.evaluation.champion_version} answered {evidence.evaluation.production_rows:,} "
        "of them in production"
    )


def _overridden(rules: list[Rule], override: str | None) -> bool:
    return bool(override) and all(rule.passed for rule in rules)


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


def _comparison(evidence: Evidence) -> Iterator[Rule]:
    if evidence.champion is None or evidence.evaluation is None:
        return
    problem, bound = _incomparable(evidence), improvement_bound(evidence.declaration)
    yield Rule(
        name="champion comparable",
        observed=problem or "yes",
        bound="on the same rows",
        passed=not problem,
    )
    difference = evidence.over_champion
    if difference and not problem:
        yield Rule(
            name="improvement over champion",
            observed=interval_text(evidence, difference),
            bound=f"lower end > {bound:g}",
            passed=difference.low > bound,
        )
        yield from production(evidence)
