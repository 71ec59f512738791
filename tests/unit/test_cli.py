"""The command line answers from the ledger, as a table or as JSON, and errs with what to do."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evergreen.cli import app, main
from evergreen.declaration import read_declaration
from evergreen.ledger import acts
from tests.builders import workspace_in
from tests.lifelike import Life

run = CliRunner()
MODEL = """\
name: example
task: binary_classification
owner: {team: ops, contact: ops@example.com}
data:
  uri: landing/{partition}.parquet
  partition: day
  entities: [origin]
  label: {column: late, timestamp: label_timestamp}
training: {estimator: sklearn.linear_model.LogisticRegression, holdout: {length: 1d, min_rows: 50}}
evaluation: {primary: log_loss}
gate: {resamples: 400, latency_p95_ms: 5000, memory_mb: 8000}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one promoted version, its file where the command line looks."""
    folder = tmp_path_factory.mktemp("home")
    life = Life.begin(folder)
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    life.land(3)
    life.score()
    (folder / "models" / "example").mkdir(parents=True)
    (folder / "models" / "example" / "model.yaml").write_text(MODEL)
    return folder


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    monkeypatch.setenv("EVERGREEN_MODELS", str(home / "models"))


def test_status_says_what_is_live_and_why() -> None:
    shown = run.invoke(app, ["status"])
    assert shown.exit_code == 0
    assert "version 1 is live because: there is no champion; the candidate beats" in shown.output
    found = json.loads(run.invoke(app, ["status", "example", "--json"]).output)[0]
    assert (found["version"], found["promotion"], found["last_scored"]) == (
        "1",
        "baking",
        "2013-01-03",
    )
    assert found["open_signals"] == {"new_data": 1}


def test_history_tells_every_rule() -> None:
    shown = run.invoke(app, ["history", "example"]).output
    for words in ("retrain", "better than naive (prior)", "holdout rows", "version 1 went live"):
        assert words in shown
    entry = json.loads(run.invoke(app, ["history", "example", "--json"]).output)[0]
    assert entry["verdict"]["verdict"] == "bootstrap"
    assert all(rule["passed"] for rule in entry["verdict"]["rules"])
    assert entry["promotion"]["version"] == "1"


def test_what_people_wrote_is_shown_as_they_wrote_it(home: Path) -> None:
    from evergreen.lifecycle.arbitration import arbitrate, conclude

    life = Life(read_declaration(home / "models" / "example"), workspace_in(home))
    assert conclude(life.declaration, life.workspace, "run 1") == "promoted"
    wish = {"user": "vera", "reason": "[/x] [bold] after review"}
    arbitrate(life.declaration, life.workspace, run_id="by hand [/y]", manual=wish)
    conclude(life.declaration, life.workspace, "by hand [/y]", declined="declined [/z]")
    shown = run.invoke(app, ["history", "example"])
    assert shown.exit_code == 0
    for words in ("asked by vera: [/x] [bold] after review", "by hand [/y]", "declined [/z]"):
        assert words in shown.output
    assert run.invoke(app, ["status"]).exit_code == 0


def test_check_reports_each_file(home: Path, tmp_path: Path) -> None:
    assert "ok" in run.invoke(app, ["check"]).output
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "model.yaml").write_text(MODEL.replace("LogisticRegression", "Nothing"))
    broken = run.invoke(app, ["check", "--models", str(tmp_path), "--json"])
    assert broken.exit_code == 1
    assert "Nothing" in json.loads(broken.output)[0]["problem"]


def test_a_stage_runs_in_the_foreground_and_promotes_nothing() -> None:
    before = len(json.loads(run.invoke(app, ["history", "example", "--json"]).output))
    shown = run.invoke(app, ["stage", "arbitrate", "example", "--as-of", "2013-01-04T00:00:00"])
    assert shown.exit_code == 0, shown.output
    assert "decision: SUPPRESS" in shown.output
    assert len(json.loads(run.invoke(app, ["history", "example", "--json"]).output)) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["history", "exampel"], "no model 'exampel'; there are: example"),
        (["stage", "promote", "example", "--as-of", "2013-01-04T00:00:00"], "Promotion is the DAG's alone"),
        (["stage", "trian", "example", "--as-of", "2013-01-04T00:00:00"], "no stage 'trian'"),
        (["retrain", "example", "--reason", "x"], "EVERGREEN_AIRFLOW_URL"),
    ],
)  # fmt: skip
def test_an_error_is_a_sentence_and_no_stack_trace(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["evergreen", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = " ".join(capsys.readouterr().err.split())
    assert words in error
    assert "Traceback" not in error


def test_rolling_back_says_why_it_can_not() -> None:
    said = run.invoke(app, ["rollback", "example", "--reason", "odd"])
    assert "no version to go back to" in str(said.exception)
    status = run.invoke(app, ["status", "example"]).output
    assert "version 1 is baking" in status
    assert "nothing verified to roll back to" in status


def test_a_drill_without_a_version_to_go_back_to_fails() -> None:
    said = run.invoke(app, ["drill", "example"])
    assert said.exit_code == 1
    assert "FAILED" in said.output


def asked() -> dict[str, Any]:
    """The model's status."""
    status: dict[str, Any] = json.loads(run.invoke(app, ["status", "example", "--json"]).output)[0]
    return status


def test_pausing_holds_retraining_back_until_it_is_resumed() -> None:
    before = asked()
    assert before["paused"] is None
    reason = ["--reason", "[/x] new labels"]
    said = run.invoke(app, ["pause", "example", *reason, "--person", "vera"])
    assert said.exit_code == 0, said.output
    assert "automatic retraining is paused by vera: [/x] new labels" in said.output
    held = asked()
    assert held["health"] == "paused"
    assert (held["paused"]["person"], held["paused"]["comment"]) == ("vera", "[/x] new labels")
    assert datetime.fromisoformat(held["paused"]["since"]).tzinfo is not None
    assert {**before, "health": "paused", "paused": held["paused"]} == held
    assert "automatic retraining is paused by vera since" in run.invoke(app, ["status"]).output
    preview = run.invoke(app, ["stage", "arbitrate", "example", "--as-of", "2013-01-04T00:00:00"])
    assert "paused by vera: [/x] new labels" in preview.output

    again = run.invoke(app, ["pause", "example", "--reason", "mine", "--person", "ann"])
    assert again.exit_code == 0, again.output
    assert "paused already by vera: [/x] new labels" in again.output
    assert asked() == held

    let = ["resume", "example", "--person", "ann"]
    assert "automatic retraining goes on" in run.invoke(app, let).output
    assert asked() == before
    assert "isn't paused; nothing was recorded" in run.invoke(app, let).output


def test_history_tells_what_people_asked_for(home: Path) -> None:
    with workspace_in(home).ledger.write() as session:
        acts.act(session, "example", "form", "roll_back", "[bold]ann", "[/y]", {"version": "1"})
    shown = run.invoke(app, ["history", "example"])
    assert shown.exit_code == 0, shown.output
    for words in (
        "vera paused automatic retraining: [/x] new labels",
        "ann resumed automatic retraining ",
        "[bold]ann asked for a rollback: [/y]",
    ):
        assert words in shown.output
    entries = json.loads(run.invoke(app, ["history", "example", "--json"]).output)
    people = [entry["act"] for entry in entries if entry.get("act")]
    assert [each["act"] for each in people] == ["pause", "resume", "roll_back"]
    assert people[-1]["detail"] == {"version": "1"}


@pytest.mark.parametrize("reason", [[], ["--reason", " "]])
def test_a_pause_says_why(reason: list[str]) -> None:
    said = run.invoke(app, ["pause", "example", *reason])
    assert said.exit_code != 0
    assert "--reason" in said.output or "Say why" in str(said.exception)
    assert asked()["paused"] is None


def test_the_champion_is_no_candidate() -> None:
    said = run.invoke(app, ["candidate", "example", "1"])
    assert "version 1 is the champion" in str(said.exception)
    ended = run.invoke(app, ["candidate", "example"])
    assert ended.exit_code == 0, ended.output
