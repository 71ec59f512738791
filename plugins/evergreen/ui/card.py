"""A model's card as Markdown, written from what is known: nobody has to keep it up to date.

Sections follow M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger.tables import ActRow, MeasurementRow, PromotionRow, VerdictRow
from evergreen.lifecycle.contracts import Evaluation, Snapshot, TrainedModel


def markdown(
    declaration: Declaration | None,
    *,
    live: PromotionRow,
    verdict: VerdictRow | None,
    snapshot: Snapshot | None,
    trained: TrainedModel | None,
    evaluation: Evaluation | None,
    performance: MeasurementRow | None,
    drift: MeasurementRow | None,
    acts: Sequence[ActRow],
) -> str:
    """The card; what isn't known is said to be unknown."""
    lines = [
        f"# {live.model}, version {live.version}",
        "",
        *_details(declaration, live, trained),
        *_data(snapshot, evaluation),
        *_evaluated(evaluation),
        *_judged(verdict),
        *_production(performance, drift),
        *_people(acts),
    ]
    return "\n".join(lines) + "\n"


def _details(
    declaration: Declaration | None, live: PromotionRow, trained: TrainedModel | None
) -> Iterator[str]:
    yield "## Model"
    yield ""
    if declaration is not None:
        yield from _facts(
            ("What it is for", declaration.description or "not declared"),
            ("Task", str(declaration.task.value)),
            ("Owner", f"{declaration.owner.team}, {declaration.owner.contact}"),
        )
    yield from _facts(
        ("Live since", live.as_of.isoformat()),
        ("Why", live.reason),
        ("Trained through", live.trained_through.isoformat()),
        ("MLflow run", live.mlflow_run),
    )
    if trained is not None:
        yield from _facts(
            ("Estimator", trained.estimator),
            ("Parameters", ", ".join(f"{k}={v}" for k, v in sorted(trained.parameters.items()))),
            ("Code", trained.code_digest),
            ("Environment", trained.environment_digest),
        )
    yield ""


def _data(snapshot: Snapshot | None, evaluation: Evaluation | None) -> Iterator[str]:
    yield "## Data"
    yield ""
    if snapshot is None:
        yield "The snapshot can't be read."
    else:
        yield from _facts(
            ("Window", f"{snapshot.start.isoformat()} to {snapshot.end.isoformat()}"),
            ("Partitions", f"{len(snapshot.partitions)}"),
            ("Rows", f"{snapshot.rows:,}, of these {snapshot.matured:,} labelled"),
        )
    if evaluation is not None:
        yield from _facts(
            ("Holdout", f"{evaluation.holdout_rows:,} rows, {evaluation.holdout_digest}")
        )
    yield ""


def _evaluated(evaluation: Evaluation | None) -> Iterator[str]:
    yield "## Evaluation"
    yield ""
    if evaluation is None:
        yield "The evaluation can't be read."
        yield ""
        return
    whos: list[str] = [w for w in ("candidate", "champion", "baseline") if w in evaluation.metrics]
    yield from _table(
        ["metric", *whos],
        [
            [metric, *(_number(evaluation.metrics[who].get(metric)) for who in whos)]
            for metric in evaluation.metrics["candidate"]
        ],
    )
    for column, values in evaluation.slices.items():
        yield f"### By {_plain(column)}"
        yield ""
        whos = list(dict.fromkeys(who for found in values.values() for who in found))
        yield from _table(
            [column, *whos],
            [[v, *(_number(found.get(who)) for who in whos)] for v, found in values.items()],
        )
    if evaluation.importance:
        yield "### What it looks at"
        yield ""
        top = sorted(evaluation.importance.items(), key=lambda item: -item[1])[:15]
        yield from _table(["feature", "importance"], [[n, _number(v)] for n, v in top])


def _judged(verdict: VerdictRow | None) -> Iterator[str]:
    yield "## Verdict"
    yield ""
    if verdict is None:
        yield "None is recorded."
    else:
        yield f"{verdict.verdict}: {_plain(verdict.reason)}"
        yield ""
        yield from _table(
            ["rule", "observed", "bound", "result"],
            [
                [r["name"], r["observed"], r["bound"], "pass" if r["passed"] else "FAIL"]
                for r in verdict.rules
            ],
        )
    yield ""


def _production(performance: MeasurementRow | None, drift: MeasurementRow | None) -> Iterator[str]:
    yield "## In production"
    yield ""
    if performance is None and drift is None:
        yield "No window is judged yet."
    elif performance is None:
        yield "No window is judged by labels yet."
        yield ""
    if performance is not None:
        for metric, found in performance.evidence["realised"].items():
            yield from _facts((metric, f"{_interval(found)} in {performance.window}"))
    if drift is not None:
        yield from _facts(("Drifted inputs", f"{drift.evidence['share']:.0%} in {drift.window}"))
    yield ""


def _people(acts: Sequence[ActRow]) -> Iterator[str]:
    if acts:
        yield "## What people did"
        yield ""
        yield from _facts(
            *((f"{a.recorded_at:%Y-%m-%d} {a.person}", f"{a.act}: {a.comment}") for a in acts)
        )


def _facts(*pairs: tuple[str, str]) -> Iterator[str]:
    for name, value in pairs:
        yield f"- **{_plain(name)}**: {_plain(value)}"


def _table(heading: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_plain, heading))} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(_plain(str(cell)) for cell in row)} |"
    yield ""


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", one_line)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
