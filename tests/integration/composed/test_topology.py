"""Three months of flights on the topology of docker-compose.yaml, and the same months embedded.

Both ledgers must tell the same story: what arrived, which answers were given (by their digest),
what was watched, decided, judged and promoted. PostgreSQL, Redis, S3, MLflow over HTTP and Celery
change where things are kept and who does the work, and nothing else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from evergreen.ledger import records, tables
from evergreen.ledger.tables import Table
from evergreen.rehearsal import Rehearsal
from evergreen.replay import Replay, Row
from evergreen.workspace import Workspace
from tests.integration.composed.conftest import Composed
from tests.integration.processes import alive
from tests.integration.test_standalone import DAG as VENDORS
from tests.integration.topology import PROJECT, Topology
from tests.policies import MODEL, datasets, declared

pytestmark = [pytest.mark.minutes(6), pytest.mark.integration, pytest.mark.timeout(1200)]

MONTHS = ("2013-01", "2013-02", "2013-03")
Show = Callable[[str], None]


@dataclass(frozen=True)
class Year:
    """What became of the months.

    :ivar rows: what the replay said of each.
    :ivar seconds: how long they took.
    """

    it: Topology
    rows: list[Row]
    seconds: float


@pytest.fixture(scope="module")
def show(pytestconfig: pytest.Config) -> Show:
    """Print past pytest's capture: figures are what these runs are for."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}")  # noqa: T201 - figures are asked for

    return write


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the raw tables."""
    folder = tmp_path_factory.mktemp("dataset")
    datasets(folder)
    return folder


@pytest.fixture(scope="module")
def running(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Topology:
    """The topology with the flight model."""
    dags = tmp_path_factory.mktemp("project") / "dags"
    shutil.copytree(PROJECT / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "vendors.py").write_text(VENDORS)
    # At midnight the day's sweep would decide once more; what is compared are the months.
    score = (dags / "score.py").read_text()
    assert '"@daily"' in score
    (dags / "score.py").write_text(score.replace('"@daily"', '"@yearly"'))
    composed.it.deploy(dags=dags, include=PROJECT / "include")
    return composed.it


@pytest.fixture(scope="module")
def replayed(running: Topology, raw: Path, show: Show) -> Year:
    """The months, landed and settled one by one through Airflow."""
    began, rows = time.monotonic(), []
    with running.airflow as airflow:
        replay = Replay(
            declared(),
            running.workspace,
            airflow,
            {"data": raw / "flights.parquet", "weather": raw / "weather.parquet"},
            until=datetime(2013, 4, 1, tzinfo=UTC),
            timeout=400,
        )
        for row in replay.run():
            rows.append(row)
            show(f"{row.partition} {row.decision} {row.verdict} in {row.seconds:.1f} s")
    seconds = time.monotonic() - began
    show(f"topology up in {running.seconds['all']:.0f} s, {len(rows)} months in {seconds:.0f} s")
    return Year(running, rows, seconds)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Workspace:
    """The same months on SQLite and local files, in this process."""
    import pandas as pd

    home = tmp_path_factory.mktemp("embedded")
    workspace = Workspace.from_environment({"EVERGREEN_HOME": str(home)})
    declaration = declared()
    rehearsal = Rehearsal(declaration, workspace)
    frames = {name: pd.read_parquet(raw / f"{name}.parquet") for name in ("flights", "weather")}
    for key in MONTHS:
        for name, frame in frames.items():
            target = home / "landing" / name / f"{key}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            frame[frame["event_timestamp"].dt.strftime("%Y-%m") == key].to_parquet(
                target, index=False
            )
        rehearsal.step(declaration.data.partition.end(key))
    return workspace


def rows_of(workspace: Workspace, table: type[Table], *columns: str) -> list[dict[str, Any]]:
    """What a ledger says in some columns, without what repeats in another order."""
    import sqlalchemy as sa

    with workspace.ledger.read() as session:
        found = session.scalars(
            sa.select(table).filter_by(model="flight_delay").order_by(table.id)
        ).all()
        return [{name: getattr(row, name) for name in columns} for row in found]


def test_the_months_are_decided(replayed: Year) -> None:
    assert [row.partition for row in replayed.rows] == list(MONTHS)
    assert replayed.rows[0].verdict == "bootstrap"
    assert any(row.decision == "retrain" for row in replayed.rows[1:])
    assert all(row.metrics for row in replayed.rows[1:])


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (tables.PartitionRow, ("key", "revision", "rows", "digest", "start", "end", "late")),
        (tables.ScoreRow, ("partition", "revision", "version", "rows", "digest", "metrics")),
        (tables.LabelRow, ("partition", "version", "rows", "matured", "pending", "as_of")),
        (tables.MeasurementRow, ("kind", "window", "version", "as_of", "judged", "violates")),
        (tables.SignalRow, ("cause", "key", "as_of")),
        (tables.PromotionRow, ("version", "replaced", "kind", "as_of", "trained_through")),
        (tables.OutcomeRow, ("outcome", "detail")),
    ],
)
def test_both_ledgers_tell_the_same(
    replayed: Year, embedded: Workspace, table: type[Table], columns: tuple[str, ...]
) -> None:
    here, there = (rows_of(it, table, *columns) for it in (embedded, replayed.it.workspace))
    assert here
    assert there == here


def test_decisions_and_verdicts_are_the_same(replayed: Year, embedded: Workspace) -> None:
    for workspace in (embedded, replayed.it.workspace):
        with workspace.ledger.read() as session:
            assert records.champion(session, "flight_delay") is not None
    decided = ("action", "cause", "reasons", "as_of", "priority", "futile")
    judged = ("verdict", "promotes", "reason", "as_of", "champion_version", "override")
    for table, columns in ((tables.DecisionRow, decided), (tables.VerdictRow, judged)):
        here, there = (rows_of(it, table, *columns) for it in (embedded, replayed.it.workspace))
        assert there == here


def test_metrics_of_the_months_are_the_same(replayed: Year, embedded: Workspace) -> None:
    found = {row["partition"]: row["metrics"] for row in _scores(embedded)}
    for row in replayed.rows:
        if row.metrics:
            assert row.metrics["champion"] == found[row.partition]


def _scores(workspace: Workspace) -> list[dict[str, Any]]:
    return rows_of(workspace, tables.ScoreRow, "partition", "metrics")


def test_everything_is_kept_by_the_services(replayed: Year) -> None:
    it = replayed.it
    keys = [
        found["Key"]
        for page in it.s3.client().get_paginator("list_objects_v2").paginate(Bucket="evergreen")
        for found in page.get("Contents", [])
    ]
    assert {key.split("/")[0] for key in keys} == {"store", "mlflow"}
    assert {key.split("/")[1] for key in keys if key.startswith("store/")} >= {
        "documents",
        "objects",
        "tables",
    }
    home = it.folder / "home"
    assert not list(home.glob("*.db")), "an embedded default was used"
    assert not (home / "store").exists()
    assert it.workspace.tracking_uri == it.mlflow_url


def test_the_declared_health_checks_tell_the_living_from_the_dead(replayed: Year) -> None:
    it = replayed.it
    named = [name for name, process in it.processes.items() if process.running]
    assert len(named) == 6
    with ThreadPoolExecutor(2) as pool:  # each imports Airflow; two cores
        healthy = dict(zip(named, pool.map(it.healthy, named), strict=True))
    assert healthy == dict.fromkeys(named, True)
    it.kill("mlflow")
    assert not it.healthy("mlflow")
    it.start("mlflow")


def test_tasks_of_celery_use_every_vendor_without_paying_for_its_import(
    running: Topology, show: Show
) -> None:
    with running.airflow as airflow:
        airflow.wait_for_dag("vendors", 60)
        airflow.trigger("vendors", "first")
        run = airflow.wait_for_run("vendors", "first", 300)
        tasks = airflow.task_instances("vendors", "first")
        logs = {it["task_id"]: airflow.log("vendors", "first", it["task_id"]) for it in tasks}
    assert run["state"] == "success", logs
    pattern = re.compile(r"IMPORTED \S+ in ([\d.]+) s")
    seconds = {task: float(pattern.findall(log)[0]) for task, log in logs.items()}
    began, ended = (datetime.fromisoformat(run[it]) for it in ("start_date", "end_date"))
    show(f"six tasks, a vendor each, one after the other: {(ended - began).total_seconds():.1f} s")
    assert len(seconds) == 6
    assert max(seconds.values()) < 0.5, seconds
    log = running.logs["celery-worker"].read_text()
    loaded = re.search(r"Preloaded (\d+) of (\d+) modules", log)
    assert loaded is not None
    assert loaded[1] == loaded[2], log


def test_a_killed_worker_is_started_again(replayed: Year) -> None:
    it = replayed.it
    before = it.processes["celery-worker"].pids
    it.kill("celery-worker")
    assert not any(alive(pid) for pid in before)
    it.start("celery-worker")
    with it.airflow as airflow:
        airflow.trigger("flight_delay.ingest", "after")
        assert airflow.wait_for_run("flight_delay.ingest", "after", 120)["state"] == "success"


def test_no_secret_is_in_a_log_or_a_list_of_processes(replayed: Year) -> None:
    it = replayed.it
    names = [name for name in it.variables if name.endswith(("PASSWORD", "SECRET", "_KEY"))]
    planted = {it.variables[name]: name for name in names if name != "AWS_ACCESS_KEY_ID"}
    planted[it.variables["AIRFLOW_JWT_SECRET"]] = "AIRFLOW_JWT_SECRET"
    assert len(planted) > 6
    printed = [path for path in it.logs.values() if path.exists()]
    written = {path.name: path.read_text(errors="replace") for path in printed}
    for path in (it.folder / "airflow" / "logs").rglob("*.log"):
        written[str(path)] = path.read_text(errors="replace")
    assert len(written) > 20
    for process in it.processes.values():
        for pid in process.pids:
            try:
                written[f"{process.name} {pid}"] = " ".join(psutil.Process(pid).cmdline())
            except psutil.NoSuchProcess:
                continue
    for secret, name in planted.items():
        assert not [place for place, text in written.items() if secret in text], name


@pytest.mark.parametrize("replica", ["serving-1", "serving-2"])
def test_a_replica_answers_with_what_is_live(replayed: Year, replica: str) -> None:
    it = replayed.it
    it.start(replica)
    port = it.variables[f"{replica.upper().replace('-', '_')}_PORT"]
    address = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
        assert client.get("/version").status_code == 401
        key = {"X-API-Key": it.variables["SERVING_API_KEY"]}
        found = client.get("/version", headers=key).json()["models"]["flight_delay"]
        assert client.get("/ping").status_code == 200
    with it.workspace.ledger.read() as session:
        live = records.champion(session, "flight_delay")
    assert live is not None
    assert found["version"] == live.version
    it.stop(replica)


def test_dags_parse_without_an_error(running: Topology) -> None:
    with running.airflow as airflow:
        assert airflow.import_errors() == []
        assert {dag["dag_id"] for dag in airflow.dags("flight_delay.")}


def test_the_program_says_the_same_over_the_services(replayed: Year) -> None:
    """A person on a machine of the deployment asks ``evergreen history``."""
    done = subprocess.run(
        ["evergreen", "history", "flight_delay"],
        env={**replayed.it.environment("celery-worker"), "NO_COLOR": "1", "COLUMNS": "200"},
        cwd=MODEL.parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bootstrap" in done.stdout
