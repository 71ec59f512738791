"""What people may do: retrain, roll back, answer an escalation, pause and resume.

Each is a form that Airflow's auth manager lets the user send, a row in the ledger with their name,
and, but for pausing, a request to Airflow in their name before it. The form's key names the row and
the DAG run: a form sent twice, or again after a crash, is the same act and the same run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from evergreen.ledger import acts
from evergreen.ledger.acts import Act
from evergreen.ledger.tables import ActRow
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
        self.person = user.get_name()

    def heard(self) -> bool:
        """Whether this very form is in the ledger already."""
        same = select(ActRow.id).where(ActRow.model == self.model, ActRow.key == self.key)
        with self.workspace.ledger.read() as session:
            return session.scalar(same) is not None

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
    form = {"reason": asked.comment, "version": version or None, "force": force is not None}
    begun = await asked.begin("rollback", form)
    return await asked.done({**begun, **({"version": version} if version else {})})


@router.post("/models/{model}/acknowledge")
@router.post("/models/{model}/decline")
async def respond(asked: AskedDep) -> RedirectResponse:
    """Answer the question that ``<model>.escalate`` asks; let it be asked when it isn't."""
    if await run_in_threadpool(asked.heard):
        return await asked.done({})
    dag_id = f"{asked.model}.escalate"
    waiting = await ask(
        asked.request,
        "GET",
        f"{path_of(dag_id, 'dagRuns', '~', 'hitlDetails')}?response_received=false&state=awaiting_input",
    )
    questions = (waiting or {}).get("hitl_details", [])
    if not questions:
        await asked.begin("escalate", {})
        raise HTTPException(
            409, f"no question was waiting, so {dag_id} asks it now. Answer again in a moment."
        )
    task = questions[0]["task_instance"]
    run_id = task["dag_run_id"]
    await ask(
        asked.request,
        "PATCH",
        path_of(dag_id, "dagRuns", run_id, "taskInstances", task["task_id"], "-1", "hitlDetails"),
        {"chosen_options": [ANSWERS[asked.act]], "params_input": {"comment": asked.comment}},
    )
    return await asked.done({"family": "escalate", "run_id": run_id})


@router.post("/models/{model}/pause")
@router.post("/models/{model}/resume")
async def hold(asked: AskedDep) -> RedirectResponse:
    """Pause automatic retraining, or let it go on; the arbiter reads it in the ledger."""
    return await asked.done({})
