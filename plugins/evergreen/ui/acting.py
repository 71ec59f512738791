"""What people may do: retrain, roll back, answer an escalation, pause and resume.

Each is a form that Airflow's auth manager lets the user send, a row in the ledger with their name,
and, but for pausing, a request to Airflow in their name before it. The form's key names the row and
the DAG run: a form sent twice, or again after a crash, is the same act and the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from evergreen.ledger import acts, records
from evergreen.ledger.acts import Act
from evergreen.ledger.tables import ActRow, AnswerRow, EscalationRow
from evergreen.ui.access import Model, check_form, check_right
from evergreen.ui.airflow_api import ask, path_of
from evergreen.ui.places import WorkspaceDep

router = APIRouter()
Yes = Annotated[Literal["yes"] | None, Form()]
ANSWERS: dict[Act, str] = {"acknowledge": "Acknowledge", "decline": "Decline"}


class Asked:
    """One act of one user, checked when it is made.

    :raises HTTPException: 403 when the user may not, or the form isn't theirs; 422 when it doesn't
        say why.
    """

    def __init__(
        self,
        request: Request,
        user: GetUserDep,
        model: Model,
        workspace: WorkspaceDep,
        token: Annotated[str, Form(max_length=1000)],
        comment: Annotated[str, Form(max_length=4000)] = "",
    ) -> None:
        self.comment = comment.strip()
        act: Any = request.url.path.rpartition("/")[2]  # a route's: they end with their act
        self.request, self.model, self.workspace, self.act = request, model, workspace, act
        if act != "resume" and not self.comment:
            raise HTTPException(422, "say why: who comes next will ask, and the ledger keeps it")
        check_right(request, user, model, act)
        self.key = check_form(request, user, model, act, token)
        self.person, self.identity = user.get_name(), str(user.get_id())
        self.escalate = f"{model}.escalate"

    def heard(self) -> bool:
        """Whether this very form is in the ledger already."""
        same = select(ActRow.id).where(ActRow.model == self.model, ActRow.key == self.key)
        with self.workspace.ledger.read() as session:
            return session.scalar(same) is not None

    def stopped(self) -> tuple[EscalationRow | None, Sequence[AnswerRow]]:
        """The last time that automatic retraining stopped, and what was answered."""
        with self.workspace.ledger.read() as session:
            stop = records.last_escalation(session, self.model)
            return stop, records.answers_to(session, stop.id) if stop else []

    def can_return(self) -> bool:
        """Whether there is a verified version to roll back to."""
        with self.workspace.ledger.read() as session:
            live = records.champion(session, self.model)
            besides = [live.version] if live else []
            return records.last_verified(session, self.model, besides=besides) is not None

    async def questions(self, which: str) -> list[Any]:
        """What ``<model>.escalate`` has asked, as Airflow tells it."""
        found = await ask(
            self.request, "GET", f"{path_of(self.escalate, 'dagRuns', '~', 'hitlDetails')}?{which}"
        )
        questions: list[Any] = (found or {}).get("hitl_details", [])
        return questions

    async def answer(self, task: dict[str, Any]) -> bool:
        """Answer a question in the user's name; False when somebody was faster."""
        given = await ask(
            self.request,
            "PATCH",
            path_of(
                self.escalate, "dagRuns", task["dag_run_id"], "taskInstances", task["task_id"], "-1",
                "hitlDetails",
            ),
            {"chosen_options": [ANSWERS[self.act]], "params_input": {"comment": self.comment}},
            accept=frozenset({409}),
        )  # fmt: skip
        return given is not None

    def is_mine(self, question: dict[str, Any]) -> bool:
        """Whether a question was answered with what this form says, by the same person."""
        who, said = question["responded_by_user"] or {}, question["params_input"].get("comment")
        return (who.get("id"), question["chosen_options"], said) == (
            self.identity, [ANSWERS[self.act]], self.comment
        )  # fmt: skip

    def of(self, question: dict[str, Any]) -> dict[str, str]:
        """The run in which a question was asked, as the ledger keeps it."""
        return {"family": "escalate", "run_id": question["task_instance"]["dag_run_id"]}

    async def begin(self, family: str, form: dict[str, Any]) -> dict[str, str]:
        """Start a DAG of the model in the user's name; the run's id comes from the form's key."""
        run_id = f"ui__{self.key}"
        await ask(
            self.request,
            "POST",
            path_of(f"{self.model}.{family}", "dagRuns"),
            {"dag_run_id": run_id, "logical_date": None, "conf": form},
            accept=frozenset({409}),  # it was started before: the same form
        )
        return {"family": family, "run_id": run_id}

    async def done(self, detail: dict[str, Any]) -> RedirectResponse:
        """Put it into the ledger, once; and back to the model's page, which shows it."""
        await run_in_threadpool(self._record, detail)
        root = self.request.scope.get("root_path", "")
        return RedirectResponse(f"{root}/models/{self.model}?act={self.key}", status_code=303)

    def _record(self, detail: dict[str, Any]) -> None:
        named = {"key": self.key, "person": self.person, "comment": self.comment}
        with self.workspace.ledger.write() as session:
            if self.act == "pause":
                acts.pause(session, self.model, **named)
            elif self.act == "resume":
                acts.resume(session, self.model, **named)
            else:
                acts.act(session, self.model, act=self.act, detail=detail, **named)


def recorded(run_id: str, answers: Sequence[AnswerRow]) -> bool:
    """Whether what was said in a run is in the ledger; a run that asks again numbers its answers."""
    return any(row.run_id == run_id or row.run_id.startswith(f"{run_id}/") for row in answers)


AskedDep = Annotated[Asked, Depends()]


@router.post("/models/{model}/retrain")
async def retrain(asked: AskedDep, tune: Yes = None) -> RedirectResponse:
    """Start ``<model>.retrain``: the arbiter hears a person."""
    form = {"reason": asked.comment, "tune": tune is not None}
    return await asked.done(await asked.begin("retrain", form))


@router.post("/models/{model}/roll_back")
async def roll_back(
    asked: AskedDep,
    version: Annotated[str, Form(max_length=64, pattern=r"^\w*$")] = "",
    force: Yes = None,
) -> RedirectResponse:
    """Start ``<model>.rollback``."""
    if not version and not await run_in_threadpool(lambda: asked.heard() or asked.can_return()):
        raise HTTPException(422, "no other version is verified: choose the one to go back to")
    form = {"reason": asked.comment, "version": version or None, "force": force is not None}
    begun = await asked.begin("rollback", form)
    return await asked.done({**begun, **({"version": version} if version else {})})


@router.post("/models/{model}/acknowledge")
@router.post("/models/{model}/decline")
async def respond(asked: AskedDep) -> RedirectResponse:
    """Answer the question that ``<model>.escalate`` asks; let it be asked when it isn't.

    A form sent twice, or again after a crash, finds its own answer in Airflow and records that.
    """
    if await run_in_threadpool(asked.heard):
        return await asked.done({})
    stop, answers = await run_in_threadpool(asked.stopped)
    if stop is None:
        raise HTTPException(409, f"automatic retraining of {asked.model} has never stopped")
    waiting = await asked.questions("response_received=false&state=awaiting_input")
    if waiting and await asked.answer(waiting[0]["task_instance"]):
        return await asked.done(asked.of(waiting[0]))
    given = [
        one
        for one in await asked.questions("response_received=true&order_by=-responded_at&limit=20")
        if datetime.fromisoformat(one["responded_at"]) >= stop.recorded_at
    ]
    if mine := next(filter(asked.is_mine, given), None):
        return await asked.done(asked.of(mine))
    if other := next(
        (one for one in given if not recorded(asked.of(one)["run_id"], answers)), None
    ):
        who, what = (other["responded_by_user"] or {}).get("name"), other["chosen_options"][0]
        raise HTTPException(
            409,
            f"nothing was sent: {who} has answered {what!r} meanwhile, which is being recorded: "
            f"{other['params_input'].get('comment')}",
        )
    if said := next((one for one in answers if one.answer == "acknowledged"), None):
        raise HTTPException(
            409, f"nothing was sent: {said.person} has acknowledged it already: {said.comment}"
        )
    await asked.begin("escalate", {})
    raise HTTPException(
        409, f"no question was waiting, so {asked.escalate} asks it now. Answer again in a moment."
    )


@router.post("/models/{model}/pause")
@router.post("/models/{model}/resume")
async def hold(asked: AskedDep) -> RedirectResponse:
    """Pause automatic retraining, or let it go on; the arbiter reads it in the ledger."""
    return await asked.done({})
