"""Evidently's and Great Expectations' pages, read from the store and shown in place.

A report is found by what the ledger or Airflow knows of it, never by a path that a browser sends;
pages that a report links to lie in its own folder. It runs in a sandbox of its own: scripts, but
no cookies, no forms and nothing of Airflow's. So a link inside it would ask for its page without a
token; what Great Expectations' index links to is linked to beside the frame, by our page.
"""

from __future__ import annotations

import mimetypes
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from evergreen.errors import CorruptError, PathError
from evergreen.ledger.tables import MeasurementRow
from evergreen.lifecycle.contracts import ValidationReport
from evergreen.store import check_climb
from evergreen.ui.access import Model
from evergreen.ui.airflow_api import ask, path_of
from evergreen.ui.offline import links, offline
from evergreen.ui.places import LedgerDep, WorkspaceDep
from evergreen.ui.rendering import page
from evergreen.workspace import Workspace

router = APIRouter()
Key = Annotated[int, Path(ge=1, lt=2**63)]  # what a database takes
PageName = Annotated[str, Path(max_length=240, pattern="^[ -~]+$")]  # what a file may be called
#: What a report may do: run its own scripts, and nothing that needs an origin.
SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline' 'self'; img-src data: 'self'; font-src data:; frame-ancestors 'self'"
)
#: A page of Great Expectations is only read: `offline` has taken out what it would run or load.
READ = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"
)
HTML = "text/html"
RESULTS = "validations/"
KINDS = (RESULTS, "expectations/")  # folders of Great Expectations' pages


@router.get("/models/{model}/drift/{measurement}")
def drift(request: Request, model: Model, measurement: Key, ledger: LedgerDep) -> HTMLResponse:
    """The frame around a drift report."""
    row = _measured(ledger, model, measurement)
    return page(
        request, "report.html", model=model, title=f"Drift in {row.window}, version {row.version}",
        source=f"/models/{model}/drift/{measurement}/page", names={},
    )  # fmt: skip


@router.get("/models/{model}/drift/{measurement}/page")
def drift_page(
    model: Model, measurement: Key, ledger: LedgerDep, workspace: WorkspaceDep
) -> Response:
    """Evidently's page."""
    uri = _measured(ledger, model, measurement).evidence.get("report")
    if not uri:
        raise HTTPException(404, "this window has no report: there was too little to compare")
    content, kind = _read(workspace, str(uri), "reports/drift/")
    return Response(content, media_type=kind, headers={"Content-Security-Policy": SANDBOX})


@router.get("/models/{model}/runs/{run_id}/validation/")
async def validation(
    request: Request, model: Model, run_id: str, workspace: WorkspaceDep
) -> HTMLResponse:
    """The frame around what Great Expectations said in a run, and the way to each of its pages."""
    reference = await _handed_over(request, model, run_id)
    names = await run_in_threadpool(_names, workspace, model, reference)
    return page(
        request, "report.html", model=model, title=f"Data validation in {run_id}",
        source=f"/models/{model}/runs/{quote(run_id, safe='')}/validation/index.html",
        names={name: _told(name) for name in names},
    )  # fmt: skip


@router.get("/models/{model}/runs/{run_id}/validation/{name:path}")
async def validation_page(
    request: Request, model: Model, run_id: str, name: PageName, workspace: WorkspaceDep
) -> Response:
    """A page of Great Expectations, by the report that the run's task handed over."""
    reference = await _handed_over(request, model, run_id)
    return await run_in_threadpool(_validation, workspace, model, reference, name)


async def _handed_over(request: Request, model: str, run_id: str) -> dict[str, Any]:
    """What the run's task validate_data left in Airflow."""
    found = await ask(
        request,
        "GET",
        path_of(
            f"{model}.retrain", "dagRuns", run_id, "taskInstances", "validate_data",
            "xcomEntries", "return_value",
        ) + "?deserialize=false&stringify=false",
        accept=frozenset({404}),
    )  # fmt: skip
    value = (found or {}).get("value")
    if not isinstance(value, dict):
        raise HTTPException(404, "the run's task validate_data left nothing, or it was cleaned up")
    return value


def _validation(workspace: Workspace, model: str, reference: dict[str, Any], name: str) -> Response:
    content, kind = _read(workspace, _place(workspace, reference, name), f"reports/{model}/")
    if kind == HTML:
        content = offline(content)
    return Response(content, media_type=kind, headers={"Content-Security-Policy": READ})


def _names(workspace: Workspace, model: str, reference: dict[str, Any]) -> list[str]:
    """The pages of a report, the index first."""
    index = _place(workspace, reference, "index.html")
    found = links(_read(workspace, index, f"reports/{model}/")[0])
    theirs = [name for name in found if name.startswith(KINDS) and ".." not in name]
    return ["index.html", *sorted(theirs, key=lambda name: (not name.startswith(RESULTS), name))]


def _told(name: str) -> str:
    """A page in words: their paths are Great Expectations' own."""
    kind, _, rest = name.partition("/")
    if kind == "validations":
        return f"results for {rest.partition('/')[0]}"
    if kind == "expectations":
        return f"suite for {rest.removesuffix('.html')}"
    return "all checks" if name == "index.html" else name


def _place(workspace: Workspace, reference: dict[str, Any], name: str) -> str:
    try:
        report = ValidationReport.load(workspace.store, reference)
    except (ValueError, FileNotFoundError, CorruptError, PathError) as error:
        raise HTTPException(404, f"the validation report can't be read: {error}") from error
    if not report.report:
        raise HTTPException(404, "this run's validation made no report")
    return f"{report.report.rpartition('/')[0]}/{name}"


def _read(workspace: Workspace, uri: str, below: str) -> tuple[bytes, str]:
    """A file of the store and its media type, if it lies where reports lie."""
    root = f"{workspace.store.root}/{below}"
    try:
        check_climb(uri)
    except PathError as error:
        raise HTTPException(404, "there is no such page in this report") from error
    if not uri.startswith(root):
        raise HTTPException(404, "there is no such page where reports are kept")
    try:
        content = workspace.store.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise HTTPException(404, "the report isn't in the store any more") from error
    return content, mimetypes.guess_type(uri)[0] or "application/octet-stream"


def _measured(ledger: LedgerDep, model: str, measurement: int) -> MeasurementRow:
    row = ledger.get(MeasurementRow, measurement)
    if row is None or row.model != model or row.kind != "drift":
        raise HTTPException(404, f"{model} has no drift measurement {measurement}")
    return row
