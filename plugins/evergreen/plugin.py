"""Evergreen as an Airflow plugin, registered by the entry point ``airflow.plugins``.

Every Airflow process reads this module; only the API server, and only when the pages are first
asked for, imports what they are made of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

PREFIX = "/evergreen"
Messages = Callable[..., Awaitable[Any]]


async def pages(scope: MutableMapping[str, Any], receive: Messages, send: Messages) -> None:
    """`evergreen.ui.app`, imported when it is first asked for."""
    from evergreen.ui.app import app

    await app(scope, receive, send)


def _place(path: str) -> str:
    """A page's address below Airflow's own."""
    return f"{urlsplit(conf.get('api', 'base_url', fallback='')).path.rstrip('/')}{PREFIX}{path}"


class EvergreenPlugin(AirflowPlugin):
    """Evergreen's place in Airflow."""

    name = "evergreen"
    fastapi_apps: list[Any] = [{"app": pages, "url_prefix": PREFIX, "name": "Evergreen"}]  # noqa: RUF012 - Airflow's own attribute
    external_views: list[Any] = [  # noqa: RUF012 - the same
        {"name": "Models", "href": _place("/"), "destination": "nav", "url_route": "models"},
        {
            "name": "Model",
            "href": _place("/dags/{DAG_ID}"),
            "destination": "dag",
            "url_route": "model",
        },
        {
            "name": "Model",
            "href": _place("/dags/{DAG_ID}/runs/{RUN_ID}"),
            "destination": "dag_run",
            "url_route": "model-decision",
        },
    ]
