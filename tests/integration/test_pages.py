"""The pages in a real browser, inside a real Airflow that goes on with the year the demo has lived."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Frame, Locator, Page, expect

from evergreen.ledger import acts, chronicle, records
from evergreen.ledger.tables import DecisionRow, SignalRow, VerdictRow
from evergreen.session import own_airflow
from evergreen.standalone import Standalone
from evergreen.workspace import Workspace
from tests.integration.lived import Year
from tests.integration.looking import Person, chromium, person
from tests.many import START

pytestmark = [pytest.mark.integration, pytest.mark.minutes(2), pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]
FLIGHTS = "flight_delay"
#: Declared beside it, without any data; to the last one the ledger says what nobody should.
OTHERS = ("alpha_delay", "zulu_delay")
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>{{7*7}}'
PASSWORDS = {"admin": "admin-in-a-test", "vera": "vera-in-a-test"}
#: Where pictures for the documentation go, when they are asked for.
PICTURES = os.environ.get("EVERGREEN_TEST_PICTURES")


@pytest.fixture(scope="module")
def workspace(year: Year) -> Workspace:
    return Workspace.from_environment({"EVERGREEN_HOME": str(year.home)})


@pytest.fixture(scope="module")
def airflow(
    year: Year, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standalone]:
    """The demo's Airflow once more, with two more models and a user who may only look."""
    project = tmp_path_factory.mktemp("pages")
    for name in ("dags", "include"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, project / name, ignore=hidden)
    (project / "plugins").symlink_to(PROJECT / "plugins")
    models = project / "include" / "models"
    for other in OTHERS:
        shutil.copytree(models / FLIGHTS, models / other)
        declared = (models / other / "model.yaml").read_text()
        renamed = re.sub(rf"\b{FLIGHTS}$", other, declared, flags=re.MULTILINE)
        nowhere = renamed.replace("uri: landing/", "uri: nowhere/")
        (models / other / "model.yaml").write_text(nowhere)
    _say_hostile_things(workspace)
    (year.home / "airflow" / "passwords.json").write_text(json.dumps(PASSWORDS))
    running = own_airflow(workspace, project)
    running.environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = "admin:admin,vera:viewer"
    with running, running.client() as client:
        for model in (FLIGHTS, *OTHERS):
            client.wait_for_dag(f"{model}.retrain", 120)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def admin(browser: Browser, airflow: Standalone) -> Iterator[Person]:
    with person(browser, airflow.url, "admin", PASSWORDS["admin"]) as found:
        yield found


@pytest.fixture
def vera(browser: Browser, airflow: Standalone) -> Iterator[Person]:
    with person(browser, airflow.url, "vera", PASSWORDS["vera"]) as found:
        yield found


def _say_hostile_things(workspace: Workspace) -> None:
    model = OTHERS[1]
    with workspace.ledger.write() as session:
        records.raise_signal(session, model, "drift", HOSTILE, START, {"window": HOSTILE})
        session.add(
            DecisionRow(
                model=model, run_id=HOSTILE, action="suppress", cause=None, causes=[],
                reasons=[HOSTILE], as_of=START, sequence=0, until=None, tune=False, override=None,
                futile=0, priority=None,
            )
        )  # fmt: skip
        session.add(
            VerdictRow(
                model=model, run_id=HOSTILE, verdict="reject", promotes=False, reason=HOSTILE,
                as_of=START, champion_version=None, mlflow_run=HOSTILE, override=HOSTILE,
                rules=[{"name": HOSTILE, "observed": HOSTILE, "bound": HOSTILE, "passed": False}],
                evidence={"primary": HOSTILE},
            )
        )  # fmt: skip
        acts.act(session, model, "0" * 16, "retrain", HOSTILE, HOSTILE, {"run_id": HOSTILE})


def names(place: Page | Frame) -> list[str]:
    """The models that the overview shows, in order."""
    return place.locator("#models tbody tr:visible th").all_inner_texts()


def test_the_overview_is_a_page_of_airflow(admin: Person) -> None:
    admin.page.goto(f"{admin.url}/")
    admin.page.get_by_role("link", name="Models").click()
    frame = admin.frame()
    row = frame.locator("#models tr", has_text=FLIGHTS)
    expect(row.locator(".pill.stopped")).to_be_visible()
    expect(row.locator(".pill.P1")).to_be_visible()
    expect(row).to_contain_text("log_loss")
    expect(row).to_contain_text("investigate")
    assert names(frame)[0] == FLIGHTS, "what needs a person comes first"
    _picture(admin.page, "overview")
    row.get_by_role("link").click()
    expect(frame.locator("h1")).to_contain_text(FLIGHTS)
    admin.page.wait_for_url(f"**/plugin/models/evergreen/models/{FLIGHTS}")
    admin.page.reload()
    expect(admin.frame().locator("h1")).to_contain_text(FLIGHTS)
    _picture(admin.page, "model")


def test_it_sorts_filters_and_searches(admin: Person) -> None:
    page = admin.open("/")
    assert names(page) == [FLIGHTS, *OTHERS]
    heading = page.locator("#models thead button").first
    heading.focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted([FLIGHTS, *OTHERS])
    page.keyboard.press("Enter")
    assert names(page) == sorted([FLIGHTS, *OTHERS], reverse=True)
    assert heading.locator("xpath=..").get_attribute("aria-sort") == "descending"
    page.get_by_label("Search").fill("zulu")
    assert names(page) == [OTHERS[1]]
    expect(page.get_by_role("status")).to_have_text("1 of 3 shown")
    page.get_by_label("Search").fill("nothing of this kind")
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("checkbox", name="no version").uncheck()
    assert names(page) == [FLIGHTS]


def test_the_models_page_says_why(admin: Person, workspace: Workspace) -> None:
    with workspace.ledger.read() as session:
        live = records.champion(session, FLIGHTS)
        assert live is not None
        verdict = records.verdict_of(session, FLIGHTS, live.run_id)
        assert verdict is not None
    page = admin.open(f"/models/{FLIGHTS}")
    why = page.locator("section", has=page.get_by_role("heading", name="Why is this version live?"))
    expect(why).to_contain_text(live.reason)
    assert why.locator("tbody tr").count() == len(verdict.rules)
    expect(page.locator("#timeline .scatterlayer .trace").first).to_be_visible()
    expect(page.get_by_role("table", name="log_loss by slice")).to_contain_text("origin = JFK")
    expect(page.get_by_role("table", name="Importance of features")).to_be_visible()
    lineage = page.locator(".lineage")
    for told in ("partition 2013-01", "snapshot", "features", "training run", "deployment"):
        expect(lineage).to_contain_text(told)
    expect(lineage).to_contain_text(live.snapshot_digest[:12])


def test_the_timeline_can_be_zoomed(admin: Person) -> None:
    page = admin.open(f"/models/{FLIGHTS}")
    expect(page.locator("#timeline .scatterlayer .trace").first).to_be_visible()
    page.locator("#timeline").scroll_into_view_if_needed()
    _picture(page.locator("#timeline"), "timeline")
    whole = page.evaluate("document.getElementById('timeline').layout.xaxis.range")
    box = page.locator("#timeline .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40, steps=5)
    page.mouse.up()
    page.wait_for_function(
        "whole => document.getElementById('timeline').layout.xaxis.range[0] !== whole[0]", arg=whole
    )


def test_links_lead_out_of_the_frame_into_airflow(admin: Person) -> None:
    frame = admin.open_in_airflow(f"/evergreen/models/{FLIGHTS}")
    frame.get_by_role("link", name="the gate's log").first.click()
    admin.page.wait_for_url(re.compile(rf"/dags/{FLIGHTS}\.retrain/runs/.+/tasks/gate"))
    expect(admin.page.get_by_text("verdict", exact=False).first).to_be_visible()


def test_a_dag_and_its_runs_have_a_tab(admin: Person, workspace: Workspace) -> None:
    with workspace.ledger.read() as session:
        made = records.champion(session, FLIGHTS)
        assert made is not None
    run = made.run_id.replace("+", "%2B").replace(":", "%3A")
    for place, told in (("", "Last decision"), (f"/runs/{run}", "What this run decided")):
        admin.page.goto(f"{admin.url}/dags/{FLIGHTS}.retrain{place}")
        admin.page.get_by_role("link", name="Model", exact=True).click()
        frame = admin.page.frame_locator('iframe[title="Model"]')
        expect(frame.get_by_role("heading", name=told)).to_be_visible()
    frame.get_by_role("link", name="Why is its version live?").click()
    admin.page.wait_for_url(f"**/plugin/models/evergreen/models/{FLIGHTS}")


def test_reports_are_shown_in_place(admin: Person) -> None:
    page = admin.open(f"/models/{FLIGHTS}")
    page.locator("section", has_text="Drift reports").get_by_role("link").first.click()
    report = page.frame_locator("iframe.report")
    expect(report.get_by_text("Dataset Drift").first).to_be_visible()
    page = admin.open(f"/models/{FLIGHTS}")
    entry = page.locator('details.entry:has(summary:has-text("went live"))').first
    entry.locator("summary").click()
    entry.get_by_role("link", name="data validation").click()
    report = page.frame_locator("iframe.report")
    expect(report.get_by_text("Great Expectations").first).to_be_visible()
    page.get_by_role("link", name="results for data").click()
    expect(report.get_by_text("Expectation Validation Result")).to_be_visible()
    expect(report.get_by_text("values must match this regular expression").first).to_be_visible()
    met = report.locator(".fa-check-circle").last.evaluate(
        "it => getComputedStyle(it, '::before').content"
    )
    assert met == '"✓ met"', "our style stands in for the one that it would fetch"


def test_a_viewer_looks_and_may_do_nothing(vera: Person, workspace: Workspace) -> None:
    page = vera.open(f"/models/{FLIGHTS}")
    expect(page.get_by_role("heading", name="Why is this version live?")).to_be_visible()
    assert page.locator("form").count() == 0
    for act in ("retrain", "roll_back", "acknowledge", "decline", "pause", "resume"):
        said = httpx.post(
            f"{vera.url}/evergreen/models/{FLIGHTS}/{act}",
            data={"token": "anything", "comment": "let me"}, cookies={"_token": vera.token},
            trust_env=False,
        )  # fmt: skip
        assert said.status_code == 403, act
    with workspace.ledger.read() as session:
        assert not acts.acts_of(session, FLIGHTS)


def test_what_others_wrote_does_nothing(admin: Person) -> None:
    for path in ("/", f"/models/{OTHERS[1]}", f"/dags/{OTHERS[1]}.retrain"):
        page = admin.open(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.hacked") is None
    page = admin.open(f"/models/{OTHERS[1]}")
    expect(page.get_by_text(HOSTILE).filter(visible=True).first).to_be_visible()


def test_what_is_empty_or_away_says_so(admin: Person) -> None:
    page = admin.open(f"/models/{OTHERS[0]}")
    expect(page.get_by_text("No version is live.")).to_be_visible()
    expect(page.get_by_text("Nothing has happened yet.")).to_be_visible()
    page.route("**/evaluation", lambda route: route.abort())
    admin.open_refused(f"/models/{FLIGHTS}")  # the browser tells of the request that is cut off
    expect(page.get_by_role("alert")).to_contain_text("This part can't be shown")
    expect(page.locator(".lineage")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 360)])
def test_nothing_serious_for_people_who_hear_or_type(
    browser: Browser, airflow: Standalone, workspace: Workspace, scheme: str, width: int
) -> None:
    with workspace.ledger.read() as session:
        report = chronicle.reports(session, FLIGHTS)[0].id
    with person(
        browser, airflow.url, "admin", PASSWORDS["admin"], color_scheme=scheme,
        viewport={"width": width, "height": 900},
    ) as somebody:  # fmt: skip
        for path in ("/", f"/models/{FLIGHTS}", f"/models/{FLIGHTS}/score",
                     f"/models/{FLIGHTS}/card", f"/models/{OTHERS[0]}",
                     f"/dags/{FLIGHTS}.retrain", f"/models/{FLIGHTS}/drift/{report}"):  # fmt: skip
            page = somebody.open(path)
            page.wait_for_load_state("networkidle")
            for entry in page.locator("details").all()[:4]:
                entry.evaluate("it => it.open = true")
            assert somebody.violations() == [], path
        somebody.open_refused("/nowhere")
        assert somebody.violations() == []


def test_headings_stay_when_a_long_table_is_scrolled(admin: Person) -> None:
    admin.page.set_viewport_size({"width": 700, "height": 180})
    page = admin.open("/")
    scrolled, above = page.locator(".wide").evaluate(
        "it => { it.scrollTop = 40; const top = (one) => one.getBoundingClientRect().top;"
        " return [it.scrollTop, top(it.querySelector('th')) - top(it)] }"
    )
    assert scrolled > 0
    assert abs(above) <= 1


def test_pages_are_light_or_dark_as_airflow_is(admin: Person) -> None:
    """Also when its switch is turned while they are shown: it tells every tab by the storage."""
    frame = admin.open_in_airflow()
    was = frame.evaluate("document.documentElement.dataset.theme")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = frame.evaluate(paper)
    other = {"light": "dark", "dark": "light"}[was]
    tab = admin.page.context.new_page()
    tab.goto(f"{admin.url}/evergreen/assets/style.css")
    tab.evaluate("theme => localStorage.setItem('theme', theme)", other)
    turned = "theme => document.documentElement.dataset.theme === theme"
    frame.wait_for_function(turned, arg=other)
    assert frame.evaluate(paper) != before
    admin.page.reload()
    admin.frame().wait_for_function(turned, arg=other)


def test_what_lets_no_frame_show_it_opens_beside_airflow(admin: Person) -> None:
    """Like MLflow's pages, which the demo has none of: it keeps its runs in a file."""
    frame = admin.open_in_airflow(f"/evergreen/models/{FLIGHTS}")
    frame.locator("h1").evaluate(
        "it => it.insertAdjacentHTML('afterend', '<a data-outside target=_blank rel=noopener"
        " href=/evergreen/assets/style.css>MLflow run</a>')"
    )
    with admin.page.expect_popup() as opened:
        frame.get_by_role("link", name="MLflow run", exact=True).click()
    opened.value.wait_for_url("**/evergreen/assets/style.css")
    expect(frame.locator("h1")).to_contain_text(FLIGHTS)


@pytest.mark.parametrize("width", [360, 768, 1920, 3840])
def test_no_layout_breaks(admin: Person, width: int) -> None:
    admin.page.set_viewport_size({"width": width, "height": 900})
    for path in ("/", f"/models/{FLIGHTS}", f"/models/{FLIGHTS}/score", f"/models/{OTHERS[1]}"):
        page = admin.open(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_automatic_retraining_is_paused_and_resumed(admin: Person, workspace: Workspace) -> None:
    page = admin.open(f"/models/{FLIGHTS}")
    form = page.locator("form", has_text="Pause automatic retraining")
    form.get_by_label("Why").fill("the label source is being moved")
    form.get_by_role("button").click()
    expect(page.get_by_role("heading", name="Automatic retraining is paused")).to_be_visible()
    with workspace.ledger.read() as session:
        held = acts.pause_of(session, FLIGHTS)
        assert held is not None
        assert (held.person, held.comment) == ("admin", "the label source is being moved")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", name="Automatic retraining is paused")).to_have_count(0)
    with workspace.ledger.read() as session:
        assert acts.pause_of(session, FLIGHTS) is None


def test_an_escalation_is_acknowledged(admin: Person, workspace: Workspace) -> None:
    def waits() -> bool:
        found = httpx.get(
            f"{admin.url}/api/v2/dags/{FLIGHTS}.escalate/dagRuns/~/hitlDetails",
            params={"response_received": False, "state": "awaiting_input"},
            headers={"Authorization": f"Bearer {admin.token}"}, trust_env=False,
        )  # fmt: skip
        return bool(found.raise_for_status().json()["hitl_details"])

    _until(waits, "the question is asked")
    page = admin.open(f"/models/{FLIGHTS}")
    page.get_by_label("What did you find").fill("the sensor was replaced")
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.get_by_role("status").first).to_contain_text("Acknowledge: answered")

    def answered() -> bool:
        with workspace.ledger.read() as session:
            stopped = records.last_escalation(session, FLIGHTS)
            assert stopped is not None
            said = records.answers_to(session, stopped.id)
        return [(a.answer, a.person, a.comment) for a in said] == [
            ("acknowledged", "admin", "the sensor was replaced")
        ]

    _until(answered, "the answer is in the ledger")
    admin.open("/")
    expect(page.locator("#models tr", has_text=FLIGHTS).locator(".pill.stopped")).to_have_count(0)


def test_a_version_is_rolled_back_by_a_form(admin: Person, workspace: Workspace) -> None:
    with workspace.ledger.read() as session:
        before = records.champion(session, FLIGHTS)
        assert before is not None
    page = admin.open(f"/models/{FLIGHTS}")
    form = page.locator("form", has=page.get_by_role("heading", name="Roll back"))
    form.get_by_label("To version").select_option(before.replaced)
    form.get_by_label("Why").fill("it is late on Mondays")
    form.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("status").first).to_contain_text("Roll back: asked for")

    def returned() -> bool:
        with workspace.ledger.read() as session:
            live = records.champion(session, FLIGHTS)
        return live is not None and (live.kind, live.version, live.person) == (
            "rollback", before.replaced, "admin"
        )  # fmt: skip

    _until(returned, "the former version is back")
    page = admin.open(f"/models/{FLIGHTS}")
    expect(page.get_by_text("brought back by admin: it is late on Mondays")).to_be_visible()
    expect(page.get_by_text(f"version {before.version}: ")).to_be_visible()  # quarantined


def test_a_retrain_is_asked_for_once(admin: Person, workspace: Workspace) -> None:
    page = admin.open(f"/models/{FLIGHTS}")
    form = page.locator("form", has_text="Retrain now")
    form.get_by_label("Why").fill("the weather feed was mended")
    token = form.locator("input[name=token]").input_value()
    form.get_by_role("button", name="Retrain now").click()
    expect(page.get_by_role("status").first).to_contain_text("Retrain: asked for")
    again = httpx.post(
        f"{admin.url}/evergreen/models/{FLIGHTS}/retrain", cookies={"_token": admin.token},
        data={"token": token, "comment": "the weather feed was mended"}, trust_env=False,
    )  # fmt: skip
    assert again.status_code == 303
    with workspace.ledger.read() as session:
        asked = [one for one in acts.acts_of(session, FLIGHTS) if one.act == "retrain"]
    assert [(one.person, one.comment) for one in asked] == [
        ("admin", "the weather feed was mended")
    ]
    run_id = asked[0].detail["run_id"]

    def decided() -> bool:
        with workspace.ledger.read() as session:
            return records.decision_of(session, FLIGHTS, run_id) is not None

    _until(decided, "the arbiter has heard")
    with workspace.ledger.read() as session:
        decision = records.decision_of(session, FLIGHTS, run_id)
        assert decision is not None
        wishes = session.query(SignalRow).filter_by(model=FLIGHTS, cause="manual").all()
    assert (decision.action, decision.cause) == ("retrain", "manual")
    assert "asked by admin: the weather feed was mended" in decision.reasons
    assert [wish.key for wish in wishes] == [run_id]


def _until(done: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)  # between looks, until the deadline


def _picture(seen: Page | Locator, name: str) -> None:
    """A picture for the documentation, when they are asked for."""
    if PICTURES:
        seen.screenshot(path=str(Path(PICTURES).resolve() / f"{name}.png"))
