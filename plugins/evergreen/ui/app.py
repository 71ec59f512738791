"""The web application that Airflow mounts: routes by subject, one look for every answer.

=====================  ======================================================================
`pages`                the overview, a model's page, its timeline and score, a DAG's tab
`evidence`             what lies in the store: evaluation, lineage, the model card
`reports`              Evidently's and Great Expectations' pages, shown in place
`acting`               what people may do
=====================  ======================================================================

Every route asks who is there (`access`); there is no other way in, not even to a style sheet.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from evergreen.errors import DeclarationError, EvergreenError, UnavailableError
from evergreen.ui import acting, evidence, files, pages, reports
from evergreen.ui.rendering import page

#: What a page of ours may load and run: its own files, and nothing written into it by others.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'self'; "
    "base-uri 'none'"
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def create_app() -> FastAPI:
    """The application; every route needs a user."""
    app = FastAPI(
        title="Evergreen",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(get_user)],
    )
    for module in (pages, evidence, reports, acting, files):
        app.include_router(module.router)
    app.api_route("/{path:path}", methods=METHODS)(_nowhere)  # the last: what is none of the above
    app.middleware("http")(_harden)
    app.exception_handler(StarletteHTTPException)(_refused)
    app.exception_handler(RequestValidationError)(_unreadable)
    app.exception_handler(EvergreenError)(_broken)
    return app


async def _nowhere() -> None:
    """A route as well, so that who has no token isn't told what there is."""
    raise HTTPException(404, "there is no such page, or nothing to be sent to it")


async def _harden(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    answer = await call_next(request)
    answer.headers.setdefault("Content-Security-Policy", POLICY)
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "same-origin"
    return answer


async def _refused(request: Request, error: Any) -> HTMLResponse:
    return page(
        request, "error.html", error.status_code, code=error.status_code, reason=error.detail
    )


async def _unreadable(request: Request, _error: Exception) -> HTMLResponse:
    """Something that isn't a model's name, a number, a form of ours. What was sent isn't shown."""
    return page(request, "error.html", 422, code=422, reason="this address or form isn't valid")


async def _broken(request: Request, error: Exception) -> HTMLResponse:
    """The ledger or the store can't be used: say which, and what to do."""
    unavailable = isinstance(error, UnavailableError)
    code = 503 if unavailable else 422 if isinstance(error, DeclarationError) else 409
    return page(request, "error.html", code, code=code, reason=str(error))


app = create_app()
# What Airflow and the pages are made of stays as long as the server does. A full collection that
# walks all of it takes 0.3 s, and five hundred rows are enough to bring one on.
gc.collect()
gc.freeze()
