"""Who may ask, and how much at once: the API key, bounds on bodies and on requests under way."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from evergreen.errors import ExposureError
from evergreen.serving.refusals import RequestError

API_KEY = "EVERGREEN_SERVING_API_KEY"
#: Set to ``true`` where somebody else asks who is there: a mesh, a proxy, SageMaker.
OPEN = "EVERGREEN_SERVING_OPEN"
#: Characters of a key that a machine elsewhere may try to guess.
SHORTEST = 16
#: Seconds that a client gets to send a body.
BODY_SECONDS = 30.0
#: How much of a body that is too large is still read, in bodies that aren't, so that a client
#: which sends everything before it reads gets to see why.
_DRAIN = 4
_OPEN = frozenset({"/ping"})
Headers = list[tuple[bytes, bytes]]


def check_exposure(host: str, environment: Mapping[str, str] | None = None) -> None:
    """Refuse to answer other machines without a key, before anything is listened on.

    Predictions, the features behind them and what is loaded would be anybody's. A warning would
    be read after the fact, so nothing is started; who means it says so with `OPEN`.

    :param host: the address to listen on.
    :raises ExposureError: for another address than this machine's own without a key, or with one
        shorter than `SHORTEST`.
    """
    env = os.environ if environment is None else environment
    key = env.get(API_KEY) or ""
    if _is_loopback(host) or env.get(OPEN, "").lower() == "true" or len(key) >= SHORTEST:
        return
    found = f"a key of {len(key)} characters" if key else "no key"
    raise ExposureError(
        f"{host} can be reached from other machines, and {API_KEY} holds {found}; allowed are "
        f"{SHORTEST} characters or more. Set it, listen on 127.0.0.1, or set {OPEN}=true where "
        "something in front of this server lets nobody else in."
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine gets there; a name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class DisconnectedError(Exception):
    """The client went away before it had sent its request."""


class Guard:
    """An ASGI layer that lets nobody but the key's holders in; ``/ping`` is for everybody.

    :param key: what has to be sent; everybody is let in without one.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = _digest(key.encode()) if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        guarded = scope["type"] == "http" and scope["path"] not in _OPEN
        if guarded and self._key is not None and not _holds(scope["headers"], self._key):
            reason = "send the API key, as Authorization: Bearer KEY or as X-API-Key: KEY"
            error = RequestError(401, "unauthorized", reason)
            await respond_error(send, error, [(b"www-authenticate", b"Bearer")])
            return
        await self._app(scope, receive, send)


def _holds(headers: Headers, key: bytes) -> bool:
    """Whether some header holds the key.

    Digests are compared, in constant time: how long it takes says nothing of the key, nor of
    its length.

    :param key: the key's digest.
    """
    found = False
    for name, value in headers:
        if name == b"x-api-key":
            found |= hmac.compare_digest(_digest(value), key)
        elif name == b"authorization":
            scheme, _, said = value.partition(b" ")
            found |= hmac.compare_digest(_digest(said.strip()), key) and scheme.lower() == b"bearer"
    return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Door:
    """How much may be under way at once in a replica.

    :param requests: whose bodies are being read, or that wait for their answers.
    :param held: bytes of bodies that are being read.
    """

    def __init__(self, *, requests: int = 512, held: int = 256 << 20) -> None:
        self._requests, self._held = requests, held
        self._inside, self._bytes = 0, 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request for the length of a block.

        :raises RequestError: 429 when as many are inside already.
        """
        if self._inside >= self._requests:
            raise busy(f"{self._inside} requests are under way")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def read(self, receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
        """A request's body, however it comes.

        :param limit: bytes.
        :raises RequestError: 413 when it is larger, whatever its Content-Length says; 408 when it
            takes longer than `BODY_SECONDS`; 429 when bodies fill what memory there is for them.
        :raises DisconnectedError: when the client goes away.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
                body: bytes = message.get("body", b"")
                whole = message["type"] == "http.request" and not message.get("more_body")
                if whole and len(body) <= limit:
                    return body
                return await self._gather(message, receive, limit)
        except TimeoutError:
            reason = f"the body didn't arrive within {BODY_SECONDS:g} s"
            raise RequestError(408, "too_slow", reason) from None

    async def _gather(self, message: Any, receive: Receive, limit: int) -> bytes:
        """The rest of a body in pieces; what is too large is read on for a while, but not kept."""
        pieces: list[bytes] = []
        size = kept = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                piece = message.get("body", b"")
                size += len(piece)
                if size <= limit:
                    pieces.append(piece)
                    kept += len(piece)
                    self._take(len(piece))
                if not message.get("more_body") or size > _DRAIN * limit:
                    break
                message = await receive()
        finally:
            self._bytes -= kept
        if size > limit:
            raise too_large(limit)
        return b"".join(pieces)

    def _take(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._held:
            raise busy(f"{self._bytes >> 20} MiB of requests are being read")


def too_large(limit: int) -> RequestError:
    """413: the body is larger than ``limit`` bytes."""
    reason = f"the body is larger than {limit:,} bytes; send fewer rows at once"
    return RequestError(413, "too_large", reason)


def busy(what: str) -> RequestError:
    """429: come back in a second."""
    return RequestError(429, "busy", f"{what}; ask again, more slowly", retry_after=1)


async def respond(
    send: Send, status: int, body: bytes, headers: Headers, kind: bytes = b"application/json"
) -> None:
    """Send a whole answer."""
    every = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})


async def respond_error(send: Send, error: RequestError, headers: Headers) -> None:
    """Send an error. A body that is too large or too slow may still be coming: no more is read."""
    more = list(headers)
    if error.retry_after is not None:
        more.append((b"retry-after", str(error.retry_after).encode()))
    if error.status in {408, 413}:
        more.append((b"connection", b"close"))
    await respond(send, error.status, msgspec.json.encode(error.to_dict()), more)
