"""What people do is in the ledger once, with their name, and asked of Airflow in their name once."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from sqlalchemy import delete, select

from evergreen.ledger import acts, records
from evergreen.ledger.tables import ActRow, AnswerRow
from evergreen.ui import access, acting
from evergreen.workspace import Workspace
from tests.unit.ui.browser import Person, acts_in, token_for
from tests.unit.ui.lives import go_live, look, stop


def acts_of(workspace: Workspace) -> list[ActRow]:
    with workspace.ledger.read() as session:
        return list(acts.acts_of(session, "example"))


def runs(dag_id: str, run_id: str | None = None) -> list[Any]:
    """What Airflow's database has."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    rows = select(DagRun).where(DagRun.dag_id == dag_id)
    if run_id is not None:
        rows = rows.where(DagRun.run_id == run_id)
    with create_session() as session:
        return list(session.scalars(rows.order_by(DagRun.id)))


def key_of(answer: Any) -> str:
    """An act's key, and the page that it leads back to."""
    assert answer.status_code == 303, answer.text
    page, _, key = answer.headers["location"].partition("?act=")
    assert page == "/evergreen/models/example"
    return str(key)


def test_a_retrain_is_one_run_in_the_person_s_name(admin: Person, workspace: Workspace) -> None:
    go_live(workspace)
    form = {
        "token": token_for(admin, "retrain"),
        "comment": " labels <b>mended</b> ",
        "tune": "yes",
    }
    key = key_of(admin.post("/models/example/retrain", data=form))
    assert key_of(admin.post("/models/example/retrain", data=form)) == key
    (run,) = runs("example.retrain", f"ui__{key}")
    assert run.triggering_user_name == "admin"
    assert (run.run_type, run.state) == ("manual", "queued")
    assert run.conf == {"reason": "labels <b>mended</b>", "tune": True}
    (act,) = acts_of(workspace)
    assert (act.key, act.act, act.person) == (key, "retrain", "admin")
    assert act.comment == "labels <b>mended</b>"
    assert act.detail == {"family": "retrain", "run_id": f"ui__{key}"}
    done = look(admin.get(f"/models/example?act={key}").text)
    assert "Retrain: asked for, in the name of admin" in done.text
    links = [attributes.get("href") for tag, attributes in done.tags if tag == "a"]
    assert f"/dags/example.retrain/runs/ui__{key}" in links


def test_an_act_whose_first_answer_was_lost_is_taken_up(
    admin: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between Airflow's run and the ledger's row; the form is sent again."""
    form = {"token": token_for(admin, "retrain"), "comment": "why"}
    with monkeypatch.context() as patch:
        patch.setattr(acts, "act", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            admin.post("/models/example/retrain", data=form)
    assert acts_of(workspace) == []
    key = key_of(admin.post("/models/example/retrain", data=form))
    assert len(runs("example.retrain", f"ui__{key}")) == 1
    assert [act.key for act in acts_of(workspace)] == [key]


@pytest.mark.parametrize("version", ["", "1"])
def test_a_rollback_says_to_which_version(
    people: dict[str, Person], workspace: Workspace, version: str
) -> None:
    ann = people["ann"]
    go_live(workspace, events=("completed", "verified"))
    go_live(workspace, version="2", run="run 2")
    form = {"token": token_for(ann, "roll_back"), "comment": "worse", "version": version}
    keys = {key_of(ann.post("/models/example/roll_back", data=form)) for _ in range(2)}
    (key,) = keys
    (run,) = runs("example.rollback", f"ui__{key}")
    assert run.conf == {"reason": "worse", "version": version or None, "force": False}
    assert run.triggering_user_name == "ann"
    (act,) = acts_of(workspace)
    assert (act.act, act.person, act.detail.get("version", "")) == ("roll_back", "ann", version)


def test_a_rollback_to_nothing_verified_is_not_asked_for(
    admin: Person, workspace: Workspace
) -> None:
    go_live(workspace)
    go_live(workspace, version="2", run="run 2")
    before = len(runs("example.rollback"))
    form = {"token": token_for(admin, "roll_back"), "comment": "worse", "version": ""}
    answer = admin.post("/models/example/roll_back", data=form)
    assert answer.status_code == 422
    assert "choose the one to go back to" in look(answer.text).text
    assert (acts_in(workspace), len(runs("example.rollback"))) == ([], before)
    key = key_of(admin.post("/models/example/roll_back", data={**form, "version": "1"}))
    done = look(admin.get(f"/models/example?act={key}").text).text
    assert "Roll back: asked for, in the name of admin" in done


@pytest.mark.parametrize("version", ["../1", "1 2", "<b>", "1" * 65])
def test_a_version_is_a_word(admin: Person, workspace: Workspace, version: str) -> None:
    go_live(workspace)
    go_live(workspace, version="2", run="run 2")
    before = len(runs("example.rollback"))
    form = {"token": token_for(admin, "roll_back"), "comment": "worse", "version": version}
    assert admin.post("/models/example/roll_back", data=form).status_code == 422
    assert (acts_in(workspace), len(runs("example.rollback"))) == ([], before)


@pytest.mark.parametrize("act", ["retrain", "roll_back", "acknowledge", "decline", "pause"])
def test_an_act_says_why(admin: Person, workspace: Workspace, act: str) -> None:
    before = len(runs("example.retrain"))
    token = token_for(admin, "pause")
    for comment in (None, "", "  \n\t ", "x" * 4001):
        form = {"token": token, **({} if comment is None else {"comment": comment})}
        answer = admin.post(f"/models/example/{act}", data=form)
        assert answer.status_code == 422
        assert "xxxx" not in answer.text
    assert (acts_in(workspace), len(runs("example.retrain"))) == ([], before)


def test_a_pause_and_its_end_have_the_person_s_name(
    people: dict[str, Person], workspace: Workspace
) -> None:
    admin, ann = people["admin"], people["ann"]
    go_live(workspace)
    form = {"token": token_for(admin, "pause"), "comment": "an audit"}
    assert len({key_of(admin.post("/models/example/pause", data=form)) for _ in range(2)}) == 1
    assert [(act.act, act.person) for act in acts_of(workspace)] == [("pause", "admin")]
    page = look(ann.get("/models/example").text)
    assert "by admin: an audit" in page.text
    assert "pause" not in page.forms
    token = page.forms["resume"]["token"]
    key_of(ann.post("/models/example/resume", data={"token": token}))
    with workspace.ledger.read() as session:
        assert acts.pause_of(session, "example") is None
    assert next((act.act, act.person) for act in acts_of(workspace)) == ("resume", "ann")
    # The first form once more: it has been heard, and holds nothing back now.
    key_of(admin.post("/models/example/pause", data=form))
    assert acts_in(workspace) == ["resume", "pause"]


def test_a_question_that_was_not_asked_is_asked_then_answered(
    admin: Person, workspace: Workspace
) -> None:
    go_live(workspace)
    stop(workspace)
    form = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    asked = admin.post("/models/example/acknowledge", data=form)
    assert asked.status_code == 409
    assert "example.escalate asks it now" in asked.text
    (*_, run) = runs("example.escalate")
    assert run.run_id.startswith("ui__")
    assert acts_in(workspace) == []
    task_id = _wait_for_an_answer(run)
    key_of(admin.post("/models/example/acknowledge", data=form))
    (act,) = acts_of(workspace)
    assert (act.act, act.person, act.comment) == ("acknowledge", "admin", "mended upstream")
    assert act.detail == {"family": "escalate", "run_id": run.run_id}
    chosen, said, who = _answer_to(run, task_id)
    assert (chosen, said["comment"], who["name"]) == (["Acknowledge"], "mended upstream", "admin")
    # The same form again, now that no question waits: it has been heard, and asks nothing anew.
    before = len(runs("example.escalate"))
    key_of(admin.post("/models/example/acknowledge", data=form))
    assert (len(runs("example.escalate")), acts_in(workspace)) == (before, ["acknowledge"])


def asked(admin: Person, workspace: Workspace) -> Any:
    """The run that asks whether automatic retraining may go on."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:  # questions of tests before wait for nobody
        session.execute(delete(DagRun).where(DagRun.dag_id == "example.escalate"))
    go_live(workspace)
    stop(workspace)
    form = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    assert admin.post("/models/example/acknowledge", data=form).status_code == 409
    (run,) = runs("example.escalate")
    _wait_for_an_answer(run)
    return run


def record(workspace: Workspace, run_id: str, person: str = "admin") -> None:
    """Write an answer as ``example.escalate`` does once it goes on."""
    with workspace.ledger.write() as session:
        stopped = records.last_escalation(session, "example")
        assert stopped is not None
        session.add(AnswerRow(
            model="example", escalation_id=stopped.id, run_id=run_id, answer="acknowledged",
            person=person, comment="mended upstream",
        ))  # fmt: skip


def test_an_answer_whose_record_was_lost_is_found_again(
    admin: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between Airflow's answer and the ledger's row; the form is sent again."""
    run = asked(admin, workspace)
    form = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    with monkeypatch.context() as patch:
        patch.setattr(acts, "act", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            admin.post("/models/example/acknowledge", data=form)
    assert acts_of(workspace) == []
    key = key_of(admin.post("/models/example/acknowledge", data=form))
    (act,) = acts_of(workspace)
    assert (act.key, act.detail) == (key, {"family": "escalate", "run_id": run.run_id})
    assert [each.run_id for each in runs("example.escalate")] == [run.run_id]


def test_of_two_clicks_at_once_both_are_the_one_answer(
    admin: Person, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sees the question still wait, and Airflow takes the first's answer."""
    asked(admin, workspace)
    ask = acting.Asked.questions
    before: list[Any] = []

    async def stale(self: acting.Asked, which: str) -> list[Any]:
        if "awaiting_input" not in which:
            return await ask(self, which)
        before.append(before[0] if before else await ask(self, which))
        return list(before[0])

    monkeypatch.setattr(acting.Asked, "questions", stale)
    form = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    key = key_of(admin.post("/models/example/acknowledge", data=form))
    monkeypatch.setattr(acting.Asked, "heard", lambda _self: False)  # the first isn't written yet
    assert key_of(admin.post("/models/example/acknowledge", data=form)) == key
    assert len(before) == 2
    assert [act.key for act in acts_of(workspace)] == [key]


def test_who_answers_after_another_is_told_so(
    people: dict[str, Person], workspace: Workspace
) -> None:
    admin, ann = people["admin"], people["ann"]
    run = asked(admin, workspace)
    form = {"token": token_for(ann, "decline"), "comment": "not yet"}
    mine = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    key_of(admin.post("/models/example/acknowledge", data=mine))
    for said in ("which is being recorded: mended upstream", "admin has acknowledged it already"):
        late = ann.post("/models/example/decline", data=form)
        assert late.status_code == 409
        assert f"nothing was sent: admin has {said.removeprefix('admin has ')}" in (
            look(late.text).text.replace("answered 'Acknowledge' meanwhile, ", "")
        )
        record(workspace, run.run_id) if "recorded" in said else None
    assert [act.person for act in acts_of(workspace)] == ["admin"]
    assert len(runs("example.escalate")) == 1


def test_an_answer_is_shown_until_it_is_recorded(
    people: dict[str, Person], workspace: Workspace
) -> None:
    admin = people["admin"]
    run = asked(admin, workspace)
    assert "being recorded" not in look(admin.get("/models/example").text).text
    form = {"token": token_for(admin, "acknowledge"), "comment": "mended upstream"}
    key = key_of(admin.post("/models/example/acknowledge", data=form))
    for person, path in ((admin, f"?act={key}"), (admin, ""), (people["vera"], "")):
        text = " ".join(look(person.get(f"/models/example{path}").text).text.split())
        assert "Acknowledge: answered by admin, being recorded: mended upstream" in text
    record(workspace, f"{run.run_id}/2")  # the worker's second try
    text = look(admin.get("/models/example").text).text
    assert "being recorded" not in text
    assert "automatic retraining has stopped" not in text


def test_nobody_is_asked_about_a_model_that_never_stopped(
    admin: Person, workspace: Workspace
) -> None:
    go_live(workspace)
    user = SimpleAuthManagerUser(username="admin", role="admin")
    form = {"token": access.sign(user, "example", "acknowledge"), "comment": "why"}
    before = len(runs("example.escalate"))
    answer = admin.post("/models/example/acknowledge", data=form)
    assert (answer.status_code, len(runs("example.escalate"))) == (409, before)
    assert "has never stopped" in answer.text


def _wait_for_an_answer(run: Any) -> str:
    """Do to the run's question what the worker does when it has put it."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        tasks = select(TaskInstance).where(
            TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id
        )
        task = session.scalars(tasks).one()
        task.state = "awaiting_input"
        session.add(HITLDetail(
            ti_id=task.id, options=["Acknowledge", "Decline"], subject="Go on?", params={},
            params_input={},
        ))  # fmt: skip
        return str(task.task_id)


def _answer_to(run: Any, task_id: str) -> tuple[Any, Any, Any]:
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(
            select(HITLDetail).join(TaskInstance, TaskInstance.id == HITLDetail.ti_id)
            .where(TaskInstance.run_id == run.run_id, TaskInstance.task_id == task_id)
        ).one()  # fmt: skip
        return found.chosen_options, found.params_input, found.responded_by


def test_what_airflow_refuses_is_refused_with_its_words(
    admin: Person, workspace: Workspace
) -> None:
    """The form says a model that the ledger knows, and Airflow has no DAG of."""
    go_live(workspace, "ledger_only")
    form = {"token": token_for(admin, "retrain", "ledger_only"), "comment": "why"}
    answer = admin.post("/models/ledger_only/retrain", data=form)
    assert answer.status_code == 404
    assert "Airflow says" in look(answer.text).text
    assert acts_in(workspace, "ledger_only") == []
