"""A drill goes back and returns on a real server, and leaves production as it was."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from sqlalchemy import select
from typer.testing import CliRunner

import evergreen
from evergreen.cli import app
from evergreen.declaration import read_declaration
from evergreen.foreground import Foreground
from evergreen.ledger import Ledger, records
from evergreen.ledger.tables import DrillRow, PromotionRow
from evergreen.lifecycle import drilling, registry
from evergreen.lifecycle.connection import session as mlflow_session
from evergreen.lifecycle.contracts import DrillReport, Verdict
from evergreen.lifecycle.drilling import drill
from tests.builders import declare, workspace_in
from tests.lifelike import SMALL, Life

CONTENT: dict[str, Any] = {
    "name": "example",
    "task": "binary_classification",
    "owner": {"team": "ops", "contact": "ops@example.com"},
    "data": {
        "uri": "landing/{partition}.parquet",
        "partition": "day",
        "entities": ["origin"],
        "label": {"column": "late", "timestamp": "label_timestamp"},
    },
    "evaluation": {"primary": "log_loss"},
    **SMALL,
}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Version 1 is verified, version 2 is live; neither is served anywhere."""
    home = tmp_path_factory.mktemp("life")
    folder = home / "models" / "example"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(CONTENT))
    life = Life(read_declaration(folder), workspace_in(home))
    life.land(1)
    for number in (1, 2):
        life.land(number + 1)
        decision = life.decide(f"run {number}")
        run = Foreground(life.declaration, life.workspace, decision.as_of, decision)
        verdict = Verdict(
            model="example", verdict="promote", promotes=True, reason="for the test", rules=(),
            primary="log_loss", champion_version=str(number - 1) if number > 1 else None,
            champion_position=number - 1, mlflow_run=run.trained.mlflow_run,
        )  # fmt: skip
        life.promote(decision, verdict, run)
    return life


@pytest.fixture
def life(lived: Life, tmp_path: Path) -> Life:
    """The same life with a ledger of its own."""
    lived.workspace.ledger.engine.dispose()  # so that all of it is in the one file
    shutil.copy(lived.workspace.home / "ledger.db", tmp_path / "ledger.db")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    return Life(lived.declaration, replace(lived.workspace, ledger=ledger))


def verify(life: Life, version: str = "1") -> None:
    with life.workspace.ledger.write() as session:
        row = records.promotion_of_version(session, "example", version)
        assert row is not None
        records.add_event(session, row, "verified", {})


def aliases(life: Life) -> dict[str, str]:
    with mlflow_session(life.workspace) as mlflow:
        return {k: str(v) for k, v in mlflow.get_registered_model("example").aliases.items()}


def drills(life: Life) -> Sequence[DrillRow]:
    with life.workspace.ledger.read() as session:
        return records.drills(session, "example")


def rules(report: DrillReport) -> dict[str, bool]:
    return {rule.name: rule.passed for rule in report.rules}


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_going_back_works_and_is_timed_and_nothing_else_changes(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real server: there, back, and gone; a repeat says the same without another one."""
    monkeypatch.setenv("EVERGREEN_SERVING_API_KEY", "a key of production's")
    verify(life)
    kept, named = files(life.workspace.home), aliases(life)
    children = set(psutil.Process().children(recursive=True))
    moment = datetime(2013, 1, 9, tzinfo=UTC)
    report = drill(life.declaration, life.workspace, run_id="drill/1", as_of=moment)

    assert report.problem is None, report
    assert (report.version, report.target, report.passed) == ("2", "1", True)
    assert rules(report) == {
        "version 2 answers": True,
        "version 1 restored": True,
        "back at 2": True,
        "answers as when it was judged": True,
    }
    restored, returned = report.restore_seconds, report.return_seconds
    assert restored is not None
    assert returned is not None
    assert 0 < restored < 30
    assert 0 < returned < 30

    assert aliases(life) == named == {"champion": "2"}
    ours = ("mlflow.db", "ledger.db")  # their journals come and go
    changed = {p for p in files(life.workspace.home) ^ kept if not p.name.startswith(ours)}
    assert not changed
    left = set(psutil.Process().children(recursive=True)) - children
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    (row,) = drills(life)
    assert (row.version, row.target, row.passed, row.as_of) == ("2", "1", True, moment)
    assert (row.restore_seconds, row.return_seconds) == (restored, returned)

    monkeypatch.setattr(drilling, "drill_server", None)  # a second server would be an error
    assert drill(life.declaration, life.workspace, run_id="drill/1") == report
    assert len(drills(life)) == 1


def test_wrong_answers_and_a_refused_version_fail_the_drill(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version to go back to isn't what was registered; the one that is live answers, but
    not as it does here."""
    verify(life)
    known = drilling._known

    def otherwise(drilled: Any, row: PromotionRow) -> Any:
        found = known(drilled, row)
        return replace(found, answers=found.answers * (1 + 1e-6))

    monkeypatch.setattr(drilling, "_known", otherwise)
    with mlflow_session(life.workspace) as mlflow:
        right = mlflow.get_model_version("example", "1").tags[registry.ARTIFACT]
        mlflow.set_model_version_tag("example", "1", registry.ARTIFACT, "0" * 64)
    try:
        report = drill(life.declaration, life.workspace, run_id="drill/2")
    finally:
        with mlflow_session(life.workspace) as mlflow:
            mlflow.set_model_version_tag("example", "1", registry.ARTIFACT, right)
    assert not report.passed
    assert report.problem is not None
    assert "version 1 restored: not after" in report.problem
    assert "refuses version 1" in report.problem
    assert rules(report) == {
        "version 2 answers": True,
        "version 1 restored": False,
        "answers as when it was judged": False,
    }
    assert "5 of 5 answers differ" in report.rules[-1].observed
    assert (report.restore_seconds, report.return_seconds) == (None, None)
    assert aliases(life) == {"champion": "2"}
    (row,) = drills(life)
    assert not row.passed


def test_a_server_that_does_not_start_fails_the_drill(
    life: Life, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verify(life)
    elsewhere = life.declaration.model_copy()
    elsewhere._folder = tmp_path / "nowhere" / "example"
    report = drill(elsewhere, life.workspace, run_id="drill/3")
    assert not report.passed
    assert report.problem is not None
    assert "the drill's server ended with 1 before it listened" in report.problem
    assert "no model 'example'" in report.problem
    assert aliases(life) == {"champion": "2"}


def test_without_a_verified_version_the_drill_says_so_and_is_none(life: Life) -> None:
    report = drill(life.declaration, life.workspace, run_id="drill/4")
    assert (report.version, report.target, report.passed) == ("2", None, False)
    assert report.problem is not None
    assert "no verified version to go back to besides version 2" in report.problem
    assert "drill: FAILED" in list(report.describe())[-1]
    assert not drills(life)  # once there is one, the same run drills


def test_nothing_live_nothing_to_drill(tmp_path: Path) -> None:
    report = drill(declare(tmp_path), workspace_in(tmp_path), run_id="drill/5")
    assert (report.version, report.passed) == (None, False)
    assert report.problem == "no version is live, so there is nothing to roll back"


def test_what_killed_drills_left_is_deleted_once_two_have_seen_it(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may be drilling at this moment: its alias is left alone the first time."""
    verify(life)
    monkeypatch.setattr(
        drilling, "_drilled",
        lambda _, live, target: DrillReport(
            model="example", version=live.version, target=target.version, passed=True
        ),
    )  # fmt: skip
    registry.set_alias(life.workspace, "example", "drill-killed", "1")
    registry.set_alias(life.workspace, "example", "drilled-by-hand", "1")
    drill(life.declaration, life.workspace, run_id="drill/6")
    assert "drill-killed" in aliases(life)
    registry.set_alias(life.workspace, "example", "drill-running", "1")
    drill(life.declaration, life.workspace, run_id="drill/7")
    assert set(aliases(life)) == {"champion", "drill-running", "drilled-by-hand"}
    for name in ("drill-running", "drilled-by-hand"):
        registry.delete_alias(life.workspace, "example", name)


def test_no_server_outlives_a_killed_drill(tmp_path: Path) -> None:
    """The drill's process is killed; the kernel closes the pipe to its server."""
    command = [sys.executable, "-m", "evergreen.lifecycle.drill_server", "--help"]
    drilling_process = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({command!r}, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    site, serving = tmp_path / "sitecustomize.py", tmp_path / "serving"
    site.write_text(  # evergreen --help would end by itself
        "import pathlib, sys, time\n"
        "if 'evergreen.lifecycle.drill_server' in sys.orig_argv:\n"
        "    import runpy\n"
        "    def serve(*_, **__):\n"
        f"        pathlib.Path({str(serving)!r}).touch()\n"
        "        time.sleep(60)\n"
        "    runpy.run_module = serve\n"
    )
    package = Path(evergreen.__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, "-c", drilling_process],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{tmp_path}:{package}", "PATH": "/usr/bin:/bin"},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 60
    while not serving.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between looks, until the deadline
    assert child.status() != psutil.STATUS_ZOMBIE, "it serves while its drill lives"
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


def test_a_drill_is_weekly_unless_declared(tmp_path: Path) -> None:
    assert declare(tmp_path).rollback.drill == "@weekly"
    assert declare(tmp_path, rollback={"drill": "@daily"}).rollback.drill == "@daily"


def test_the_command_line_drills_and_rolls_back(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(life)
    for name, value in {
        "EVERGREEN_HOME": life.workspace.home,
        "EVERGREEN_LEDGER_URL": life.workspace.ledger.url.render_as_string(hide_password=False),
        "EVERGREEN_MODELS": life.declaration.folder.parent,
    }.items():
        monkeypatch.setenv(name, str(value))
    drilled = CliRunner().invoke(app, ["drill", "example"])
    assert drilled.exit_code == 0, drilled.output
    assert "PASSED" in drilled.output
    (row,) = drills(life)
    assert (row.version, row.target, row.passed) == ("2", "1", True)
    why = ["--reason", "the dashboard looks odd", "--person", "vera"]
    back = CliRunner().invoke(app, ["rollback", "example", *why])
    assert back.exit_code == 0, back.output
    assert "version 2 is quarantined" in back.output
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert (live.version, live.kind, live.person) == ("1", "rollback", "vera")
        assert (live.reason, "completed" in records.events_of(session, live.id)) == (why[1], True)
    assert aliases(life)["champion"] == "1"
    refused = CliRunner().invoke(app, ["candidate", "example", "2"])
    assert "version 2 is quarantined since cli/" in str(refused.exception)
    assert "by vera: the dashboard looks odd" in str(refused.exception)
    assert "candidate" not in aliases(life)
    registry.set_champion(life.workspace, life.declaration, "2")  # as it was, for the others


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([[0.5, 0.5], [0.25, 0.75]], ""),
        ([[0.5, 0.5], [0.25, 0.75 + 1e-12]], ""),
        ([[0.5, 0.5], [0.25, 0.7500001]], "1 of 2 answers differ"),
        ([[0.5, 0.5], [0.25, float("nan")]], "1 of 2 answers differ"),
        ([[0.5, 0.5]], r"answers of shape \(1,\), where \(2,\) is right"),
        ([0.5, 0.75], "can't be read"),
        ([["a", "b"], ["c", "d"]], "can't be read"),
    ],
)
def test_answers_are_compared_as_numbers(life: Life, answers: list[Any], says: str) -> None:
    from evergreen.lifecycle.fitted import load_fitted

    with life.workspace.ledger.read() as session:
        row = session.scalars(select(PromotionRow).filter_by(position=1)).one()
    model = load_fitted(life.workspace, life.declaration, row.model_uri)
    known = drilling._Known("1", model, pd.DataFrame(), np.array([0.5, 0.75]))
    found = drilling._difference(known, answers)
    assert (found == "") == (says == "")
    assert re.search(says, found)
