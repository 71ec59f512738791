"""The overview, a model's page, its timeline, score and tab: what they say, and that what others
wrote is only ever shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from evergreen.ledger import acts, records
from evergreen.ledger import overview as asked
from evergreen.ledger.tables import DecisionRow
from evergreen.lifecycle.windows import WATCHED, judged_for, windows_of
from evergreen.reporting import status_of
from evergreen.ui import overview, pages
from evergreen.workspace import Workspace
from tests.builders import workspace_in
from tests.scenarios.project import Project
from tests.unit.ui.browser import Person
from tests.unit.ui.keeper import MODELS
from tests.unit.ui.lives import (
    BAND,
    DAY,
    HOSTILE,
    check_inert,
    fresh,
    go_live,
    live_with,
    look,
    measure,
    measured,
    stop,
)

LIFE = {
    "no version": (),
    "not watched yet": ("live",),
    "healthy": ("live", "measured"),
    "drifting": ("live", "measured", "drifted"),
    "degraded": ("live", "measured", "drifted", "worse"),
    "paused": ("live", "measured", "paused"),
    "stopped": ("live", "measured", "paused", "stopped"),
}


def live_as(workspace: Workspace, health: str, model: str = "example") -> None:
    """What makes a model be of a word of health."""
    steps: dict[str, Any] = {
        "live": lambda: go_live(workspace, model),
        "measured": lambda: [
            measure(workspace, model, kind="performance"), measure(workspace, model),
            measure(workspace, model, day=9, judged=False, share=0.99),
        ],
        "drifted": lambda: measure(workspace, model, day=2, violates=("inputs",), share=0.5),
        "worse": lambda: measure(
            workspace, model, kind="performance", day=2, violates=("performance",)
        ),
        "paused": lambda: _pause(workspace, model),
        "stopped": lambda: stop(workspace, model),
    }  # fmt: skip
    for step in LIFE[health]:
        steps[step]()


def _pause(workspace: Workspace, model: str) -> None:
    with workspace.ledger.write() as session:
        acts.pause(session, model, key="1", person="vera", comment="an audit")


def table(html: str) -> dict[str, str]:
    """Model → health, in the order of the overview's rows."""
    tags = look(html).tags
    words = [
        str(attributes["data-health"]) for _, attributes in tags if "data-health" in attributes
    ]
    names = [str(a["data-sort"]) for tag, a in tags if tag == "th" and "data-sort" in a]
    return dict(zip(names, words, strict=True))


def test_a_pause_hides_nothing(vera: Person, workspace: Workspace, project: Project) -> None:
    """It is a word of its own, beside what the model does."""
    for health in ("drifting", "degraded"):
        live_as(workspace, health, "other" if health == "drifting" else "example")
    for model, health in (("other", "drifting"), ("example", "degraded")):
        _pause(workspace, model)
        assert table(vera.get("/").text)[model] == health
        (heading,) = re.findall("<h1>.*</h1>", vera.get(f"/models/{model}").text)
        assert [*re.findall(r'class="pill ([\w-]+)"', heading)] == [health, "paused"]
    assert status_of(project.declaration, workspace)["health"] == "degraded"


@pytest.mark.parametrize("health", [*LIFE])
def test_a_model_s_health_is_a_word(
    vera: Person, workspace: Workspace, project: Project, health: str
) -> None:
    """The same as on the command line, and so are version, signals and drift."""
    live_as(workspace, health)
    answer = vera.get("/")
    assert answer.status_code == 200
    assert table(answer.text)["example"] == health
    status = status_of(project.declaration, workspace)
    with workspace.ledger.read() as session:
        (row,) = overview.rows(session, ["example"], {})
    assert status["health"] == row.health == health
    assert (row.version, row.share, dict(row.signals), row.decision) == (
        status["version"], status["drift_share"], status["open_signals"], status["last_decision"]
    )  # fmt: skip
    assert row.state == status["promotion"]
    realised = status["realised"]
    assert (realised and realised["log_loss"]["value"]) == row.now
    assert status["priority"] == row.priority
    assert health.replace("not watched yet", "") in look(vera.get("/models/example").text).text


def test_the_most_urgent_model_is_first(admin: Person, workspace: Workspace) -> None:
    for model, health in zip(MODELS, ("healthy", "stopped", "drifting"), strict=True):
        live_as(workspace, health, model)
    assert list(table(admin.get("/").text).values()) == ["stopped", "drifting", "healthy"]
    assert set(LIFE) == set(overview.URGENCY)


def test_a_model_that_airflow_does_not_have_is_not_listed(
    admin: Person, workspace: Workspace
) -> None:
    go_live(workspace, "removed")
    assert "removed" not in table(admin.get("/").text)
    assert admin.get("/models/removed").status_code == 200  # by its address it is still told of
    assert admin.get("/models/never_was").status_code == 404


def test_a_model_whose_dags_airflow_has_dropped_is_not_listed(
    admin: Person, workspace: Workspace
) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    go_live(workspace, "other")
    theirs = DagModel.dag_id.like("other.%")
    with create_session() as session:
        session.execute(update(DagModel).where(theirs).values(is_stale=True))
    try:
        assert "other" not in table(admin.get("/").text)
        assert admin.get("/models/other").status_code == 200
    finally:
        with create_session() as session:
            session.execute(update(DagModel).where(theirs).values(is_stale=False))
    assert "other" in table(admin.get("/").text)


@pytest.mark.parametrize("family", ["retrain", "monitor", "rollback", "escalate", "drill"])
def test_any_dag_that_is_held_is_said(admin: Person, family: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    this = DagModel.dag_id == f"other.{family}"
    with create_session() as session:
        session.execute(
            update(DagModel).where(DagModel.dag_id.like("other.%")).values(is_paused=False)
        )
        session.execute(update(DagModel).where(this).values(is_paused=True))
        assert overview.scheduled(session, {"other.retrain"})["other"].held == (f"other.{family}",)


def test_late_labels_do_not_hide_how_a_model_does(
    vera: Person, workspace: Workspace, project: Project
) -> None:
    """The newest window has answers and no labels yet; the one before was bad by its labels."""
    go_live(workspace)
    measure(workspace, kind="performance", day=1, violates=("performance",))
    measure(workspace, day=1)
    measure(workspace, day=2)
    measure(workspace, kind="performance", day=2, judged=False, realised={}, basis="nothing")
    assert status_of(project.declaration, workspace)["health"] == "degraded"
    (row,) = _rows(workspace)
    assert (row.health, row.now, row.then, row.seen) == ("degraded", 0.4, 0.37, "2013-01-01")
    assert (row.beyond, row.bound) == (True, 0.45)
    # The estimate judges the newest window, and no labels speak against it: that is what counts.
    measure(workspace, kind="performance", day=2, realised={}, basis="estimated")
    (row,) = _rows(workspace)
    status = status_of(project.declaration, workspace)
    assert (row.health, row.now, row.seen) == ("healthy", 0.4, "2013-01-01")
    assert (status["health"], status["measured_in"]) == ("healthy", "2013-01-01")
    assert "log_loss in 2013-01-01" in vera.get("/models/example").text


def _rows(workspace: Workspace) -> list[overview.Row]:
    with workspace.ledger.read() as session:
        return overview.rows(session, ["example"], {})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One ledger for all examples of a law, each of which takes a model of its own."""
    return workspace_in(tmp_path_factory.mktemp("shared"))


seen_windows = st.lists(
    st.tuples(
        st.sampled_from(["drift", "performance"]), st.integers(1, 4), st.booleans(),
        st.sampled_from(["realised", "estimated"]),
        st.sets(st.sampled_from(["inputs", "performance", "concept", "target"])),
    ),
    max_size=10,
)  # fmt: skip


@settings(max_examples=60, deadline=None)  # each writes some transactions
@given(seen=seen_windows)
def test_the_overview_finds_what_all_windows_say(shared: Workspace, seen: list[Any]) -> None:
    """Health of many models from a few rows of each, as from every window of one."""
    model = f"model_{next(fresh)}"
    go_live(shared, model)
    with shared.ledger.write() as session:
        for kind, day, judged, basis, violates in seen:
            theirs = {"inputs"} if kind == "drift" else {"concept", "target"}
            theirs |= {"performance"} if kind == "performance" and judged else set()
            given = {"basis": basis if judged else "nothing"} if kind == "performance" else {}
            found = tuple(sorted(violates & theirs))
            session.add(measured(model, kind=kind, day=day, judged=judged, violates=found, **given))
            session.flush()
    with shared.ledger.read() as session:
        live = records.champion(session, model)
        assert live is not None
        windows = windows_of(session, live)
        told = overview.violates_of(asked.measured(session, [live]).get(model, []))
    newest = [judged_for(windows, cause)[-1:] for cause in WATCHED]
    causes = {
        cause
        for cause, some in zip(WATCHED, newest, strict=True)
        for window in some
        if cause in window.violates
    }
    assert told == (causes if any(newest) else None)


def test_better_and_worse_are_by_the_metric(workspace: Workspace) -> None:
    """Log loss is 0.4 now and was 0.37."""
    go_live(workspace)
    measure(workspace, kind="performance")
    with workspace.ledger.read() as session:
        (row,) = overview.rows(session, ["example"], {})
    assert row.worse == pytest.approx(0.03)
    up = overview.Row("m", "healthy", metric="roc_auc", greater_is_better=True, now=0.7, then=0.8)
    assert up.worse == pytest.approx(0.1)
    assert overview.Row("m", "healthy", now=0.7).worse is None


def test_the_next_run_is_the_earliest_of_dags_that_are_not_held() -> None:
    early, late = (datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2))
    found = overview._next([
        ("m.score", late, False), ("m.drill", early, True), ("m.monitor", None, False)
    ])  # fmt: skip
    assert (found.dag_id, found.at, found.held) == ("m.score", late, ("m.drill",))
    assert overview._next([("m.score", early, True)]).at is None


def test_the_timeline_has_all_on_one_axis(vera: Person, workspace: Workspace) -> None:
    live_as(workspace, "degraded")
    answer = vera.get("/models/example/timeline")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    found = answer.json()
    assert found["metric"] == "log_loss"
    assert [(p["kind"], p["window"]) for p in found["points"]] == [
        ("performance", "2013-01-01"), ("drift", "2013-01-01"), ("drift", "2013-01-02"),
        ("performance", "2013-01-02"), ("drift", "2013-01-09"),
    ]  # fmt: skip
    assert found["points"][0]["realised"] == BAND
    assert (found["points"][0]["reference"], found["points"][1]["bound"]) == (0.37, 0.3)
    assert [(d["action"], d["outcome"]) for d in found["decisions"]] == [("retrain", "promoted")]
    assert datetime.fromisoformat(found["decisions"][0]["recorded"]) > DAY
    assert [p["version"] for p in found["promotions"]] == ["1"]
    empty = vera.get("/models/other/timeline").json()
    assert empty == {"metric": None, "points": [], "decisions": [], "promotions": []}


def test_the_timeline_s_windows_are_a_table_too(vera: Person, workspace: Workspace) -> None:
    live_as(workspace, "degraded")
    text = " ".join(check_inert(vera.get("/models/example/windows").text).text.split())
    newest, before = text.index("2013-01-02"), text.index("2013-01-01")
    assert text.index("2013-01-09") < newest < before
    assert "drift: too little to judge" in text[:newest]
    assert "performance" in text[newest:before]
    for told in ("0.4000 0.3000 to 0.5000", "0.3700", "25% bound 30%"):
        assert told in text[before:]
    assert "No window is measured yet" in vera.get("/models/other/windows").text


def test_an_interval_without_a_bound_is_drawn_without_it(
    vera: Person, workspace: Workspace
) -> None:
    """JSON has no infinity, and a browser refuses a document that pretends it has."""
    go_live(workspace)
    endless = {"value": 0.4, "low": float("-inf"), "high": float("inf")}
    measure(workspace, kind="performance", realised={"log_loss": endless})
    (point,) = vera.get("/models/example/timeline").json()["points"]
    assert point["realised"] == {"value": 0.4, "low": None, "high": None}
    for part in ("", "/card"):
        assert vera.get(f"/models/example{part}").status_code == 200


def test_the_score_is_of_the_declaration(vera: Person, workspace: Workspace) -> None:
    go_live(workspace)
    answer = vera.get("/models/example/score")
    assert answer.status_code == 200
    seen = check_inert(answer.text)
    assert "ML Test Score" in seen.text
    assert sum(tag == "tr" for tag, _ in seen.tags) == 28 + 4  # a heading a section
    go_live(workspace, "elsewhere")
    gone = vera.get("/models/elsewhere/score")
    assert gone.status_code == 404
    assert "model.yaml" in look(gone.text).text


def test_a_declaration_that_cannot_be_read_is_said(
    vera: Person, workspace: Workspace, project: Project
) -> None:
    go_live(workspace)
    place = project.models / "other" / "model.yaml"
    before = place.read_text()
    place.write_text("name: other\ntask: <script>hacked</script>\n")
    try:
        for part in ("", "/score"):
            answer = vera.get(f"/models/other{part}")
            assert answer.status_code == (404 if part else 200)
            assert "task" in check_inert(answer.text).text
    finally:
        place.write_text(before)


def test_a_tab_shows_what_a_run_decided(vera: Person, workspace: Workspace) -> None:
    go_live(workspace, run="run/1 ?#")
    run = quote("run/1 ?#", safe="")
    go_live(workspace, run="scheduled__1", version="2")
    for path, said in {
        "/dags/example.retrain/runs/scheduled__1": "What this run decided",
        # A schedule gives runs of other DAGs the same id.
        "/dags/example.score/runs/scheduled__1": "This run decided nothing",
        "/dags/other.retrain": "No decision yet",  # a new model: the ledger has no row of it
        "/dags/other.score/runs/scheduled__1": "This run decided nothing",
        "/dags/example.retrain": "Last decision",
        "/dags/example.score": "Last decision",
        "/dags/example.retrain/runs/run%201": "This run decided nothing",
        "/dags/nothing_of_ours": "isn't a DAG of a model",
        "/dags/unknown.retrain": "isn't a DAG of a model",
    }.items():
        answer = vera.get(path)
        assert (answer.status_code, said in look(answer.text).text) == (200, True), path
    assert vera.get(f"/dags/example.retrain/runs/{run}").status_code in {200, 404}


def test_earlier_decisions_are_behind_a_link(vera: Person, workspace: Workspace) -> None:
    for number in range(1, 28):
        go_live(workspace, run=f"run {number}", version=str(number))
    seen = look(vera.get("/models/example").text)
    (link,) = [str(a["href"]) for _, a in seen.tags if "before=" in str(a.get("href"))]
    assert sum(a.get("class") == "entry" for _, a in seen.tags) == 25
    earlier = look(vera.get(link.removeprefix("/evergreen").partition("#")[0]).text)
    assert sum(a.get("class") == "entry" for _, a in earlier.tags) == 2
    for bad in ("0", "-1", "x", "1;drop", f"{10**30}"):
        assert vera.get(f"/models/example?before={bad}").status_code == 422
    assert vera.get("/models/example?act=<script>").status_code == 422


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_others_wrote_is_only_shown(
    people: dict[str, Person], workspace: Workspace, text: str
) -> None:
    drift = live_with(workspace, text)
    shown = " ".join(text.replace("\x00", "\ufffd").split())
    for person in (people["admin"], people["vera"]):
        for path in ("/", "/models/example", "/models/example/score", "/models/example/lineage",
                     "/models/example/card", f"/models/example/drift/{drift}",
                     "/dags/example.retrain"):  # fmt: skip
            answer = person.get(path)
            assert answer.status_code == 200, path
            check_inert(answer.text)
        page = look(person.get("/models/example").text)
        assert shown[:40] in " ".join(page.text.split()).replace("\x00", "\ufffd")
        timeline = person.get("/models/example/timeline")
        assert timeline.headers["content-type"] == "application/json"
        assert text in {p["reason"] for p in timeline.json()["promotions"]}


def test_blocked_data_s_report_is_linked_to(vera: Person, workspace: Workspace) -> None:
    """A refused run has no verdict, and its report is what a person wants to see."""
    with workspace.ledger.write() as session:
        for outcome in ("refused", "failed"):
            row = DecisionRow(
                model="example", run_id=outcome, action="retrain", causes=[], reasons=[], as_of=DAY,
                sequence=1, tune=False,
            )  # fmt: skip
            session.add(row)
            session.flush()
            records.conclude(session, row, outcome, "data is blocked")
    links = {a.get("href") for tag, a in look(vera.get("/models/example").text).tags if tag == "a"}
    assert "/evergreen/models/example/runs/refused/validation/" in links
    assert "/evergreen/models/example/runs/failed/validation/" not in links


def test_a_decision_has_the_time_it_was_recorded_beside_that_of_its_data(
    vera: Person, workspace: Workspace
) -> None:
    go_live(workspace)
    night = datetime(2024, 5, 6, tzinfo=UTC)
    with workspace.ledger.write() as session:
        session.execute(update(DecisionRow).values(recorded_at=night))
    for path in ("/", "/models/example", "/dags/example.retrain"):
        text = " ".join(look(vera.get(path).text).text.split())
        assert "2024-05-06 00:00 on data to 2013-01-02" in text, path


def test_mlflow_s_pages_open_beside_airflow(
    vera: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They let no frame show them, and our frame may open nothing: Airflow's page does it."""
    go_live(workspace)
    monkeypatch.setattr(pages, "_mlflow", lambda _uri: "https://mlflow:5000")
    tags = look(vera.get("/models/example").text).tags
    links = [a for tag, a in tags if str(a.get("href")).startswith("https://mlflow:5000/#/runs/")]
    assert len(links) == 2
    for link in links:
        assert (link["target"], link["rel"]) == ("_blank", "noopener noreferrer")
        assert "data-outside" in link


def test_a_rollback_without_a_verified_version_needs_one_chosen(
    admin: Person, workspace: Workspace
) -> None:
    go_live(workspace)
    go_live(workspace, version="2", run="run 2")
    (select,) = [a for tag, a in look(admin.get("/models/example").text).tags if tag == "select"]
    assert "required" in select
    go_live(workspace, version="3", run="run 3", events=("completed", "verified"))
    go_live(workspace, version="4", run="run 4")
    page = look(admin.get("/models/example").text)
    (select,) = [a for tag, a in page.tags if tag == "select"]
    assert "required" not in select
    assert "the last verified one (3)" in page.text


def test_mlflows_address_is_shown_without_a_password() -> None:
    assert pages._mlflow("https://me:secret@mlflow:5000/team/") == "https://mlflow:5000/team"
    assert pages._mlflow("sqlite:////srv/mlflow.db") is None
