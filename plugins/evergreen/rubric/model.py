"""The section on model development, as far as Evergreen sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import StatisticsError, correlation

from evergreen.declaration import Declaration, Task
from evergreen.rubric.known import Judged, Known
from evergreen.rubric.people import declare

PAIRS = 6  # fewer windows say nothing about what moves together
TOGETHER = 0.5  # rank correlation from which on two figures count as moving together
COMPARISONS = 3  # fewer say too little about what age costs


def metrics_correlate(known: Known) -> Judged:
    """Whether the metric that is judged by moves with the business figure in production."""
    declaration = known.declaration
    kpi, primary = declaration.evaluation.kpi, declaration.evaluation.primary
    if kpi is None:
        return _estimates(known, primary)
    if kpi.name == primary:
        measured = sum(kpi.name in each.realised for each in known.performance)
        if measured >= PAIRS:
            return Judged(1.0, f"judged by {kpi.name} itself, realised in {measured} windows")
        return _too_few(known, measured)
    pairs = [
        (each.realised[primary], each.realised[kpi.name])
        for each in known.performance
        if {primary, kpi.name} <= set(each.realised)
    ]
    same = declaration.metric(primary).greater_is_better == kpi.greater_is_better
    found = moves_together(pairs if same else [(x, -y) for x, y in pairs])
    if found is None:
        return _too_few(known, len(pairs))
    told = f"{primary} and {kpi.name} in {len(pairs)} windows: rank correlation {found:+.2f}"
    if found >= TOGETHER:
        return Judged(1.0, told)
    return Judged(
        0.0,
        f"{told}, below {TOGETHER}",
        "choose an `evaluation.primary` that moves with the KPI, or make the KPI the primary",
        failing=True,
    )


def _estimates(known: Known, metric: str) -> Judged:
    """Without a business figure: what was estimated before labels came beside what was realised."""
    pairs = [
        (each.estimated[metric], each.realised[metric])
        for each in known.performance
        if metric in each.estimated and metric in each.realised
    ]
    todo = "declare `evaluation.kpi`, the business figure that the metric stands for"
    found = moves_together(pairs)
    if found is None:
        return Judged(
            0.0, f"no KPI; {len(pairs)} windows with {metric} estimated and realised", todo
        )
    told = f"no KPI; {metric} estimated and realised in {len(pairs)} windows: rank correlation"
    return Judged(0.5 if found >= TOGETHER else 0.0, f"{told} {found:+.2f}", todo)


def _too_few(known: Known, measured: int) -> Judged:
    """A declared KPI that says nothing yet is worth what the model has without it."""
    before = _estimates(known, known.declaration.evaluation.primary)
    return Judged(
        max(before.points, 0.5 if measured else 0.0),
        f"the KPI is declared and realised in {measured} windows; {PAIRS} that differ are needed",
        f"let `{known.declaration.name}.monitor` measure further windows",
    )


def moves_together(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation (C. Spearman, 1904), ties by their mean rank.

    :returns: -1 to 1; None for fewer than `PAIRS` pairs, or where one side never changes.
    """
    if len(pairs) < PAIRS:
        return None
    try:
        return correlation(_ranks(x for x, _ in pairs), _ranks(y for _, y in pairs))
    except StatisticsError:  # a constant has no rank order
        return None


def _ranks(values: Iterable[float]) -> list[float]:
    given = [*values]
    ordered = sorted(given)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in given]


def hyperparameters_tuned(known: Known) -> Judged:
    """A declared search that was run anew, not only once."""
    name, search = known.declaration.name, known.declaration.training.search
    if search is None:
        return Judged(0.0, "no search is declared", "declare `training.search`")
    if known.live is None:
        return Judged(
            0.0, "a search is declared; no version is live", f"start `evergreen retrain {name}`"
        )
    if known.searched:
        return Judged(
            1.0, f"{len(search.parameters)} parameters, searched anew by recent decisions"
        )
    return Judged(
        0.5,
        f"{len(search.parameters)} parameters are searched; no recent decision searched anew",
        f"search again: `evergreen retrain {name} --tune`",
    )


def staleness_known(known: Known) -> Judged:
    """Each candidate held against its older champion on the newest rows says what age costs."""
    told = f"{known.compared} of the newest verdicts say what the older version loses on new rows"
    if known.compared >= COMPARISONS:
        return Judged(1.0, told)
    return Judged(
        0.5 if known.compared else 0.0,
        told,
        f"retrain until {COMPARISONS} are there: `evergreen retrain {known.declaration.name}`",
    )


def simpler_not_better(known: Known) -> Judged:
    """A model that knows only labels is simpler than the paper's, so this is half a test."""
    if not known.passed("better than naive"):
        return Judged(
            0.0,
            "no live version was shown to be better than the naive model",
            f"let a version go live: `evergreen retrain {known.declaration.name}`",
        )
    return Judged(
        0.5,
        f"the live version is surely better than the naive model ({known.declaration.baseline}), "
        "which knows labels only",
        f"compare with a linear model of few features too, then {declare('simpler_not_better')}",
    )


def quality_on_slices(known: Known) -> Judged:
    """Slices that a version must pass, or at least slices that are measured."""
    gate, evaluation = known.declaration.gate, known.declaration.evaluation
    if gate.slice_floors and known.passed(*_slice_lines(known.declaration)):
        return Judged(1.0, f"the live version passed its floors by {', '.join(evaluation.slices)}")
    if gate.slice_floors:
        return Judged(
            0.5 if known.live else 0.0,
            "slice floors are declared; no live version has been held against them",
            f"let the gate judge a version: `evergreen retrain {known.declaration.name}`",
        )
    todo = "declare `gate.slice_floors`, so that a bad slice holds a version back"
    if any(each.slices for each in known.performance):
        by = ", ".join(evaluation.slices) or "columns declared before"
        return Judged(0.5, f"measured in production by {by}; no slice holds a version back", todo)
    return Judged(0.0, "no slice was measured", f"declare `evaluation.slices`; then {todo}")


def _slice_lines(declaration: Declaration) -> list[str]:
    """How the gate's lines begin, of floors by slice."""
    floors, slices = declaration.gate.slice_floors, declaration.evaluation.slices
    return [f"floor {metric} where {column} = " for metric in floors for column in slices]


def inclusion(known: Known) -> Judged:
    """Groups between which answers may not differ too much."""
    groups = known.declaration.gate.fairness
    if not groups:
        binary = known.declaration.task is Task.BINARY
        return Judged(
            0.0,
            "no group is declared",
            "declare `gate.fairness` for the groups that matter"
            if binary
            else f"compare answers between the groups that matter, then {declare('inclusion')}",
        )
    columns = ", ".join(each.column for each in groups)
    if known.passed(*(f"selection-rate disparity by {each.column}" for each in groups)):
        return Judged(1.0, f"the live version's selection rates by {columns} are within bounds")
    return Judged(
        0.5 if known.live else 0.0,
        f"a disparity by {columns} is declared; no live version has been held against it",
        f"let the gate judge a version: `evergreen retrain {known.declaration.name}`",
    )


TESTS = {
    "metrics_correlate": metrics_correlate,
    "hyperparameters_tuned": hyperparameters_tuned,
    "staleness_known": staleness_known,
    "simpler_not_better": simpler_not_better,
    "quality_on_slices": quality_on_slices,
    "inclusion": inclusion,
}
