"""A server lets nobody in without a key, and waits for nobody's headers for ever."""

import asyncio
import hmac
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import monotonic, sleep

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from evergreen.errors import ExposureError
from evergreen.serving import connections, security
from evergreen.serving.connections import HEADER_BYTES, BoundedProtocol
from evergreen.serving.security import API_KEY, OPEN, Guard, check_exposure

KEY = "a-key-of-twenty-two-ch"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_may_ask_without_a_key(host: str) -> None:
    check_exposure(host, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.com", "localhost.evil.com"])
def test_another_machine_needs_a_key_or_a_said_exception(host: str) -> None:
    for environment in ({}, {API_KEY: ""}, {API_KEY: "short"}, {OPEN: "no"}):
        with pytest.raises(ExposureError, match=f"{API_KEY}.*{OPEN}=true") as caught:
            check_exposure(host, environment)
        assert "short" not in str(caught.value)
    check_exposure(host, {API_KEY: KEY})
    check_exposure(host, {OPEN: "true"})


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


async def _answer_when_told(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await _answer(scope, receive, send)


def _status(path: str, headers: list[tuple[bytes, bytes]]) -> int:
    sent: list[dict[str, int]] = []

    async def send(message: dict[str, int]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(_answer, KEY)(scope, None, send))  # type: ignore[arg-type]  # nothing is received
    return sent[0]["status"]


@pytest.mark.parametrize("path", ["/metrics", "/version", "/openapi.json", "/invocations", "/x"])
def test_only_ping_is_for_everybody(path: str) -> None:
    assert _status("/ping", []) == 200
    assert _status(path, []) == 401
    assert _status(path, [(b"x-api-key", KEY.encode())]) == 200
    assert _status(path, [(b"authorization", b"Bearer " + KEY.encode())]) == 200
    for wrong in (b"", KEY[:-1].encode(), KEY.encode() + b"x", b"\xff"):
        assert _status(path, [(b"x-api-key", wrong)]) == 401
    assert _status(path, [(b"authorization", b"Basic " + KEY.encode())]) == 401


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(security.hmac, "compare_digest", staticmethod(compare))
    assert _status("/metrics", [(b"x-api-key", b"k" * 4000)]) == 401
    assert compared == [(32, 32)], "digests, whose length says nothing of the key's"


@contextmanager
def _listening() -> Iterator[int]:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            _answer_when_told, http=BoundedProtocol, ws="none", lifespan="off", log_level="critical"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        end = monotonic() + 20
        while not server.started and monotonic() < end:
            sleep(0.01)  # uvicorn has no other sign of being up
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def _rest(client: socket.socket) -> bytes:
    """What comes back until the server closes the connection."""
    found = b""
    while chunk := client.recv(4096):
        found += chunk
    return found


def _said(port: int, *pieces: bytes) -> bytes:
    """What comes back for these, until the server closes the connection."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
        for piece in pieces:
            client.sendall(piece)
        return _rest(client)


_GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


def test_headers_have_a_size() -> None:
    with _listening() as port:
        assert b" 200 " in _said(port, _GET, b"connection: close\r\n\r\n")
        assert b" 200 " in _said(
            port, _GET + b"a: " + b"x" * 20_000 + b"\r\nconnection: close\r\n\r\n"
        )
        assert b" 431 " in _said(port, _GET, b"a: " + b"x" * (HEADER_BYTES + 1))


def test_headers_have_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with _listening() as port:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
            client.sendall(_GET + b"\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer and (more := client.recv(4096)):
                answer += more
            assert answer.count(b" 200 ") == 1
            monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
            client.sendall(_GET)
            assert _rest(client) == b"", "nor has a kept connection longer for its next request"
        assert _said(port, _GET) == b"", "headers that never end"
        assert _said(port) == b"", "a client that says nothing"


def test_a_slow_body_is_not_the_headers_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 40000\r\nconnection: close\r\n\r\n"
    with _listening() as port:
        for _ in range(20):
            began = monotonic()
            with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
                client.sendall(body + b"x" * 100)
                if monotonic() - began > 0.3:
                    continue  # this machine was too slow for its headers to be in time
                sleep(0.4)  # longer than headers may take: that is the body's time
                client.sendall(b"x" * 39_900)
                assert b" 200 " in _rest(client)
                return
    raise AssertionError("no headers could be sent in time")
