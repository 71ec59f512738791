"""Replaying history into an Airflow that answers as 3.3 does."""

from __future__ import annotations

from pathlib import Path

import httpx
import pandas as pd
import pytest

from evergreen.airflow_client import AirflowClient, AirflowError
from evergreen.replay import FAMILIES, Replay
from tests.builders import declare, workspace_in


@pytest.mark.parametrize("unknown", FAMILIES)
def test_nothing_lands_before_airflow_knows_all_dags(tmp_path: Path, unknown: str) -> None:
    declaration, workspace = declare(tmp_path), workspace_in(tmp_path)
    rows = tmp_path / "rows.parquet"
    pd.DataFrame({"event_timestamp": pd.to_datetime(["2024-01-01T00:00:00Z"])}).to_parquet(rows)
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "first"})
        if request.url.path.endswith(f".{unknown}"):
            return httpx.Response(404, json={"detail": "not found"})
        sent.append(request.method)
        return httpx.Response(200, json={"import_errors": [], "total_entries": 0})

    transport = httpx.MockTransport(answer)
    with AirflowClient("http://airflow", "admin", "secret", transport=transport) as airflow:
        replay = Replay(declaration, workspace, airflow, {"data": rows}, timeout=0.1)
        with pytest.raises(AirflowError, match=rf"{declaration.name}\.{unknown}' did not appear"):
            list(replay.run())
    assert set(sent) == {"GET"}
    assert not list((workspace.home / "landing").rglob("*.parquet"))
