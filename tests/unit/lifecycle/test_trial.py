"""A candidate is tried beside the champion without going live, and only where that is safe."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.declaration import Declaration
from evergreen.errors import RefusalError
from evergreen.ledger import acts, records
from evergreen.lifecycle import connection, registry, trial
from tests.lifelike import Life

PERSON: dict[str, Any] = {"person": "ann", "reason": "before we approve it"}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Version 1 is live. Run 2's candidate isn't surely better, run 3's is below a floor."""
    life = Life.begin(tmp_path_factory.mktemp("life"))
    for day in (1, 2):
        life.land(day)
    assert life.retrain("run 1").verdict == "bootstrap"
    life.land(3)
    assert life.retrain("run 2").verdict == "inconclusive"
    strict = life.declaration.gate.model_copy(update={"floors": {"roc_auc": 0.9999}})
    other = Life(life.declaration.model_copy(update={"gate": strict}), life.workspace)
    life.land(4)
    assert other.retrain("run 3").verdict == "reject"
    return life


def canary(declaration: Declaration) -> Declaration:
    candidate = declaration.serving.candidate.model_copy(update={"mode": "canary"})
    serving = declaration.serving.model_copy(update={"candidate": candidate})
    return declaration.model_copy(update={"serving": serving})


def alias(life: Life, name: str = registry.CANDIDATE) -> str | None:
    return registry.alias_version(life.workspace, "example", name)


def asked(life: Life) -> list[tuple[str, str, dict[str, Any]]]:
    """Every act: what, by whom, of what."""
    with life.workspace.ledger.read() as session:
        return [(a.act, a.person, a.detail) for a in acts.acts_of(session, "example")][::-1]


def versions(life: Life) -> dict[str, dict[str, str]]:
    """Registered version → its tags."""
    found = connection.client(life.workspace).search_model_versions("name = 'example'")
    return {str(v.version): dict(v.tags) for v in found}


def test_a_candidate_is_registered_and_tried_and_nothing_else_changes(life: Life) -> None:
    for _ in range(2):  # killed in between and asked again: one version, one act
        tried = trial.try_run(life.declaration, life.workspace, "run 2", key="one", **PERSON)
        assert tried == "2"
    assert (alias(life), alias(life, registry.CHAMPION)) == ("2", "1")
    assert asked(life) == [("try", "ann", {"version": "2", "mode": "shadow"})]
    assert versions(life)["2"]["evergreen.dag_run"] == "run 2"
    assert versions(life)["2"]["evergreen.verdict"] == "inconclusive"
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert (live.version, live.position) == ("1", 1)


def test_what_the_gate_was_against_answers_no_client(life: Life) -> None:
    before = asked(life), alias(life), set(versions(life))
    with pytest.raises(RefusalError, match=r"run 3 may not answer clients as canary.* REJECT"):
        trial.try_run(canary(life.declaration), life.workspace, "run 3", key="no", **PERSON)
    assert (asked(life), alias(life), set(versions(life))) == before
    shadowed = trial.try_run(life.declaration, life.workspace, "run 3", key="shadow", **PERSON)
    with pytest.raises(RefusalError, match=f"version {shadowed} may not answer clients"):
        trial.try_version(canary(life.declaration), life.workspace, shadowed, key="no", **PERSON)
    assert alias(life) == shadowed
    assert trial.try_run(canary(life.declaration), life.workspace, "run 2", key="two", **PERSON)
    assert alias(life) == "2"


@pytest.mark.parametrize(
    ("version", "said"),
    [("1", "version 1 is the champion"), ("99", "version 99 isn't registered; there are: 1, 2")],
)
def test_some_versions_are_not_tried(life: Life, version: str, said: str) -> None:
    before = asked(life), alias(life)
    with pytest.raises(RefusalError, match=said):
        trial.try_version(life.declaration, life.workspace, version, key="bad", **PERSON)
    assert (asked(life), alias(life)) == before


def test_a_run_that_judged_nothing_is_named(life: Life) -> None:
    with pytest.raises(RefusalError, match="run 'run 0' judged no candidate"):
        trial.try_run(life.declaration, life.workspace, "run 0", key="none", **PERSON)


def test_a_trial_ends_once(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.try_run(life.declaration, life.workspace, "run 2", key="three", **PERSON)
    assert trial.end_trial(life.declaration, life.workspace, key="end", **PERSON) == "2"
    assert alias(life) is None
    assert asked(life)[-1][0] == "end_trial"
    assert trial.end_trial(life.declaration, life.workspace, key="end again", **PERSON) is None
    assert asked(life)[-1] == ("end_trial", "ann", {"version": "2", "mode": "shadow"})


def test_who_is_tried_and_promoted_later_is_the_same_version(life: Life) -> None:
    life.land(5)
    decision = life.decide("run 4")
    verdict, run = life.judge(decision)
    tried = trial.try_run(life.declaration, life.workspace, "run 4", key="four", **PERSON)
    passed = verdict.model_copy(update={"promotes": True, "verdict": "promote"})
    promoted = life.promote(decision, passed, run)
    assert promoted.version == tried == alias(life, registry.CHAMPION)
    assert alias(life) is None, "what is live is no candidate"
    assert versions(life)[tried]["evergreen.verdict"] == "promote"


def test_the_program_tries_what_a_run_judged(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    home = life.workspace.home
    model = home / "models" / "example"
    model.mkdir(parents=True)
    content = life.declaration.model_dump(mode="json", exclude_unset=True)
    (model / "model.yaml").write_text(json.dumps(content))
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    monkeypatch.setenv("EVERGREEN_MODELS", str(home / "models"))
    done = CliRunner().invoke(app, ["candidate", "example", "--run", "run 2", "--reason", "again"])
    assert done.exit_code == 0, done.output
    assert "version 2 is tried as shadow" in done.output
    shown = CliRunner().invoke(app, ["history", "example"])
    assert "asked for a trial beside the champion: again" in shown.output
    both = CliRunner().invoke(app, ["candidate", "example", "2", "--run", "run 2"])
    assert "not both" in str(both.exception)
