"""A person before our pages, and what they left in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from starlette.testclient import TestClient

from evergreen.ledger import acts
from evergreen.workspace import Workspace
from tests.unit.ui.lives import look


@dataclass(frozen=True)
class Person:
    """Somebody's browser; nobody's, without a token."""

    client: TestClient
    token: str | None = None

    def get(self, path: str, **given: Any) -> httpx.Response:
        """Ask for a page of ours."""
        return self.ask("GET", path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        """Send a form of ours."""
        return self.ask("POST", path, **given)

    def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **given: Any
    ) -> httpx.Response:
        """Redirects are not followed."""
        signed = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        answer: httpx.Response = self.client.request(
            method, f"/evergreen{path}", headers={**signed, **(headers or {})},
            follow_redirects=False, **given,
        )  # fmt: skip
        return answer


def token_for(person: Person, act: str, model: str = "example") -> str:
    """As the model's page gives it."""
    return look(person.get(f"/models/{model}").text).forms[act]["token"]


def acts_in(workspace: Workspace, model: str = "example") -> list[str]:
    with workspace.ledger.read() as session:
        return [row.act for row in acts.acts_of(session, model)]
