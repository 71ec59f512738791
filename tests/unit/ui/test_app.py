"""One look for every answer: headers, errors, files of ours; and how values are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from evergreen import plugin
from evergreen.ui import files, rendering
from evergreen.ui.app import POLICY
from evergreen.workspace import Workspace
from tests.unit.ui.browser import Person
from tests.unit.ui.lives import check_inert, go_live, look


def test_every_answer_is_hardened(people: dict[str, Person], workspace: Workspace) -> None:
    go_live(workspace)
    vera = people["vera"]
    for person, method, path, status in (
        (vera, "GET", "/", 200), (vera, "GET", "/models/example", 200),
        (vera, "GET", "/models/example/timeline", 200), (vera, "GET", "/models/never", 404),
        (vera, "GET", "/models/NO", 422), (vera, "GET", "/nowhere", 404),
        (vera, "POST", "/models/example/pause", 422), (vera, "GET", "/models/example/card.md", 200),
        (people["nobody"], "GET", "/", 401), (vera, "DELETE", "/", 404),
    ):  # fmt: skip
        answer = person.ask(method, path)
        assert answer.status_code == status, path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        if "html" in answer.headers["content-type"]:
            check_inert(answer.text)


def test_pages_load_only_what_is_ours() -> None:
    rules = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["frame-ancestors"] == "'self'"


def test_an_error_has_words_and_not_what_was_sent(vera: Person) -> None:
    answer = vera.get("/models/%3Cscript%3Ehacked")
    assert answer.status_code == 422
    assert "hacked" not in answer.text
    seen = look(answer.text)
    assert "this address or form isn't valid" in seen.text
    assert any(attributes.get("role") == "alert" for _, attributes in seen.tags)


def test_files_are_asked_for_anew_and_sent_once(vera: Person) -> None:
    for name in ("style.css", "theme.js", "pages.js", "plotly.min.js"):
        first = vera.get(f"/assets/{name}")
        assert first.status_code == 200
        assert first.headers["content-type"].startswith(files.OURS.get(name, "text/javascript"))
        assert first.headers["cache-control"] == "private, no-cache"
        again = vera.get(f"/assets/{name}", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        other = vera.get(f"/assets/{name}", headers={"If-None-Match": '"of another version"'})
        assert other.status_code == 200


def test_files_are_of_a_closed_list(vera: Person) -> None:
    for name in ("app.py", "..%2fapp.py", "%2e%2e/app.py", "style.css%00", "STYLE.CSS", "style.css/",
                 "..%2ftemplates%2fbase.html", "%2fetc%2fpasswd"):  # fmt: skip
        answer = vera.get(f"/assets/{name}")
        assert answer.status_code in {404, 422}, name
        assert "Evergreen, as" not in answer.text


def test_pages_know_where_they_are(vera: Person, workspace: Workspace) -> None:
    go_live(workspace)
    seen = look(vera.get("/").text)
    (body,) = [attributes for tag, attributes in seen.tags if tag == "body"]
    assert (body["data-root"], body["data-airflow"]) == ("/evergreen", "")
    assert rendering.PREFIX == plugin.PREFIX


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0.41234567, "0.4123"), (12345.6, "12,345.6000"), (-1, "-1.0000")],
)
def test_a_number_reads_the_same_everywhere(value: float | None, said: str) -> None:
    assert rendering.number(value) == said


def test_a_share_is_per_cent() -> None:
    assert (rendering.share(None), rendering.share(0.256)) == ("–", "26%")


def test_a_moment_is_in_utc_and_whole_for_machines() -> None:
    noon = datetime(2024, 1, 2, 12, 30, tzinfo=UTC)
    east = noon.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert rendering.moment(noon) == rendering.moment(east) == rendering.moment(noon.isoformat())
    assert rendering.moment(noon) == (
        '<time datetime="2024-01-02T12:30:00+00:00">2024-01-02 12:30</time>'
    )
    assert ">2024-01-02<" in rendering.moment(noon, short=True)
    assert ">2024-01-02<" in rendering.moment(datetime(2024, 1, 2))  # noqa: DTZ001 - as SQLite gives it
    assert rendering.moment(None) == "–"
