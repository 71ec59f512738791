"""The HTTP side: routes, headers, errors as JSON.

The two routes that are asked all day are plain ASGI: no framework looks at their bodies, and
nothing but `evergreen.serving.answering` makes them change threads.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from evergreen import __version__
from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Feature
from evergreen.serving.answering import Answerer
from evergreen.serving.metrics import Loaded, Metrics
from evergreen.serving.outcomes import Outcome
from evergreen.serving.payloads import Asked, Expected, Route, read_invocations, read_predict
from evergreen.serving.refusals import RequestError
from evergreen.serving.schema import Described, openapi
from evergreen.serving.security import DisconnectedError, Door, Guard, respond, respond_error

if TYPE_CHECKING:
    from evergreen.serving.online import OnlineFeatures
    from evergreen.serving.spool import Shipper
    from evergreen.serving.versions import Versions

_log = logging.getLogger(__name__)
_LONGEST_ID = 128
_ROUTING = {404: "not_found", 405: "wrong_method"}
_UNFORESEEN = "the request could not be answered"


@dataclass(frozen=True)
class Model:
    """One served model's parts."""

    declaration: Declaration
    versions: Versions
    online: OnlineFeatures
    answerer: Answerer
    shipper: Shipper

    @property
    def name(self) -> str:
        """As declared, and in its routes."""
        return self.declaration.name

    def state(self) -> dict[str, Any]:
        """What ``GET /version`` says of it: a candidate that was given up counts as refused."""
        state, given_up = self.versions.state(), self.answerer.given_up
        if given_up is not None and given_up[0] is self.versions.candidate:
            number, reason = given_up[0].number, given_up[1]
            refused = {**state["candidate_refused"], number: reason}
            state = {**state, "candidate": None, "candidate_refused": refused}
        return state

    def described(self, prefixes: Sequence[str]) -> Described:
        """As its routes are described at present."""
        champion = self.versions.champion
        return Described(
            name=self.name,
            task=self.declaration.task,
            expected=Expected.of(self.declaration),
            prefixes=prefixes,
            features=champion.fitted.features if champion else None,
            keys=_keys(self.online),
            online=self.online.names,
            classes=champion.fitted.classes if champion else (),
        )


@dataclass(frozen=True)
class Replica:
    """One process: its name, since when, and what it serves."""

    name: str
    started_at: datetime
    models: Sequence[Model]
    metrics: Metrics
    key: str | None = field(default=None, repr=False)

    @property
    def prefixes(self) -> dict[str, tuple[str, ...]]:
        """Model → where its routes begin: a lone model's stand at the root too."""
        alone = ("",) if len(self.models) == 1 else ()
        return {model.name: (*alone, f"/models/{model.name}") for model in self.models}


def create_app(replica: Replica, *, door: Door | None = None) -> FastAPI:
    """The application that answers for a replica.

    :param door: bounds what is under way; one of the usual size when left out.
    """
    app = FastAPI(
        title="Evergreen",
        version=__version__,
        docs_url=None,  # the pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    replica.metrics.look_up([Loaded(m.name, m.state, m.shipper.waiting) for m in replica.models])
    views = _Views(replica)
    entrance = door or Door()
    for path in ("ping", "version", "metrics"):
        app.router.routes.append(HttpRoute(f"/{path}", getattr(views, path), methods=["GET"]))
    app.router.routes.append(HttpRoute("/openapi.json", views.openapi, methods=["GET"]))
    for model in replica.models:
        routes: dict[Route, _Answers] = {
            "invocations": _Answers(model, "invocations", replica, entrance),
            "predict": _Answers(model, "predict", replica, entrance),
        }
        for prefix in replica.prefixes[model.name]:
            for name, endpoint in routes.items():
                path = f"{prefix}/{name}"
                app.router.routes.append(HttpRoute(path, endpoint, methods=["POST"]))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guard, key=replica.key)
    return app


@dataclass(frozen=True)
class _Views:
    """The routes that are about the replica itself."""

    replica: Replica

    async def ping(self, request: Request) -> Response:
        """200 when every model has a version and none hangs, else 503."""
        models = self.replica.models
        lacking = [model.name for model in models if model.versions.champion is None]
        hanging = {m.name: passed for m in models if (passed := m.answerer.hanging) is not None}
        if lacking:
            error = RequestError(503, "no_version", f"no version is loaded of {', '.join(lacking)}")
        elif hanging:
            told = [f"{name} has been at one batch for {s:.0f} s" for name, s in hanging.items()]
            error = RequestError(503, "hanging", f"{'; '.join(told)}: start this replica anew")
        else:
            return _json({})
        return _json(error.to_dict(), 503)

    async def version(self, request: Request) -> Response:
        """What is loaded."""
        return _json(
            {
                "replica": self.replica.name,
                "started_at": self.replica.started_at.isoformat(),
                "models": {model.name: model.state() for model in self.replica.models},
            }
        )

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        page, kind = self.replica.metrics.page()
        return Response(page, headers={"content-type": kind})

    async def openapi(self, request: Request) -> Response:
        """The routes, as they are at present."""
        prefixes = self.replica.prefixes
        described = [model.described(prefixes[model.name]) for model in self.replica.models]
        return _json(openapi(described, guarded=self.replica.key is not None))


class _Answers:
    """A route that gives predictions, as an ASGI application."""

    def __init__(self, model: Model, route: Route, replica: Replica, door: Door) -> None:
        self._model, self._route, self._door = model, route, door
        self._metrics = replica.metrics.of(model.name)
        self._expected = Expected.of(model.declaration)
        self._limit = int(model.declaration.serving.limits.body_mb * (1 << 20))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, wait for the answer, send it. A client that went away gets nothing.

        An answer's time begins when its request is here, and is without what the online store
        took: a slow client is no version's doing, nor a slow store.
        """
        began = perf_counter()
        headers = dict(reversed(scope["headers"]))
        request_id = _request_id(headers.get(b"x-request-id"))
        try:
            with self._door.enter():
                body = await self._door.read(receive, headers, self._limit)
                began = perf_counter()
                asked = self._read(body, _kind(headers, self._route))
                outcome = await self._model.answerer.answer(asked, request_id)
        except DisconnectedError:
            return
        except RequestError as error:
            outcome = Outcome(error=error)
        except Exception:  # noqa: BLE001 - whatever it was, the client is told no more than that
            _log.exception("%s: a request failed", self._model.name)
            outcome = Outcome(error=RequestError(500, "internal", _UNFORESEEN))
        code = outcome.error.status if outcome.error else 200
        seconds, store = perf_counter() - began, outcome.store_seconds
        self._metrics.request(outcome.version, outcome.role, code, seconds - store)
        if store:
            self._metrics.waited_for_store(store)
        said = [(b"x-request-id", request_id.encode())]
        if outcome.role != "none":
            said.append((b"x-evergreen-version", outcome.version.encode()))
        if outcome.error is not None:
            await respond_error(send, outcome.error, said)
        else:
            await respond(send, 200, outcome.body, said)

    def _read(self, body: bytes, kind: str) -> Asked:
        if self._route == "predict":
            return read_predict(body, self._expected, _keys(self._model.online))
        return read_invocations(body, self._expected, csv_text=kind == "text/csv")


def _request_id(sent: bytes | None) -> str:
    """The client's own, if it is fit to be kept; else a new one."""
    if sent and len(sent) <= _LONGEST_ID and all(0x20 <= byte <= 0x7E for byte in sent):
        return sent.decode("ascii")
    return secrets.token_hex(16)


def _kind(headers: dict[bytes, bytes], route: Route) -> str:
    """The content type.

    :raises RequestError: 415 for one that the route doesn't read, for another charset than UTF-8
        and for a compressed body.
    """
    kinds = ("application/json",) if route == "predict" else ("application/json", "text/csv")
    sent = headers.get(b"content-type", b"").decode("latin-1").lower()
    kind, *more = (part.strip() for part in sent.split(";"))
    charsets = [part.removeprefix("charset=").strip('"') for part in more if "charset=" in part]
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if kind in kinds and encoding == b"identity" and set(charsets) <= {"utf-8", "utf8"}:
        return kind
    found = sent[:100] if encoding == b"identity" else f"{sent[:100]}, compressed"
    reason = f"the body is {found or 'of no content type'}; it may be {' or '.join(kinds)} in UTF-8"
    raise RequestError(415, "wrong_type", reason)


def _keys(online: OnlineFeatures) -> list[Feature]:
    """The columns of a row by which its features are looked up."""
    return [Feature(name=name, type=key.type) for name, key in online.keys.items()]


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    """What the router itself refuses: 404, 405."""
    if not isinstance(error, HTTPException):
        raise error
    status = error.status_code
    what = RequestError(status, _ROUTING.get(status, "refused"), str(error.detail))
    response = _json(what.to_dict(), status)
    response.headers.update(error.headers or {})
    return response


async def _failed(_: Request, __: Exception) -> Response:
    """What nobody foresaw; the server logs it."""
    what = RequestError(500, "internal", _UNFORESEEN)
    return _json(what.to_dict(), 500)
