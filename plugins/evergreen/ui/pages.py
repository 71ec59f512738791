"""The overview, a model's page, what its timeline draws, its score, and the tab of a DAG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from evergreen.declaration import Declaration
from evergreen.ledger import acts, chronicle, records
from evergreen.ledger import overview as asked
from evergreen.ledger.tables import ActRow, AnswerRow, EscalationRow
from evergreen.rubric import score_of
from evergreen.ui import overview
from evergreen.ui.access import Model, readable, rights, sign
from evergreen.ui.acting import recorded
from evergreen.ui.places import DeclaredDep, LedgerDep, WorkspaceDep
from evergreen.ui.rendering import page

router = APIRouter()
SHOWN = 25  # decisions on a page


@router.get("/")
def models(
    request: Request, user: GetUserDep, airflow: SessionDep, ledger: LedgerDep
) -> HTMLResponse:
    """The overview: one row a model that the user may see, the most urgent first."""
    permitted = get_auth_manager().get_authorized_dag_ids(user=user, session=airflow)
    scheduled = overview.scheduled(airflow, permitted)
    rows = overview.rows(ledger, list(scheduled), scheduled)
    return page(request, "overview.html", rows=rows)


@router.get("/models/{model}")
def model_page(
    request: Request,
    user: GetUserDep,
    model: Model,
    airflow: SessionDep,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    declaration: DeclaredDep,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    act: Annotated[str | None, Query(pattern="^[0-9a-f]{16}$")] = None,
) -> HTMLResponse:
    """Everything about one model."""
    scheduled = overview.scheduled(airflow, {f"{model}.retrain"})
    if model not in scheduled and not chronicle.known(ledger, model):
        raise HTTPException(404, "there is no model of this name, in Airflow or in the ledger")
    live = records.champion(ledger, model)
    row = overview.rows(ledger, [model], scheduled)[0]
    stops = asked.last_escalations(ledger, [model]).get(model)
    allowed = rights(request, user, model)
    said = acts.acts_of(ledger, model)
    return page(
        request,
        "model.html",
        row=row,
        live=live,
        events=chronicle.events(ledger, live.id) if live else [],
        verdict=chronicle.verdict_of(ledger, live) if live else None,
        restores=_restores(ledger, live),
        quarantined=records.quarantined(ledger, model),
        drill=next(iter(records.drills(ledger, model)), None),
        stop=stops,
        signals=records.open_signals(ledger, model)[-SHOWN:],
        reports=chronicle.reports(ledger, model),
        entries=chronicle.entries(ledger, model, before=before, limit=SHOWN),
        before=before,
        acts=said,
        done=next((one for one in said if one.key == act), None),
        answered=_answered(stops, said),
        allowed=allowed,
        forms={name: sign(user, model, name) for name in sorted(allowed)},
        versions=_versions(ledger, model, live),
        declaration=declaration if isinstance(declaration, Declaration) else None,
        problem=str(declaration) if isinstance(declaration, Exception) else None,
        mlflow=_mlflow(workspace.tracking_uri),
    )


@router.get("/models/{model}/timeline")
def timeline(model: Model, ledger: LedgerDep) -> JSONResponse:
    """What the timeline draws, all on the time that the events are about."""
    live = records.champion(ledger, model)
    metric = asked.primaries(ledger, [live]).get(model) if live else None
    found = chronicle.points(ledger, model, metric)
    return JSONResponse(
        {
            "metric": metric,
            "points": [_drawn(point) for point in found],
            "decisions": [
                {"at": row.as_of.isoformat(), "recorded": row.recorded_at.isoformat(),
                 "action": row.action, "cause": row.cause, "outcome": row.outcome,
                 "run": row.run_id}
                for row in chronicle.decided(ledger, model)
            ],
            "promotions": [
                {"at": p.as_of.isoformat(), "version": p.version, "kind": p.kind,
                 "reason": p.reason}
                for p in reversed(chronicle.promotions(ledger, model))
            ],
        }
    )  # fmt: skip


@router.get("/models/{model}/windows")
def windows(request: Request, model: Model, ledger: LedgerDep) -> HTMLResponse:
    """The newest windows of the timeline, as a table."""
    live = records.champion(ledger, model)
    metric = asked.primaries(ledger, [live]).get(model) if live else None
    found: dict[tuple[str, str], dict[str, chronicle.Point]] = {}
    for point in reversed(chronicle.points(ledger, model, metric, 4 * SHOWN)):
        found.setdefault((point.window, point.version), {})[point.kind] = point
    shown = list(found.items())[:SHOWN]  # of each there are two, measured in one transaction
    return page(request, "windows.html", windows=shown, metric=metric)


def _drawn(point: chronicle.Point) -> dict[str, Any]:
    """A point as JSON, which has no infinity: where an interval has no bound, it is null."""
    bands = {
        name: {key: value if isfinite(value) else None for key, value in band.items()}
        for name, band in (("realised", point.realised), ("estimated", point.estimated))
        if band is not None
    }
    return {**asdict(point), **bands, "end": point.end.isoformat()}


@router.get("/models/{model}/score")
def score(
    request: Request, model: Model, ledger: LedgerDep, declaration: DeclaredDep
) -> HTMLResponse:
    """The model's ML Test Score."""
    if not isinstance(declaration, Declaration):
        reason = str(declaration) if declaration else "its model.yaml isn't on this machine"
        raise HTTPException(404, f"the score needs the model's declaration: {reason}")
    return page(request, "score.html", model=model, score=score_of(declaration, ledger))


@router.get("/dags/{dag_id}")
@router.get("/dags/{dag_id}/runs/{run_id}")
def tab(
    request: Request,
    user: GetUserDep,
    dag_id: str,
    airflow: SessionDep,
    ledger: LedgerDep,
    run_id: str | None = None,
) -> HTMLResponse:
    """The tab of a DAG or a run: what it decided, and the way to its model's page."""
    requires_access_dag("GET", None, dag_id)(request, user)
    model = dag_id.rpartition(".")[0]
    ours = model in overview.scheduled(airflow, {f"{model}.retrain"})
    if not model or not (ours or chronicle.known(ledger, model)):
        return page(request, "tab.html", model=None, dag_id=dag_id, entry=None, run_id=run_id)
    readable(request, user, model)  # a model is seen by its retrain DAG, from whichever DAG's tab
    if run_id:  # the same id may be of other DAGs' runs: a schedule names them by their time
        decides = dag_id == f"{model}.retrain"
        entry = chronicle.entry_of(ledger, model, run_id) if decides else None
    else:
        entry = next(iter(chronicle.entries(ledger, model, limit=1)), None)
    return page(request, "tab.html", model=model, dag_id=dag_id, entry=entry, run_id=run_id)


def _restores(ledger: LedgerDep, live: Any) -> Any:
    return records.last_verified(ledger, live.model, besides=[live.version]) if live else None


def _answered(
    stop: tuple[EscalationRow, list[AnswerRow]] | None, said: Sequence[ActRow]
) -> ActRow | None:
    """What a person has answered here to an escalation, until its DAG has put it into the ledger."""
    if stop is None:
        return None
    escalation, answers = stop
    newest = next((act for act in said if act.act in ("acknowledge", "decline")), None)
    if newest is None or newest.recorded_at < escalation.recorded_at:
        return None
    return None if recorded(newest.detail.get("run_id", ""), answers) else newest


def _versions(ledger: LedgerDep, model: str, live: Any) -> list[str]:
    """Versions that a rollback can go to, the newest first."""
    seen = dict.fromkeys(row.version for row in chronicle.promotions(ledger, model))
    return [version for version in seen if live is None or version != live.version]


def _mlflow(uri: str) -> str | None:
    """MLflow's own pages, where its server is asked over HTTP; without a password in the address."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
