"""Ask several servers the same over HTTP, all at once, each within a time for the whole exchange.

One that trickles bytes is as late as one that says nothing. No proxy of the environment stands
between: it would answer for one server and hide the others.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

KEY = "EVERGREEN_SERVING_API_KEY"
LARGEST = 8 << 20  # bytes of an answer that are read


@dataclass(frozen=True)
class Reply:
    """What an address answered.

    :ivar headers: by lower-case name.
    :ivar seconds: from asking to having it all.
    :ivar problem: why there is no answer.
    :ivar late: whether that is for want of time.
    """

    address: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    seconds: float = 0.0
    problem: str | None = None
    late: bool = False

    def refusal(self) -> str | None:
        """Why this is no answer to go on with; None for a 200."""
        if self.problem is not None:
            return self.problem
        if self.status in {401, 403}:
            return f"answers {self.status}: {KEY} must hold the key it was started with"
        if self.status != 200:
            return f"answers {self.status}: {' '.join(self.text.split())[:200]}"
        return None

    def document(self) -> dict[str, Any]:
        """The body as a JSON object.

        :raises ValueError: when it isn't JSON.
        :raises TypeError: when it is no object.
        """
        found = json.loads(self.text)
        if not isinstance(found, dict):
            raise TypeError(f"{type(found).__name__} where an object belongs")
        return found


def ask(
    addresses: Sequence[str],
    method: str,
    path: str,
    *,
    timeout: float,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    key: str | None = None,
) -> list[Reply]:
    """The same request to every address, and their replies in that order; never raises for one.

    :param timeout: seconds that one address may take in all.
    :param key: the API key to send, empty for none; the environment's when left out.
    """
    if not addresses:
        return []
    sent = {"Accept": "*/*", **(headers or {})}
    if secret := os.environ.get(KEY) if key is None else key:
        sent["Authorization"] = f"Bearer {secret}"

    async def every() -> list[Reply]:
        import httpx

        async with httpx.AsyncClient(
            headers=sent, timeout=timeout, trust_env=False, verify=ssl.create_default_context()
        ) as client:
            asked = (_one(client, each, method, path, timeout, content) for each in addresses)
            return list(await asyncio.gather(*asked))

    return asyncio.run(every())


async def _one(
    client: httpx.AsyncClient,
    address: str,
    method: str,
    path: str,
    timeout: float,
    content: bytes | None,
) -> Reply:
    import httpx

    began, body = time.monotonic(), bytearray()
    try:
        async with (
            asyncio.timeout(timeout),
            client.stream(method, address + path, content=content) as response,
        ):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    return Reply(address, problem=f"answers {path} with more than {LARGEST:,} B")
            text = body.decode("utf-8", errors="replace")
            took = time.monotonic() - began
            return Reply(address, response.status_code, response.headers, text, took)
    except (TimeoutError, httpx.ReadTimeout):
        return Reply(address, problem=f"didn't answer {path} within {timeout:g} s", late=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return Reply(address, problem=f"can't be reached ({what})")
