"""Ask Airflow's own REST API, in this process and in the user's name: its auth, its checks, its
audit log. What it refuses is refused here with its words."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from fastapi import HTTPException, Request

from evergreen.ui.access import token_of

#: Seconds that one answer may take.
PATIENCE = 30.0


async def ask(
    request: Request,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    accept: frozenset[int] = frozenset(),
) -> dict[str, Any] | None:
    """Call ``/api/v2`` + ``path``.

    :param accept: other answers than 2xx that are fine; None is returned for them.
    :raises HTTPException: with Airflow's status and reason for every other refusal.
    """
    from airflow.api_fastapi.main import app

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://airflow",
        headers={"Authorization": f"Bearer {token_of(request)}"},
        timeout=PATIENCE,
    ) as client:
        answer = await client.request(method, f"/api/v2{path}", json=body)
    if answer.status_code in accept:
        return None
    if not answer.is_success:
        raise HTTPException(answer.status_code, f"Airflow says: {_reason(answer)}")
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


def path_of(dag_id: str, *parts: str) -> str:
    """The API's path of something of a DAG."""
    return "/".join(["/dags", quote(dag_id, safe=""), *(quote(part, safe="") for part in parts)])


def _reason(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail")
    except ValueError:
        detail = answer.text[:300]
    return str(detail) if detail else f"status {answer.status_code}"
