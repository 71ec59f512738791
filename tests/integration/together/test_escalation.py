"""A person is asked when retraining doesn't help: a real Airflow waits, tells, and keeps what is said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput

from evergreen.airflow_client import AirflowClient, RequestError
from evergreen.ledger import records
from evergreen.ledger.tables import AnswerRow, DecisionRow, EscalationRow
from evergreen.lifecycle.escalation import answer, open_escalation
from evergreen.operators import EscalateOperator
from evergreen.standalone import Standalone
from tests.integration.together.shared import Shared, ended, facet
from tests.scenarios.project import Project

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(600)]

NOW = datetime(2024, 3, 1, tzinfo=UTC)
REASON = "2 retrains in a row for drift did not help <b>*now*</b>"
CALLBACK = """
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

from evergreen.placing import runnable_models
from evergreen.notifications import ModelNotifier

for model in runnable_models(Path(__file__).parents[1] / "include" / "models"):
    if model.name == "example":
        with DAG(dag_id="failing"):
            BashOperator(
                task_id="fails",
                bash_command="exit 3",
                on_failure_callback=ModelNotifier(
                    model=model, event="failed", title="{{ ti.task_id }}", body="{{ exception }}"
                ),
            )
"""


@dataclass(frozen=True)
class Running:
    """A running Airflow, its mails, and three models that are stopped."""

    client: AirflowClient
    standalone: Standalone
    mails: list[Any]
    example: Project
    guarded: Project
    silent: Project

    def ask(self, project: Project, run_id: str) -> None:
        """Start the DAG by hand; return when it waits for a person."""
        self.client.trigger(f"{project.name}.escalate", run_id)
        self.parked(project, run_id)

    def parked(self, project: Project, run_id: str) -> None:
        """Wait until the task waits for a person, as one would: for longer than a moment."""
        self.wait(lambda: self.state(project, run_id) == "awaiting_input")
        # Airflow 3.3.2 takes the end of the process that parked a task for the end of the one
        # that goes on with the answer, when that comes sooner: it kills it, and tries again.
        time.sleep(4)

    def say(self, project: Project, run_id: str, option: str, comment: str | None) -> None:
        """Answer, as `admin`."""
        given = {} if comment is None else {"comment": comment}
        dag_id = f"{project.name}.escalate"
        self.client.answer(dag_id, run_id, "escalate", option, params_input=given)

    def end(self, project: Project, run_id: str) -> str:
        """How the task ended, once it has."""
        self.client.wait_for_run(f"{project.name}.escalate", run_id, 120)
        return self.state(project, run_id)

    def state(self, project: Project, run_id: str) -> str:
        (task,) = self.client.task_instances(f"{project.name}.escalate", run_id)
        return str(task["state"])

    def log(self, project: Project, run_id: str, try_number: int = 1) -> str:
        return self.client.log(f"{project.name}.escalate", run_id, "escalate", try_number)

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not until():
            assert time.monotonic() < deadline, [mail["subject"] for mail in self.mails]
            time.sleep(0.5)  # between looks, until the deadline


def stop(project: Project, run_id: str) -> None:
    """Write into the ledger that automatic retraining was stopped because of this run."""
    with project.workspace.ledger.write() as session:
        decision = DecisionRow(
            model=project.name, run_id=run_id, action="retrain", cause="drift", causes=["drift"],
            reasons=[], as_of=NOW, sequence=1, until=None, tune=False, override=None, futile=2,
        )  # fmt: skip
        session.add(decision)
        session.flush()
        session.add(
            EscalationRow(
                model=project.name, decision_id=decision.id, as_of=NOW, priority="P1", futile=2,
                reason=REASON,
            )
        )  # fmt: skip


def answers(project: Project) -> list[tuple[str, str, str | None, str]]:
    """What the ledger has about the last escalation: run, answer, person, comment."""
    with project.workspace.ledger.read() as session:
        last = records.last_escalation(session, project.name)
        assert last is not None
        rows: list[AnswerRow] = list(records.answers_to(session, last.id))
        return [(row.run_id, row.answer, row.person, row.comment) for row in rows]


@pytest.fixture(scope="module")
def running(shared: Shared) -> Running:
    """`example` mails what happens, `guarded` asks vera only, `silent` waits five seconds."""
    mail = {"channel": "smtp", "connection": "mail", "to": ["ops@example.com"]}
    every = {**mail, "on": ["escalated", "answered", "failed"]}
    dead = {"channel": "apprise", "connection": "nowhere", "on": ["escalated"]}
    (shared.folder / "dags" / "failing.py").write_text(CALLBACK)
    return Running(
        shared.client,
        shared.standalone,
        shared.mails,
        shared.model("example", "escalate", escalation={"notify": [dead, every]}),
        shared.model("guarded", "escalate", escalation={"assigned": ["vera"]}),
        shared.model(
            "silent",
            "escalate",
            escalation={"answer_within": "5s", "notify": [{**mail, "on": ["failed"]}]},
        ),
    )


def test_nothing_is_asked_while_nothing_is_open(running: Running) -> None:
    running.client.trigger("example.escalate", "early")
    assert running.end(running.example, "early") == "skipped"
    assert "it has no open escalation" in running.log(running.example, "early")


def test_yes_and_no_with_a_comment_are_kept_and_told(running: Running) -> None:
    """No first: it stays stopped. An answer without a comment isn't one, and is asked for again."""
    project, mails = running.example, running.mails
    stop(project, "futile")
    running.ask(project, "no")
    assert "not told by the apprise Connection 'nowhere'" in running.log(project, "no")
    assert [mail["subject"] for mail in mails] == [
        "[evergreen] P1 example: automatic retraining has stopped, please answer"
    ]
    page = mails[0].get_body(("html",)).get_content()
    assert "for drift did not help &lt;b&gt;*now*&lt;/b&gt;" in page
    assert "/dags/example.escalate/runs/no/tasks/escalate/required_actions" in page

    running.say(project, "no", "Acknowledge", None)
    running.wait(lambda: len(mails) == 2)
    running.parked(project, "no")
    assert "answer of admin is refused: it needs a comment" in running.log(project, "no")
    assert "the answer of admin is refused" in mails[1].get_body(("html",)).get_content()
    assert answers(project) == []

    running.say(project, "no", "Decline", "  the sensor is broken ")
    assert running.end(project, "no") == "success"
    assert answers(project) == [("no", "declined", "admin", "the sensor is broken")]
    assert open_escalation(project.declaration, project.workspace) is not None
    assert mails[2]["subject"] == "[evergreen] P1 example: declined by admin"

    running.ask(project, "yes")
    running.say(project, "yes", "Acknowledge", "mended {{ 1 / 0 }}")
    assert running.end(project, "yes") == "success"
    assert answers(project)[1:] == [("yes", "acknowledged", "admin", "mended {{ 1 / 0 }}")]
    assert open_escalation(project.declaration, project.workspace) is None
    assert "acknowledged by admin: mended {{ 1 / 0 }}" in running.log(project, "yes")
    assert [mail["subject"] for mail in mails[3:]] == [
        "[evergreen] P1 example: automatic retraining has stopped, please answer",
        "[evergreen] P1 example: acknowledged by admin",
    ]
    assert "mended {{ 1 / 0 }}" in mails[4].get_body(("html",)).get_content()


def test_a_persons_answers_are_told_as_lineage(running: Running, shared: Shared) -> None:
    """After the test above."""
    job = "example.escalate.escalate"
    told = [event for event in ended(shared.lineage(job, 2), job) if event["outputs"]]
    assert [facet(event)["conclusion"] for event in told] == ["declined", "acknowledged"]
    for event in told:
        (asked,), (said,) = event["inputs"], event["outputs"]
        assert "/escalation/" in asked["name"]
        assert said["facets"]["version"]["datasetVersion"] == facet(event)["digest"]


def test_only_who_is_assigned_may_answer(running: Running) -> None:
    project = running.guarded
    stop(project, "futile")
    running.ask(project, "guarded")
    with pytest.raises(RequestError, match="not a respondent") as refused:
        running.say(project, "guarded", "Acknowledge", "me")
    assert refused.value.status == HTTPStatus.FORBIDDEN
    passwords = json.loads((running.standalone.home / "passwords.json").read_text())
    with AirflowClient(running.standalone.url, "vera", passwords["vera"]) as vera:
        vera.answer(
            "guarded.escalate", "guarded", "escalate", "Acknowledge", params_input={"comment": "I"}
        )
    assert running.end(project, "guarded") == "success"
    assert answers(project) == [("guarded", "acknowledged", "vera", "I")]


def test_silence_is_recorded_fails_the_task_and_can_be_answered_later(running: Running) -> None:
    project = running.silent
    stop(project, "futile")
    running.client.trigger("silent.escalate", "silence")
    assert running.end(project, "silence") == "failed"
    (task,) = running.client.task_instances("silent.escalate", "silence")
    assert task["try_number"] == 1
    assert "unanswered by nobody" in running.log(project, "silence")
    assert answers(project) == [("silence", "unanswered", None, "")]
    running.wait(lambda: running.mails[-1]["subject"] == "[evergreen] silent: escalate failed")
    page = running.mails[-1].get_body(("html",)).get_content()
    assert "nobody answered in time: next: automatic retraining stays stopped" in page

    project.declare(escalation={"answer_within": "5m"})
    body = {"dry_run": False, "dag_run_id": "silence", "only_failed": True}
    running.client._send("POST", "/dags/silent.escalate/clearTaskInstances", json=body)
    running.parked(project, "silence")
    running.say(project, "silence", "Acknowledge", "seen")
    assert running.end(project, "silence") == "success"
    assert answers(project)[1:] == [("silence/2", "acknowledged", "admin", "seen")]


def test_a_failed_task_is_told_by_its_callback(running: Running) -> None:
    running.client.wait_for_dag("failing", 120)
    running.client.trigger("failing", "run")
    assert running.client.wait_for_run("failing", "run", 120)["state"] == "failed"
    running.wait(lambda: running.mails[-1]["subject"] == "[evergreen] example: fails")
    page = running.mails[-1].get_body(("html",)).get_content()
    assert "exit code 3" in page
    assert "/dags/failing/runs/run/tasks/fails?try_number=1" in page


class State(dict[str, Any]):
    """A task's state, which Airflow keeps from try to try."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A model that is stopped, and a process that works on it without Airflow."""
    project = Project.create(tmp_path)
    stop(project, "futile")
    monkeypatch.setenv("EVERGREEN_HOME", str(project.home))
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **given: None)
    return project


def context(state: State, *, number: int = 1, max_tries: int = 2, run_type: str = "manual") -> Any:
    """What Airflow gives to one try of the run `once`."""
    ti = SimpleNamespace(id="ti", try_number=number, max_tries=max_tries, log_url="http://log")
    run = SimpleNamespace(run_id="once", run_type=run_type)
    return {"task_state_store": state, "ti": ti, "task_instance": ti, "dag_run": run}


def asked(operator: EscalateOperator, given: Any) -> dict[str, Any]:
    """Ask; what Airflow is to hand back with the answer."""
    with pytest.raises(TaskAwaitingInput) as waiting:
        operator.execute({**given, "task": operator})
    return dict(waiting.value.kwargs or {})


def event(option: str, comment: str | None = "seen") -> dict[str, Any]:
    """An answer, as Airflow hands it over."""
    return {
        "chosen_options": [option],
        "params_input": {} if comment is None else {"comment": comment},
        "responded_by_user": {"id": "1", "name": "vera"},
        "responded_at": NOW,
    }


TIMEOUT = {"error": "too late", "error_type": "timeout"}


@pytest.mark.parametrize("option", ["Acknowledge", "Decline"])
@pytest.mark.parametrize(
    "where",
    [
        "evergreen.lifecycle.escalation.answer",
        "evergreen.operators.escalation.EscalateOperator._tell",
        "evergreen.lifecycle.contracts.EscalationAnswer.save",
    ],
)
def test_killed_after_the_answer_it_goes_on_with_it(
    stopped: Project, monkeypatch: pytest.MonkeyPatch, option: str, where: str
) -> None:
    def die(*given: Any, **more: Any) -> None:
        raise KilledError

    operator, state = EscalateOperator(task_id="escalate", model=stopped.declaration), State()
    kept = asked(operator, context(state))
    with monkeypatch.context() as dying:
        dying.setattr(where, die)
        with pytest.raises(KilledError):
            operator.execute_complete(context(state), event(option), **kept)
    told: list[Any] = []
    monkeypatch.setattr(EscalateOperator, "_tell", lambda *given: told.append(given))
    again = operator.execute(context(state, number=2))
    assert operator.execute(context(state, number=3)) == again
    said = "acknowledged" if option == "Acknowledge" else "declined"
    assert answers(stopped) == [("once", said, "vera", "seen")]
    assert len(told) == (0 if where.endswith("save") else 1)
    if option == "Decline":
        asked(operator, context(state, number=4, max_tries=5))  # cleared


def test_who_has_declined_is_not_asked_by_every_event(stopped: Project) -> None:
    operator, state = EscalateOperator(task_id="escalate", model=stopped.declaration), State()
    kept = asked(operator, context(state))
    operator.execute_complete(context(state), event("Decline"), **kept)
    with pytest.raises(AirflowSkipException, match="declined already"):
        operator.execute(context(State(), run_type="asset_triggered"))
    asked(operator, context(State(), run_type="manual"))


@pytest.mark.parametrize("comment", [None, "", " \n ", "x" * 5000])
def test_an_answer_without_a_comment_is_asked_for_again(
    stopped: Project, comment: str | None
) -> None:
    operator, state = EscalateOperator(task_id="escalate", model=stopped.declaration), State()
    kept = asked(operator, context(state))
    with pytest.raises(TaskAwaitingInput) as waiting:
        operator.execute_complete(
            {**context(state), "task": operator}, event("Acknowledge", comment), **kept
        )
    assert waiting.value.kwargs == kept
    assert "the answer of vera is refused" in str(operator.body)
    assert (answers(stopped), state) == ([], {})


def test_nobody_is_blamed_when_it_was_acknowledged_elsewhere(stopped: Project) -> None:
    operator, state = EscalateOperator(task_id="escalate", model=stopped.declaration), State()
    kept = asked(operator, context(state))
    found = open_escalation(stopped.declaration, stopped.workspace)
    assert found is not None
    answer(
        stopped.declaration, stopped.workspace, found.id, run_id="cli", answer="acknowledged",
        person="ada", comment="",
    )  # fmt: skip
    with pytest.raises(AirflowSkipException, match="acknowledged elsewhere"):
        operator.execute_complete(context(state), TIMEOUT, **kept)
    assert [said for _, said, _, _ in answers(stopped)] == ["acknowledged"]


def test_silence_is_kept_once_and_a_retry_fails_again(stopped: Project) -> None:
    operator, state = EscalateOperator(task_id="escalate", model=stopped.declaration), State()
    kept = asked(operator, context(state))
    with pytest.raises(AirflowFailException, match="nobody answered in time: next: automatic"):
        operator.execute_complete(context(state), TIMEOUT, **kept)
    with pytest.raises(AirflowFailException, match="nobody answered in time"):
        operator.execute(context(state, number=2))
    assert answers(stopped) == [("once", "unanswered", None, "")]


def test_the_form_wants_a_comment_and_shows_text_as_text(tmp_path: Path) -> None:
    project = Project.create(tmp_path, escalation={"assigned": ["vera"], "answer_within": "2d"})
    project.declare(
        escalation={"assigned": ["vera"], "answer_within": "2d"},
        compute={"escalate": {"queue": "light"}},
    )
    operator = EscalateOperator(task_id="escalate", model=project.declaration)
    field = operator.serialized_params["comment"]
    assert (field["value"], field["schema"]["type"], field["schema"]["minLength"]) == (
        None,
        "string",
        1,
    )
    assert operator.assigned_users == [{"id": "vera", "name": "vera"}]
    assert (operator.response_timeout, operator.queue) == (timedelta(days=2), "light")
    assert operator.options == ["Acknowledge", "Decline"]
    assert operator.defaults is None
