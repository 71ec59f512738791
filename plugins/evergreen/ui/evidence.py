"""What lies in the store: how the champion did beside what it replaced, where it comes from, its card.

The store may be far away or gone, so these are parts that the model's page asks for after it is
shown; each says for itself when it can't be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError
from evergreen.ledger import acts, chronicle, records
from evergreen.ledger import overview as asked
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle.contracts import Evaluation, FeatureSet, Snapshot, TrainedModel
from evergreen.ui import card, lineage
from evergreen.ui.access import Model
from evergreen.ui.places import DeclaredDep, LedgerDep, WorkspaceDep
from evergreen.ui.rendering import page
from evergreen.workspace import Workspace

router = APIRouter()
MOST = 40  # slices and features in a table


@dataclass(frozen=True)
class Origin:
    """What a live version was made from; what isn't known or can't be read is None."""

    live: PromotionRow
    snapshot: Snapshot | None
    features: FeatureSet | None
    trained: TrainedModel | None
    evaluation: Evaluation | None


@router.get("/models/{model}/evaluation")
def evaluation(
    request: Request, model: Model, ledger: LedgerDep, workspace: WorkspaceDep
) -> HTMLResponse:
    """Champion against candidate, by metric, slice and feature."""
    made = origin(ledger, workspace, model)
    found, metric = made.evaluation, asked.primaries(ledger, [made.live]).get(model, "")
    if found is None:
        raise HTTPException(404, "the evaluation of this version isn't in the store")
    slices = _slices(found, metric)
    return page(
        request, "evaluation.html", report=found, metric=metric, slices=slices[:MOST],
        every=len(slices),
        features=sorted(found.importance, key=lambda name: -abs(found.importance[name]))[:MOST],
    )  # fmt: skip


@router.get("/models/{model}/lineage")
def drawing(
    request: Request, model: Model, ledger: LedgerDep, workspace: WorkspaceDep
) -> HTMLResponse:
    """Data partitions → snapshot → features → run → version → deployment."""
    found = origin(ledger, workspace, model)
    steps = lineage.steps(
        found.live,
        snapshot=found.snapshot,
        features=found.features,
        trained=found.trained,
        events={row.event: row.detail for row in chronicle.events(ledger, found.live.id)},
    )
    return page(request, "lineage.html", steps=steps)


@router.get("/models/{model}/card")
def shown(
    request: Request,
    model: Model,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    declaration: DeclaredDep,
) -> HTMLResponse:
    """The model card."""
    text = _card(ledger, workspace, model, declaration)
    return page(request, "card.html", model=model, text=text)


@router.get("/models/{model}/card.md")
def downloaded(
    model: Model, ledger: LedgerDep, workspace: WorkspaceDep, declaration: DeclaredDep
) -> PlainTextResponse:
    """The model card as a file."""
    return PlainTextResponse(
        _card(ledger, workspace, model, declaration),
        media_type="text/markdown; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{model}.md"'},
    )


def origin(ledger: LedgerDep, workspace: Workspace, model: str) -> Origin:
    """What the live version was made from.

    :raises HTTPException: 404 when no version is live.
    """
    live = records.champion(ledger, model)
    if live is None:
        raise HTTPException(404, "no version is live")
    made = live.origin
    return Origin(
        live,
        _document(workspace, Snapshot, {"kind": "snapshot", "uri": live.snapshot_uri,
                                        "digest": live.snapshot_digest}),
        _document(workspace, FeatureSet, made.get("features")),
        _document(workspace, TrainedModel, made.get("trained")),
        _document(workspace, Evaluation, made.get("evaluation")),
    )  # fmt: skip


def _document(workspace: Workspace, kind: Any, reference: dict[str, Any] | None) -> Any:
    if not reference or not reference["uri"]:
        return None
    try:
        return kind.load(workspace.store, reference)
    except (FileNotFoundError, CorruptError, ValueError):  # the part says that it is missing
        return None


def _card(
    ledger: LedgerDep, workspace: Workspace, model: str, declaration: Declaration | Exception | None
) -> str:
    found = origin(ledger, workspace, model)
    return card.markdown(
        declaration if isinstance(declaration, Declaration) else None,
        live=found.live,
        verdict=chronicle.verdict_of(ledger, found.live),
        snapshot=found.snapshot,
        trained=found.trained,
        evaluation=found.evaluation,
        performance=chronicle.latest(ledger, found.live, "performance", "realised"),
        drift=chronicle.latest(ledger, found.live, "drift"),
        acts=acts.acts_of(ledger, model, limit=5),
    )


def _slices(report: Evaluation, metric: str) -> list[tuple[str, str, dict[str, float]]]:
    """Column, value, and metric → value, the champion's as ``champion.<metric>``; of slices that
    have the metric, for the others had too few rows."""
    return [
        (column, value, found)
        for column, values in report.slices.items()
        for value, found in values.items()
        if metric in found
    ]
