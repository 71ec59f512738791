"""Reports are found by what the ledger or Airflow knows, and lie where reports are kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from evergreen.lifecycle.contracts import ValidationReport
from evergreen.ui import places
from evergreen.ui.reports import READ, SANDBOX
from evergreen.workspace import Workspace
from tests.unit.ui.browser import Person
from tests.unit.ui.lives import check_inert, go_live, look, measure

PAGE = b"<html><script>drawn()</script>of the report</html>"
RESULTS = "validations/data/2013-01/1/index.html"
SECRET = "not a report"


#: As Great Expectations writes its pages: looks and scripts come from elsewhere.
GREAT = """<!DOCTYPE html><html><head><link rel="stylesheet" href="https://cdn/bootstrap.css">
<style>.x { background: url(https://cdn/x.png) }</style><script src="https://cdn/jquery.js"></script>
<meta http-equiv="refresh" content="0; url=https://elsewhere"></head><body onload="run()">
<a href="../../../../index.html">Home</a> <a href="#section-2">Columns</a> <img src="https://cdn/logo.png">
<table><tr><td><i class="fas fa-check-circle"></i></td><td>values must be &lt;b&gt; &amp; not null</td></tr></table>
<form action="https://elsewhere"><input></form><script>$("x").hide()</script>
<footer>Subscribe <a href="https://elsewhere">here</a></footer></body></html>"""


@pytest.fixture
def validated(workspace: Workspace) -> str:
    """A run whose task validate_data has left a report of two pages. Returns the run's id."""
    links = "".join(
        f'<li><a href="{name}">{name}</a>'
        for name in ("expectations/a b.html", RESULTS, "../other.html", "https://elsewhere/x")
    )
    index = PAGE.replace(b"</html>", links.encode() + b"</html>")
    uri = workspace.store.put_bytes("reports/example/abc/index.html", index)
    workspace.store.put_bytes(f"reports/example/abc/{RESULTS}", GREAT.encode())
    workspace.store.put_bytes("reports/example/abc/static/a b.css", b"body{}")
    workspace.store.put_bytes("reports/example/other.html", b"of another report")
    workspace.store.put_bytes("documents/secret.json", SECRET.encode())
    (workspace.home / "secret.txt").write_text(SECRET)
    return hand_over(workspace, uri)


def hand_over(workspace: Workspace, page: str | None, **changed: Any) -> str:
    """What a finished task of validation leaves in Airflow: the reference to its report."""
    report = ValidationReport(model="example", snapshot="s", report=page)
    reference = {**report.save(workspace.store).to_dict(), **changed}
    return run_with(reference)


def run_with(value: Any) -> str:
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    moment, run_id = datetime(2024, 1, 1, tzinfo=UTC), f"manual__{uuid4()}+00:00"
    with create_session() as session:
        found = SerializedDagModel.get("example.retrain", session=session)
        assert found is not None
        run: DagRun = found.dag.create_dagrun(
            run_id=run_id, logical_date=None, run_after=moment, run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST, state="success", session=session,
        )  # fmt: skip
        XComModel.set(
            "return_value", value, dag_id=run.dag_id, run_id=run_id, task_id="validate_data",  # as the task's process does:
            serialize=False,
            session=session,
        )  # fmt: skip
    return run_id


def validation(run_id: str, name: str) -> str:
    return f"/models/example/runs/{quote(run_id, safe='')}/validation/{name}"


def test_a_drift_report_is_shown_in_a_sandbox(vera: Person, workspace: Workspace) -> None:
    go_live(workspace)
    uri = workspace.store.put_bytes("reports/drift/abc.html", PAGE)
    number = measure(workspace, report=uri, window="<b>January</b>")
    frame = vera.get(f"/models/example/drift/{number}")
    seen = check_inert(frame.text)
    (inner,) = [attributes for tag, attributes in seen.tags if tag == "iframe"]
    assert inner["sandbox"] == "allow-scripts"
    assert inner["src"] == f"/evergreen/models/example/drift/{number}/page"
    shown = vera.get(str(inner["src"]).removeprefix("/evergreen"))
    assert (shown.status_code, shown.content) == (200, PAGE)
    assert shown.headers["content-security-policy"] == SANDBOX
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["content-type"].startswith("text/html")
    assert SANDBOX.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in SANDBOX


def test_a_report_is_of_the_model_in_the_address(vera: Person, workspace: Workspace) -> None:
    uri = workspace.store.put_bytes("reports/drift/abc.html", PAGE)
    theirs = measure(workspace, "other", report=uri)
    number = measure(workspace, kind="performance", report=uri)
    for measurement in (theirs, number, 0, 10**30, "x", "1.5", "-1"):
        for part in ("", "/page"):
            answer = vera.get(f"/models/example/drift/{measurement}{part}")
            assert answer.status_code in {404, 422}
            assert PAGE not in answer.content
    assert vera.get(f"/models/other/drift/{theirs}/page").status_code == 200


@pytest.mark.parametrize("place", [
    "{root}/documents/secret.json", "{root}/reports/drift/../../documents/secret.json",
    "{root}/reports/drift/%2e%2e/%2e%2e/documents/secret.json", "{home}/secret.txt",
    "file://{home}/secret.txt", "{root}/reports/driftwood/x.html", "{root}/reports/drift/\x00.html",
    "documents/secret.json", "/etc/passwd", "http://127.0.0.1:9/x", "{root}/reports/example/a.html",
    "{root}/reports/drift/..\\..\\documents\\secret.json",
])  # fmt: skip
def test_a_recorded_report_elsewhere_is_not_shown(
    vera: Person, workspace: Workspace, place: str
) -> None:
    for name in ("documents/secret.json", "reports/driftwood/x.html", "reports/example/a.html"):
        workspace.store.put_bytes(name, SECRET.encode())
    (workspace.home / "secret.txt").write_text(SECRET)
    uri = place.format(root=workspace.store.root, home=workspace.home)
    answer = vera.get(f"/models/example/drift/{measure(workspace, report=uri)}/page")
    assert answer.status_code == 404
    assert SECRET not in answer.text
    assert "root:" not in answer.text


def test_a_report_that_is_gone_is_said(vera: Person, workspace: Workspace) -> None:
    gone = measure(workspace, report=f"{workspace.store.root}/reports/drift/gone.html")
    assert "isn't in the store any more" in says(vera.get(f"/models/example/drift/{gone}/page"))
    none = measure(workspace, day=2)
    assert "has no report" in says(vera.get(f"/models/example/drift/{none}/page"))
    folder = measure(workspace, day=3, report=f"{workspace.store.root}/reports/drift/")
    assert vera.get(f"/models/example/drift/{folder}/page").status_code == 404


def says(answer: Any, status: int = 404) -> str:
    assert answer.status_code == status
    return look(answer.text).text


def test_a_validation_report_is_shown_with_its_pages(vera: Person, validated: str) -> None:
    frame = check_inert(vera.get(validation(validated, "")).text)
    (inner,) = [attributes for tag, attributes in frame.tags if tag == "iframe"]
    shown = vera.get(str(inner["src"]).removeprefix("/evergreen"))
    assert shown.status_code == 200
    assert "of the report" in shown.text
    assert shown.headers["content-security-policy"] == READ
    assert "script-src" not in READ
    style = vera.get(validation(validated, "static/a%20b.css"))
    under_a_page = vera.get(validation(validated, "index.html/x"))
    assert PAGE not in under_a_page.content
    assert (style.content, style.headers["content-type"]) == (b"body{}", "text/css; charset=utf-8")


def test_a_validation_s_pages_are_linked_to_beside_its_frame(vera: Person, validated: str) -> None:
    """A frame without an origin sends no cookie, so that links inside it would lead to a 401."""
    frame = check_inert(vera.get(validation(validated, "")).text)
    (inner,) = [attributes for tag, attributes in frame.tags if tag == "iframe"]
    links = [a["href"] for tag, a in frame.tags if tag == "a" and a.get("target") == inner["name"]]
    start = f"/evergreen{validation(validated, '')}"
    assert links == [
        f"{start}index.html", f"{start}{RESULTS}", f"{start}expectations/a%20b.html"
    ]  # fmt: skip
    assert "results for data" in frame.text
    assert vera.get(str(links[1]).removeprefix("/evergreen")).status_code == 200


def test_a_page_of_great_expectations_reads_well_without_a_network(
    vera: Person, validated: str
) -> None:
    shown = vera.get(validation(validated, RESULTS)).text
    assert "https://" not in shown
    assert "values must be &lt;b&gt; &amp; not null" in shown
    seen = look(shown)
    assert not {"script", "img", "link", "form", "footer"} & {tag for tag, _ in seen.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name == "onload"]
    assert [a["href"] for tag, a in seen.tags if tag == "a" and "href" in a] == ["#section-2"]
    assert ".fa-check-circle::before" in shown


def test_a_validation_report_that_is_gone_is_said(vera: Person, workspace: Workspace) -> None:
    run = hand_over(workspace, f"{workspace.store.root}/reports/example/gone/index.html")
    for name in ("", "index.html"):
        assert "isn't in the store any more" in says(vera.get(validation(run, name)))


@pytest.mark.parametrize("name", [
    "..%2fother.html", "..%2f..%2f..%2fdocuments%2fsecret.json", "..%5c..%5cother.html",
    "%252e%252e%252fother.html", "%2e%2e/other.html", "static/%2e%2e/%2e%2e/other.html",
    "..%252fother.html", "%2fetc%2fpasswd", "/etc/passwd", "file:%2f%2f%2fetc%2fpasswd",
    "..%c0%afother.html", "index.html%00.css", "index.html%0a", "no.html", "static", "static/",
    "x" * 300, "%f0%9f%8c%b2" * 100, "a/" * 900,
])  # fmt: skip
def test_a_page_lies_in_its_report_s_folder(vera: Person, validated: str, name: str) -> None:
    answer = vera.get(validation(validated, name))
    assert answer.status_code in {404, 422}
    assert not [told for told in (SECRET, "of another report", "root:") if told in answer.text]


@pytest.mark.parametrize("run", ["never", "..", "%2e%2e", "%2e%2e%2f%2e%2e", "a%2fb", "~", "%00"])
def test_a_run_without_a_report_has_none(vera: Person, validated: str, run: str) -> None:
    answer = vera.get(f"/models/example/runs/{run}/validation/index.html")
    assert answer.status_code in {404, 422}
    assert PAGE not in answer.content


def test_what_a_task_left_is_checked(vera: Person, workspace: Workspace) -> None:
    (workspace.home / "broken.json").write_text("{")
    outside = f"file://{workspace.home}/broken.json"
    for run in (
        run_with("a text"), run_with({"kind": "validation"}), hand_over(workspace, None),
        hand_over(workspace, "documents/x/index.html"), hand_over(workspace, "/etc/passwd"),
        hand_over(workspace, f"{workspace.store.root}/reports/other/abc/index.html"),
        hand_over(workspace, "x", digest="0" * 64), hand_over(workspace, "x", uri=outside),
        hand_over(workspace, "x", uri=f"{workspace.store.root}/../x"),
    ):  # fmt: skip
        for name in ("", "index.html", "passwd"):
            answer = vera.get(validation(run, name))
            assert answer.status_code == 404, answer.text
            assert "root:" not in answer.text


def test_what_cannot_be_reached_is_named(
    vera: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_live(workspace)
    number = measure(workspace, report=f"{workspace.store.root}/reports/drift/a.html")
    file = tmp_path / "file"
    file.write_text("no folder")
    monkeypatch.setenv("EVERGREEN_STORE_URI", f"file://{tmp_path}/file")
    places._workspace.cache_clear()
    uri = f"file://{tmp_path}/file/reports/drift/a.html"
    number = measure(workspace, day=2, report=uri)
    said = says(vera.get(f"/models/example/drift/{number}/page"), 503)
    assert f"the store at file://{tmp_path}/file can't be reached" in said
    closed = "postgresql://evergreen:secret@127.0.0.1:1/ledger"
    monkeypatch.setenv("EVERGREEN_LEDGER_URL", closed)
    places._workspace.cache_clear()
    for path in ("/", "/models/example", "/models/example/timeline", "/dags/example.retrain"):
        answer = vera.get(path)
        assert "the ledger at postgresql" in says(answer, 503)
        assert "secret" not in answer.text
        check_inert(answer.text)
