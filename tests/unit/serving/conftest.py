"""A served model a module, and everything that answers for it, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from evergreen.serving.app import Model, create_app
from evergreen.serving.security import Door
from evergreen.serving.server import Running
from tests.served_models import Served, make_served, put_online
from tests.unit.serving.desk import sit
from tests.unit.serving.registered import deployment, life

__all__ = ["deployment", "life", "sit"]

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Site:
    """A replica whose application is asked without a socket."""

    served: Served
    running: Running
    app: Any

    @property
    def model(self) -> Model:
        return self.running.replica.models[0]

    def client(self, **options: Any) -> httpx.AsyncClient:
        """One that speaks to the application itself."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://replica", **options)

    async def post(self, path: str, content: Any, **headers: str) -> httpx.Response:
        """Ask once; JSON unless the headers say something else."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client() as client:
            body = content if isinstance(content, bytes) else msgspec.json.encode(content)
            return await client.post(
                path, content=body, headers={"content-type": "application/json", **named}
            )

    def logged(self) -> list[dict[str, Any]]:
        """Every line of the prediction log, in the order of its files."""
        folders = (self.served.workspace.home / "serving", self.served.workspace.home / "store")
        files = {
            file.name.removesuffix(".open"): file
            for folder in folders
            for file in folder.rglob("*.jsonl*")
        }
        return [
            msgspec.json.decode(line)
            for name in sorted(files)
            for line in files[name].read_bytes().splitlines()
        ]

    def log_of(self, request_id: str) -> list[dict[str, Any]]:
        """The lines of one request."""
        return [line for line in self.logged() if line["request_id"] == request_id]


Open = Callable[..., Site]


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens a replica for a model; it is taken down at the end."""
    opened: list[Running] = []

    def begin(
        served: Served | None = None,
        *,
        key: str | None = None,
        door: Door | None = None,
        **sections: Any,
    ) -> Site:
        folder: Path = tmp_path_factory.mktemp("served")
        if served is None:
            served = make_served(folder, **sections)
            put_online(served, NOW, {"JFK": (90.0, "clear"), "EWR": (None, None)})
        running = Running.start(
            [served.declaration],
            served.workspace,
            name="here",
            every=3600.0,  # MLflow's address is the process's: two that look would mix theirs up
            key=key,
            clock=lambda: NOW,
        )
        opened.append(running)
        return Site(served, running, create_app(running.replica, door=door))

    yield begin
    for running in opened:
        running.stop()
