"""The serving Connection: the API key that replicas ask for.

Where a model's replicas are stands in its declaration. ``host`` may name some of them, for "Test"
to try the key on.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, ClassVar

from evergreen.hooks.base import PATIENCE, ConnectionHook
from evergreen.lifecycle import asking

if TYPE_CHECKING:
    import httpx


class ServingHook(ConnectionHook):
    """Who we are to the replicas.

    :param conn_id: the Connection.
    """

    conn_type: ClassVar[str] = "evergreen_serving"
    default_conn_name: ClassVar[str] = "evergreen_serving"
    hook_name: ClassVar[str] = "Evergreen serving"

    def get_conn(self) -> httpx.Client:
        """An HTTP client that sends the key; to be closed by who asked for it."""
        import httpx

        key = self.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(headers=headers, timeout=PATIENCE, trust_env=False)

    def key(self) -> str:
        """The API key; empty when there is none."""
        return self.connection().password or ""

    def sign_in(self) -> None:
        """Put the key where stages that ask replicas look for it."""
        if key := self.key():
            os.environ[asking.KEY] = key

    def addresses(self) -> list[str]:
        """The replicas to try the key on.

        :raises DeclarationError: when one isn't written whole, or credentials stand in it.
        """
        found = [
            each.rstrip("/") for each in re.split(r"[\s,]+", self.connection().host or "") if each
        ]
        for address in found:
            scheme, _, rest = address.partition("://")
            self.refuse_credentials(address, "The key belongs into the password field.")
            if scheme not in {"http", "https"} or not rest:
                raise self.wrong(
                    f"host names {address!r}. Write replicas whole, like http://replica-1:8080, "
                    "with commas between them; or none, and the key isn't tried."
                )
        return found

    def ask(self) -> str:
        """Ask each replica which versions it serves, with the key and, where that works, without."""
        addresses, key = self.addresses(), self.key()
        if not addresses:
            raise self.wrong(
                "no address is known to try the key on. Write one or more replicas into host, like "
                "http://replica-1:8080."
            )
        replies = asking.ask(addresses, "GET", "/version", timeout=PATIENCE, key=key)
        bare = asking.ask(addresses, "GET", "/version", timeout=PATIENCE, key="")
        problems = [problem for reply in replies if (problem := _problem(reply, key=key))]
        if problems:
            raise PermissionError("; ".join(problems))
        return "; ".join(map(_described, replies, bare)) + "."


def _problem(reply: asking.Reply, *, key: str) -> str | None:
    if reply.status in {401, 403}:
        return f"{reply.address} refuses {'this key' if key else 'to answer without a key'}"
    refusal = reply.refusal()
    return f"{reply.address} {refusal}" if refusal else None


def _described(reply: asking.Reply, bare: asking.Reply) -> str:
    """What a replica said that let us in."""
    models = reply.document().get("models")
    said = [
        f"{name} version {about.get('version')}"
        for name, about in (models if isinstance(models, dict) else {}).items()
        if isinstance(about, dict)
    ]
    took = "asks for no key" if bare.refusal() is None else "takes the key"
    return f"{reply.address} {took} and serves {', '.join(said) or 'no model'}"
