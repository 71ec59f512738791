"""Ask a person when automatic retraining has stopped, by Airflow's own human-in-the-loop task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput

from evergreen.declaration import Declaration, format_duration
from evergreen.errors import RefusalError
from evergreen.hooks.workspace import workspace_of
from evergreen.notifications import ModelNotifier
from evergreen.operators.base import Observed, TellsLineage, block

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.hitl import HITLUser

    from evergreen.lifecycle.contracts import EscalationAnswer, EscalationReport

#: The form's options, and what the ledger calls them.
ANSWERS = {"Acknowledge": "acknowledged", "Decline": "declined"}
LONGEST_COMMENT = 4000
# Key of the task's state, which survives tries: what was said, and whether that was told.
GIVEN = "answer"


class EscalateOperator(TellsLineage, HITLOperator):
    """Ask whether automatic retraining may go on, and keep what was said in the ledger.

    Skipped when it isn't stopped. An answer counts with a comment only; one without, which
    Airflow's form doesn't send but its API does, is refused and the question asked again. Silence
    is recorded and fails the task without a retry: nobody has done what had to be done, and the
    next decision to investigate asks again.

    What was said is kept with the task before it goes to the ledger, so a retry goes on with it
    and asks nobody twice. A task cleared after that asks again, and both answers are kept.

    :param model: the model's declaration; ``escalation`` says who may answer (the ids that
        Airflow's auth manager gives its users), until when, and who is told.
    """

    stage: ClassVar[str] = "escalate"
    template_fields: Sequence[str] = ()  # what is asked holds texts of others, no templates
    ui_color = "#e3f1e5"

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        placement = model.compute.get("escalate")
        if placement is not None:
            kwargs = {**placement.arguments, **kwargs}
        kwargs.setdefault("subject", f"Automatic retraining of {model.name} has stopped")
        kwargs.setdefault("response_timeout", model.escalation.answer_within)
        kwargs.setdefault("assigned_users", _users(model))
        kwargs.setdefault("notifiers", [_asking(model)])
        kwargs.setdefault("on_failure_callback", _failing(model))
        kwargs.setdefault("retries", 2)
        kwargs.setdefault("retry_delay", timedelta(seconds=10))
        super().__init__(
            options=[*ANSWERS],
            params={
                "comment": Param(
                    None,
                    type=["null", "string"],
                    maxLength=LONGEST_COMMENT,
                    title="Comment",
                    description="What did you find, and what was done? Kept in the ledger.",
                )
            },
            **kwargs,
        )
        self.model = model
        self.priority = ""
        self.message = ""

    @property
    def serialized_params(self) -> dict[str, dict[str, Any]]:
        """The form, where the comment must be given.

        Not declared so: Airflow validates the defaults of a task's params before it starts.
        """
        form = super().serialized_params
        schema = {**form["comment"]["schema"], "type": "string", "minLength": 1}
        return {"comment": {**form["comment"], "schema": schema}}

    def execute(self, context: Context) -> Any:
        """Ask, or go on with an answer that was given before the task died."""
        given: Any = context["task_state_store"].get(GIVEN)
        # Clearing a task raises `max_tries`, a retry doesn't.
        if given and (not given["told"] or given["max_tries"] == context["ti"].max_tries):
            self.log.info("going on with what was said before: %s", given["answer"])
            return self._finish(context, given)
        from evergreen.lifecycle.escalation import open_escalation

        workspace = workspace_of(self.model)
        stopped = open_escalation(self.model, workspace)
        if stopped is None:
            self._skip("it has no open escalation: there is nothing to ask a person")
        declined = bool(stopped.answers) and stopped.answers[-1] == "declined"
        if declined and context["dag_run"].run_type != "manual":
            raise AirflowSkipException(
                f"a person declined already; start {self.model.name}.escalate by hand to acknowledge"
            )
        return self._ask(context, stopped, stopped.save(workspace.store).to_dict())

    def execute_complete(
        self, context: Context, event: dict[str, Any], escalation: Any = None
    ) -> Any:
        """Keep what was said, or that nothing was; ask again for a comment that is missing.

        :param event: the answer, or that there was none in time.
        :param escalation: reference of what was asked about.
        """
        from evergreen.lifecycle.contracts import EscalationReport

        workspace = workspace_of(self.model)
        stopped = EscalationReport.load(workspace.store, escalation)
        answer, comment = "unanswered", None
        person = (event.get("responded_by_user") or {}).get("name")
        if "error" not in event:
            comment = (event.get("params_input") or {}).get("comment")
            problem = _problem(comment)
            if problem:
                said = f"the answer of {person} is refused: {problem}"
                self.log.warning(said)
                return self._ask(context, stopped, escalation, said)
            super().execute_complete(context, {**event, "params_input": {"comment": comment}})
            answer = ANSWERS[event["chosen_options"][0]]
        elif event.get("error_type") != "timeout":
            self.process_trigger_event_error(event)
        elif (now := self._open()) is None or now.id != stopped.id:
            self._skip(
                "it was acknowledged elsewhere while this task waited"
                if now is None
                else f"it stopped again while this task waited; {self.model.name}.escalate asks anew"
            )
        given = {
            "escalation": escalation,
            "run_id": _asked_in(context),
            "answer": answer,
            "person": person,
            "comment": (comment or "").strip(),
            "max_tries": context["ti"].max_tries,
            "told": False,
        }
        context["task_state_store"].set(GIVEN, given)
        return self._finish(context, given)

    def _ask(
        self,
        context: Context,
        stopped: EscalationReport,
        escalation: dict[str, Any],
        problem: str | None = None,
    ) -> Any:
        lines = [*([problem] if problem else []), *_question(self.model, stopped)]
        self.priority = stopped.priority
        self.subject = f"{stopped.priority}: automatic retraining of {self.model.name} has stopped"
        self.message = "\n".join(lines)
        self.body = "\n\n".join(map(_plain_markdown, lines))
        asked = [*stopped.describe(), _input(escalation)]
        self.log.info("\n%s", block(self.stage, self.model.name, asked))
        try:
            return super().execute(context)
        except TaskAwaitingInput as waiting:
            waiting.kwargs = {**(waiting.kwargs or {}), "escalation": escalation}
            raise

    def _finish(self, context: Context, given: dict[str, Any]) -> dict[str, Any]:
        """Put what was said into the ledger, tell it, end the task. Harmless to repeat."""
        from evergreen.lifecycle.contracts import EscalationReport
        from evergreen.lifecycle.escalation import answer

        workspace, state = workspace_of(self.model), context["task_state_store"]
        seen = self._observed = Observed(workspace.store, [given["escalation"]])
        stopped = EscalationReport.load(workspace.store, given["escalation"])
        told = {name: given[name] for name in ("run_id", "answer", "person", "comment")}
        try:
            said = answer(self.model, workspace, stopped.id, **told)
        except RefusalError as error:
            state.delete(GIVEN)
            seen.refused = str(error)
            raise AirflowFailException(str(error)) from error
        lines = [stopped.reason, *said.describe(), *self._since(stopped, said)]
        self.log.info(
            "\n%s", block(self.stage, self.model.name, [*lines, _input(given["escalation"])])
        )
        if not given["told"]:
            if said.answer != "unanswered":
                self._tell(context, stopped, said, lines)
            state.set(GIVEN, {**given, "told": True})
        reference = said.save(workspace.store).to_dict()
        seen.result, seen.reference = said, reference
        if said.answer == "unanswered":
            raise AirflowFailException(f"nobody answered in time: {lines[-1]}")
        seen.finished = True
        return reference

    def _open(self) -> EscalationReport | None:
        from evergreen.lifecycle.escalation import open_escalation

        return open_escalation(self.model, workspace_of(self.model))

    def _since(self, stopped: EscalationReport, said: EscalationAnswer) -> list[str]:
        """What an answer doesn't change, because of what happened while the task waited."""
        now = self._open()
        if now is None and said.answer != "acknowledged":
            return ["but somebody has acknowledged it: automatic retraining goes on"]
        if now is not None and now.id != stopped.id:
            return [f"but it stopped again since; {self.model.name}.escalate asks: {now.reason}"]
        return []

    def _tell(
        self, context: Context, stopped: EscalationReport, said: EscalationAnswer, lines: list[str]
    ) -> None:
        ModelNotifier(
            model=self.model,
            event="answered",
            title=f"{said.answer} by {said.person or 'nobody'}",
            body="\n".join(lines),
            priority=stopped.priority,
        ).notify(context)

    def _skip(self, reason: str) -> NoReturn:
        self.log.info("\n%s", block(self.stage, self.model.name, ["SKIPPED", reason]))
        raise AirflowSkipException(f"{self.model.name}: {reason}")


def _users(model: Declaration) -> list[HITLUser] | None:
    """Who may answer; None is anybody with the right. Airflow compares ids."""
    return [{"id": user, "name": user} for user in model.escalation.assigned] or None


def _asking(model: Declaration) -> ModelNotifier:
    """Tells what the task asks; Jinja puts texts in that it doesn't read as templates again."""
    return ModelNotifier(
        model=model,
        event="escalated",
        title="automatic retraining has stopped, please answer",
        body="{{ task.message }}",
        priority="{{ task.priority }}",
    )


def _failing(model: Declaration) -> ModelNotifier:
    """Tells that nobody answered, or that the task broke."""
    return ModelNotifier(
        model=model, event="failed", title="{{ ti.task_id }} failed", body="{{ exception }}"
    )


def _question(model: Declaration, stopped: EscalationReport) -> list[str]:
    """Why a person is asked, and what each answer does."""
    name, until = model.name, format_duration(model.escalation.answer_within)
    so_far = f"Answered so far: {', '.join(stopped.answers)}."
    rolled_back = stopped.cause == "rollback"
    return [
        f"Automatic retraining of {name} has stopped, as of {stopped.as_of.isoformat()}.",
        f"Priority {stopped.priority}; {stopped.why}.",
        stopped.reason,
        *([so_far] if stopped.answers else []),
        "Acknowledge: automatic retraining resumes, and futile retrains are counted anew.",
        *(["A version that was rolled back stays quarantined."] if rolled_back else []),
        f"Decline: it stays stopped until a person acknowledges; start {name}.escalate for that.",
        f"No answer within {until}: it stays stopped; the next decision to investigate asks again.",
        f"A retrain by hand is possible at any time, by {name}.retrain.",
    ]


def _problem(comment: Any) -> str | None:
    """Why a comment can't be kept. Airflow checks the form in the browser only."""
    if not isinstance(comment, str) or not comment.strip():
        return "it needs a comment, which the ledger keeps"
    if len(comment) > LONGEST_COMMENT:
        return f"its comment has {len(comment)} characters, at most {LONGEST_COMMENT} are kept"
    return None


def _asked_in(context: Context) -> str:
    """What the ledger knows an answer by: the run, and which try asked when it was cleared."""
    run_id, number = context["dag_run"].run_id, context["ti"].try_number
    return run_id if number == 1 else f"{run_id}/{number}"


def _plain_markdown(line: str) -> str:
    """The form shows Markdown; a reason or a run id that holds some is shown as it is."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", line)


def _input(reference: dict[str, Any]) -> str:
    return f"input escalation: {reference['digest'][:12]} {reference['uri']}"
