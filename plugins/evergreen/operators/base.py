"""What all stage operators share: a workspace, one closing log block, and which errors retry.

An operator loads what its upstream tasks wrote, calls one lifecycle function, saves the result
and returns its reference: kind, URI and digest, never data.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.sdk import Asset, AssetAlias, BaseOperator, SkipMixin
from airflow.sdk.exceptions import AirflowFailException

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError, RefusalError
from evergreen.hooks.workspace import WorkspaceHook
from evergreen.notifications import ModelNotifier

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Result
    from evergreen.workspace import Workspace

    R = TypeVar("R", bound=Result)

# XCom keys of why a run ended without a verdict, read by ConcludeRunOperator.
REFUSED = "refused"
DECLINED = "declined"


class StageOperator(BaseOperator, SkipMixin):
    """One lifecycle stage of one model.

    :param model: the model's declaration.
    """

    stage: ClassVar[str]
    template_fields: Sequence[str] = ()
    ui_color = "#e3f1e5"

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        placement = model.compute.get(self.stage)  # type: ignore[call-overload]  # a stage's name
        if placement is not None:
            kwargs = {**placement.model_dump(exclude_none=True), **kwargs}
        kwargs.setdefault("retries", 2)
        kwargs.setdefault("retry_delay", timedelta(seconds=10))
        kwargs.setdefault("retry_exponential_backoff", True)
        kwargs.setdefault("max_retry_delay", timedelta(minutes=5))
        if model.escalation.notify:
            kwargs.setdefault("on_failure_callback", partial(_tell_failure, model))
        super().__init__(**kwargs)
        self.model = model

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Run the stage. A refusal ends the task at once; anything else may be retried."""
        workspace = WorkspaceHook().get_conn()
        try:
            result = self.run_stage(workspace, context)
        except (RefusalError, DeclarationError) as error:
            self.log.error(  # noqa: TRY400 - a refusal is a result, a stack trace would hide it
                "\n%s", block(self.stage, self.model.name, ["REFUSED", str(error)])
            )
            context["ti"].xcom_push(key=REFUSED, value=str(error))
            raise AirflowFailException(str(error)) from error
        reference = result.save(workspace.store).to_dict()
        self.log.info(
            "\n%s", block(self.stage, self.model.name, [*result.describe(), *self.inputs()])
        )
        self.finish(workspace, context, result, reference)
        return reference

    def run_stage(self, workspace: Workspace, context: Context) -> Result:
        """Call the lifecycle function."""
        raise NotImplementedError

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        """What a result means for the rest of the run, after it was saved and logged."""

    def inputs(self) -> list[str]:
        """The results this task was given, with their digests, for the log."""
        given = {name: getattr(self, name, None) for name in self.template_fields}
        return [
            f"input {name}: {value['digest'][:12]} {value['uri']}"
            for name, value in given.items()
            if isinstance(value, dict) and "digest" in value
        ]

    def skip_rest(self, context: Context, reference: dict[str, Any]) -> None:
        """End well, with everything downstream visibly skipped (teardown excepted)."""
        context["ti"].xcom_push(key="return_value", value=reference)
        tasks = [
            t for t in context["task"].get_direct_relatives(upstream=False) if not t.is_teardown
        ]
        self.skip(ti=context["ti"], tasks=tasks)


def _tell_failure(model: Declaration, context: Context) -> None:
    """Tell who wants to hear of it that a task has failed for good: refused, or broken."""
    task, error = context["ti"].task_id, context.get("exception")
    refused = isinstance(error, AirflowFailException)
    ModelNotifier(
        model=model,
        event="refused" if refused else "failed",
        title=f"{task} {'refused' if refused else 'failed'}",
        body=f"{context['dag_run'].run_id}: {error or 'no exception is known'}",
    ).notify(context)


def escalations(model: Declaration) -> AssetAlias:
    """The outlet of a task that may have to ask a person: it emits only what is added to it."""
    return AssetAlias(f"{model.name}/escalations")


def ask_a_person(context: Context, model: Declaration) -> None:
    """Start ``<model>.escalate``. A hint like every event: its task reads the ledger."""
    events = context["outlet_events"][escalations(model)]
    events.add(Asset(f"x-evergreen://{model.name}/escalations"))


def block(stage: str, model: str, lines: Sequence[str]) -> str:
    """The closing block of a task's log."""
    title = f"── {model}: {stage} "
    return "\n".join([title + "─" * max(0, 78 - len(title)), *lines, "─" * 78])


def moment(value: Any) -> datetime | None:
    """A form's date-time, or None.

    :raises RefusalError: for text that is no ISO time with a zone; the form doesn't check it.
    """
    if not value:
        return None
    try:
        found: datetime | None = datetime.fromisoformat(str(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise RefusalError(
            f"as_of needs a zone, found {value!r}; write it like 2013-02-01T00:00:00+00:00"
        )
    return found
