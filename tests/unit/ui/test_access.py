"""Nobody comes in without a token; a form is of one person, model and act, for half a day."""

from __future__ import annotations

import re

import pytest
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi.routing import APIRoute

from evergreen.ui import access
from evergreen.ui.app import app
from evergreen.workspace import Workspace
from tests.unit.ui.browser import Person, acts_in, token_for
from tests.unit.ui.keeper import SECRET
from tests.unit.ui.lives import go_live, look

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FILLED = {
    "model": "example", "dag_id": "example.retrain", "run_id": "run%201", "measurement": "1",
    "name": "style.css", "path": "some/where",
}  # fmt: skip
ROUTES = [route for route in app.routes if isinstance(route, APIRoute)]
PATHS = sorted({re.sub(r"{(\w+)(:path)?}", lambda m: FILLED[m[1]], r.path) for r in ROUTES})


def test_there_is_nothing_but_our_routes() -> None:
    assert len(ROUTES) == len(app.routes) > 20
    assert "/models/example/pause" in PATHS


def test_nobody_comes_in_without_a_token(people: dict[str, Person]) -> None:
    for path in [*PATHS, "/docs", "/openapi.json", "/models/NO%20NAME", "/assets/no.js", "/a/b"]:
        for method in METHODS:
            answer = people["nobody"].ask(method, path)
            assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize("header", ["Bearer garbage", "Bearer a.b.c", "Bearer ", "Basic YTpi"])
def test_nobody_comes_in_with_a_false_token(people: dict[str, Person], header: str) -> None:
    for path in PATHS:
        for method in ("GET", "POST"):
            answer = people["nobody"].ask(method, path, headers={"Authorization": header})
            assert answer.status_code in {401, 403}, (method, path)


def test_what_does_not_exist_is_not_found(admin: Person) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/static/x", "/nowhere", "/models"):
        assert admin.get(path).status_code == 404
    assert admin.ask("DELETE", "/models/example").status_code == 404


def test_the_browser_s_cookie_is_a_token_too(people: dict[str, Person]) -> None:
    vera = people["vera"]
    cookie = {"Cookie": f"_token={vera.token}"}
    assert people["nobody"].get("/models/example", headers=cookie).status_code == 200
    bad = people["nobody"].get("/models/example", headers={"Cookie": "_token=garbage"})
    assert bad.status_code in {401, 403}


def test_a_model_is_seen_by_who_may_read_its_dag(
    admin: Person, vera: Person, workspace: Workspace
) -> None:
    go_live(workspace, SECRET)
    go_live(workspace)
    assert SECRET in admin.get("/").text
    assert SECRET not in vera.get("/").text
    paths = [path.replace("example", SECRET) for path in PATHS if "example" in path]
    for path in [*paths, f"/dags/{SECRET}.score", f"/dags/{SECRET}.made_up/runs/run%201"]:
        answer = vera.get(path)
        assert answer.status_code in {403, 404}, path
        assert "because" not in answer.text
    assert "because" in admin.get(f"/dags/{SECRET}.score").text
    assert vera.get("/models/example").status_code == 200


@pytest.mark.parametrize("act", [*access.RIGHTS])
def test_a_viewer_has_no_button_and_is_refused(
    admin: Person, vera: Person, workspace: Workspace, act: str
) -> None:
    go_live(workspace)
    page = look(vera.get("/models/example").text)
    assert not [tag for tag, _ in page.tags if tag in {"form", "button", "textarea"}]
    user = SimpleAuthManagerUser(username="vera", role="viewer")
    for token in (token_for(admin, "pause"), access.sign(user, "example", act)):
        answer = vera.post(f"/models/example/{act}", data={"token": token, "comment": "why"})
        assert answer.status_code == 403
    assert acts_in(workspace) == []


@pytest.mark.parametrize("act", ["retrain", "pause"])
def test_a_form_of_another_is_refused(
    people: dict[str, Person], admin: Person, workspace: Workspace, act: str
) -> None:
    go_live(workspace)
    mine = token_for(admin, act)
    for token in (
        token_for(people["ann"], act),
        token_for(admin, act, "other"),
        token_for(admin, "pause" if act == "retrain" else "retrain"),
        mine[:-9] + ("A" if mine[-9] != "A" else "B") + mine[-8:],
        "x" + mine,
        "garbage",
        "",
    ):
        answer = admin.post(f"/models/example/{act}", data={"token": token, "comment": "why"})
        assert answer.status_code in {403, 422}
        assert token not in answer.text or not token
    assert admin.post(f"/models/example/{act}", data={"comment": "why"}).status_code == 422
    assert acts_in(workspace) == []


def test_an_old_form_is_refused(
    admin: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"token": token_for(admin, "pause"), "comment": "why"}
    with monkeypatch.context() as patch:
        patch.setattr(access, "FORM_LIVES", -1)  # older than that is any
        assert admin.post("/models/example/pause", data=form).status_code == 403
    assert acts_in(workspace) == []
    assert admin.post("/models/example/pause", data=form).status_code == 303


def test_a_form_signed_with_another_key_is_refused(
    admin: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__API__SECRET_KEY", "another deployment's")
        form = {"token": token_for(admin, "pause"), "comment": "why"}
    assert admin.post("/models/example/pause", data=form).status_code == 403
    assert acts_in(workspace) == []


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "made up"])
def test_a_form_sent_from_elsewhere_is_refused(
    admin: Person, workspace: Workspace, site: str
) -> None:
    form = {"token": token_for(admin, "pause"), "comment": "why"}
    sent = admin.post("/models/example/pause", data=form, headers={"Sec-Fetch-Site": site})
    assert sent.status_code == 403
    assert acts_in(workspace) == []
    ours = {"Sec-Fetch-Site": "same-origin"}
    assert admin.post("/models/example/pause", data=form, headers=ours).status_code == 303
