"""Pages over five hundred models with a thousand decisions each, by Airflow's own API application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergreen.ledger import Ledger
from tests.many import fill, model_name
from tests.printing import Figure

pytestmark = [pytest.mark.integration, pytest.mark.minutes(1), pytest.mark.timeout(900)]

MODELS, DECISIONS, FEW = 500, 1_000, 5
TIMES = 40  # that a page is asked for
PAGES = ("/", "/models/{model}", "/models/{model}/timeline", "/models/{model}/score")
FAMILIES = ("ingest", "score", "monitor", "retrain", "escalate", "rollback", "drill")

#: Asks for each page again and again, in a process that has imported nothing else; prints seconds,
#: those of them that it worked (what else the machine does is no part of it), and how many
#: statements the ledger and Airflow's database were sent.
ASK = """
import json, sys, time
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event
from airflow.api_fastapi.main import app

pages, times = json.loads(sys.argv[1]), int(sys.argv[2])
with TestClient(app) as client:
    said = client.post("/auth/token", json={"username": "admin", "password": "secret"})
    client.headers["Authorization"] = f"Bearer {said.json()['access_token']}"
    found, sent = {}, []
    event.listen(Engine, "before_cursor_execute", lambda *call: sent.append(call[2]))
    for page in pages:
        seconds, worked = [], []
        for _ in range(times):
            sent.clear()
            began = time.perf_counter(), time.process_time()
            answer = client.get(f"/evergreen{page}")
            seconds.append(time.perf_counter() - began[0])
            worked.append(time.process_time() - began[1])
            assert answer.status_code == 200, answer.text[-2000:]
        found[page] = {"seconds": seconds, "worked": worked, "statements": len(sent),
                       "bytes": len(answer.content)}
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Figures of every page: with five models, and with five hundred."""
    return {
        str(count): _asked(tmp_path_factory.mktemp(f"many{count}"), count, times)
        for count, times in ((FEW, 3), (MODELS, TIMES))
    }


def test_a_page_costs_no_query_per_row(many: dict[str, Any]) -> None:
    for page, found in many[str(MODELS)].items():
        assert found["statements"] == many[str(FEW)][page]["statements"], page
        assert found["statements"] < 60, page


def test_pages_are_quick(many: dict[str, Any], figure: Figure) -> None:
    for page, found in many[str(MODELS)].items():
        taken = {name: sorted(found[name]) for name in ("seconds", "worked")}
        assert all(len(it) == TIMES for it in taken.values())
        p50s, p95s = (
            [f"{it[int(TIMES * part)] * 1000:.0f}" for it in taken.values()] for part in (0.5, 0.95)
        )
        figure(
            f"{MODELS} models × {DECISIONS:,} decisions, {page}: p50 {p50s[0]} ms, p95 {p95s[0]} ms "
            f"(CPU {p50s[1]} and {p95s[1]}), the first {found['seconds'][0] * 1000:.0f} ms; "
            f"{found['bytes'] / 1024:.0f} kB, {found['statements']} statements"
        )


def _asked(folder: Path, models: int, times: int) -> dict[str, Any]:
    ledger = f"sqlite:///{folder / 'ledger.db'}"
    fill(Ledger(ledger), models, DECISIONS)
    (folder / "passwords.json").write_text(json.dumps({"admin": "secret"}))
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a-secret-that-is-long-enough-for-the-algorithm" * 2,
        "EVERGREEN_HOME": str(folder),
        "EVERGREEN_LEDGER_URL": ledger,
    }
    subprocess.run(
        [Path(sys.executable).with_name("airflow"), "db", "migrate"],
        env=environment, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    _register(folder, models)
    pages = [page.format(model=model_name(0)) for page in PAGES]
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(pages), str(times)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("FOUND")[2])
    return found


def _register(folder: Path, models: int) -> None:
    """Tell Airflow's database of the models' DAGs, and give the first one its declaration."""
    import shutil
    import sqlite3

    flights = Path(__file__).parents[2] / "include" / "models" / "flight_delay"
    target = folder / "include" / "models" / model_name(0)
    shutil.copytree(flights, target)
    text = (target / "model.yaml").read_text()
    (target / "model.yaml").write_text(
        text.replace("name: flight_delay", f"name: {model_name(0)}", 1)
    )
    with sqlite3.connect(folder / "airflow.db") as database:
        database.execute("INSERT INTO dag_bundle (name, active) VALUES ('dags', 1)")
        needed = database.execute("PRAGMA table_info(dag)").fetchall()
        for number in range(models):
            for family in FAMILIES:
                dag_id = f"{model_name(number)}.{family}"
                values = _dag(needed, dag_id, folder / "dags" / f"{family}.py")
                database.execute(
                    f"INSERT INTO dag ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                    list(values.values()),
                )
                database.execute(
                    "INSERT INTO dag_tag (name, dag_id) VALUES ('evergreen', ?)", [dag_id]
                )


def _dag(columns: list[Any], dag_id: str, file: Path) -> dict[str, Any]:
    """A row of Airflow's own table, with something in every column that must not be empty."""
    given = {"dag_id": dag_id, "fileloc": str(file), "bundle_name": "dags", "is_paused": 0,
             "is_stale": 0, "next_dagrun_create_after": "2026-01-01 00:00:00"}  # fmt: skip
    needed = {
        name: 0 for _, name, _, required, default, _ in columns if required and default is None
    }
    return {**needed, **given}
