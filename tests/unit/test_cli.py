"""The command line answers from the ledger, as a table or as JSON, and errs with what to do."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen.cli import app, main
from evergreen.declaration import read_declaration
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
        "complete",
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
