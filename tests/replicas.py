"""Servers on loopback that say what a test puts into them, as replicas would."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def said(version: str | None = "7", **rest: Any) -> dict[str, Any]:
    """A replica's /version for a model named ``example``."""
    model = {"version": version, "wanted": version, "candidate": None, "refused": {}}
    model |= {"registry_problem": None, "from_cache": False, "loaded_at": None, **rest}
    return {"replica": "r", "started_at": "2013-01-01T00:00:00Z", "models": {"example": model}}


def text(answer: Any, status: int = 200, **headers: str) -> Answer:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return status, headers, body


@dataclass
class Replica:
    """A server that says what a test has put into it, and keeps what it was asked."""

    answers: dict[str, Answer | Callable[[Any], None]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    over: Event = field(default_factory=Event)
    address: str = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((request.path, headers, body))
        answer = self.answers.get(request.path, (404, {}, b'{"error": {"code": "not_found"}}'))
        if callable(answer):
            answer(request)
            return
        status, sent, content = answer
        request.send_response(status)
        for name, value in sent.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@contextmanager
def running(**answers: Answer | Callable[[Any], None]) -> Iterator[Replica]:
    """A replica on a free port of loopback."""
    replica = Replica({f"/{name}": answer for name, answer in answers.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            replica.handle(self)

        def do_POST(self) -> None:
            replica.handle(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    replica.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield replica
    finally:
        replica.over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def guarded(key: str | None) -> Iterator[str]:
    """A replica's own guard before such an answer: its address."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from evergreen.serving.security import Guard

    async def version(request: Request) -> JSONResponse:
        return JSONResponse(said("7"))

    inner = Starlette(routes=[Route("/version", version)])
    server = uvicorn.Server(uvicorn.Config(Guard(inner, key), lifespan="off", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # who asks before it runs waits
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def nobody() -> str:
    """An address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
