"""What all stage operators share: a workspace, one closing log block, and which errors retry.

An operator loads what its upstream tasks wrote, calls one lifecycle function, saves the result
and returns its reference: kind, URI and digest, never data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.sdk import Asset, AssetAlias, BaseOperator, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError, RefusalError
from evergreen.hooks.workspace import workspace_of
from evergreen.lifecycle.resources import Meter
from evergreen.notifications import ModelNotifier
from evergreen.operators.resources import account

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Result
    from evergreen.store import Store
    from evergreen.workspace import Workspace

    R = TypeVar("R", bound=Result)

# XCom keys of why a run ended without a verdict, read by ConcludeRunOperator.
REFUSED = "refused"
DECLINED = "declined"


@dataclass
class Observed:
    """What lineage is told from, once the task has ended: what it was given and what became of it.

    ``given`` and ``reference`` are references as plain dicts, as XCom has them. ``finished`` says
    that the task did not end skipped or failed after its result was saved: its assets are told.
    ``conclusion`` is that of a task without a result.
    """

    store: Store
    given: Sequence[dict[str, Any]]
    result: Result | None = None
    reference: dict[str, Any] | None = None
    refused: str | None = None
    conclusion: str | None = None
    finished: bool = False


class TellsLineage:
    """What the openlineage provider asks of an operator, where it is set up."""

    stage: ClassVar[str]
    model: Declaration
    inlets: list[Any]
    outlets: list[Any]
    _observed: Observed | None = None

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What the task read and wrote."""
        from evergreen.operators.lineage import lineage

        seen = self._observed
        outlets = self.outlets if seen is not None and seen.finished else ()
        return lineage(self.model.name, self.stage, seen, inlets=self.inlets, outlets=outlets)

    # Of a task that failed the same: what it was given, what it wrote, and why it refused.
    get_openlineage_facets_on_failure = get_openlineage_facets_on_complete


class StageOperator(TellsLineage, BaseOperator, SkipMixin):
    """One lifecycle stage of one model.

    :param model: the model's declaration.
    """

    template_fields: Sequence[str] = ()
    ui_color = "#e3f1e5"

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        placement = model.compute.get(self.stage)  # type: ignore[call-overload]  # a stage's name
        if placement is not None:
            kwargs = {**placement.arguments, **kwargs}
        kwargs.setdefault("retries", 5)  # with the pauses below: five minutes, a service's restart
        kwargs.setdefault("retry_delay", timedelta(seconds=10))
        kwargs.setdefault("retry_exponential_backoff", True)
        kwargs.setdefault("max_retry_delay", timedelta(minutes=5))
        if model.escalation.notify:
            kwargs.setdefault("on_failure_callback", partial(_tell_failure, model))
        super().__init__(**kwargs)
        self.model = model

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Run the stage. A refusal ends the task at once; anything else may be retried."""
        meter = Meter()
        workspace = workspace_of(self.model)
        seen = self._observed = Observed(workspace.store, [*self._given().values()])
        try:
            result = self.run_stage(workspace, context)
        except (RefusalError, DeclarationError) as error:
            seen.refused = str(error)
            lines = ["REFUSED", str(error), account(meter, context, self.model, self.stage)]
            self.log.error(  # noqa: TRY400 - a refusal is a result, a stack trace would hide it
                "\n%s", block(self.stage, self.model.name, lines)
            )
            context["ti"].xcom_push(key=REFUSED, value=str(error))
            raise AirflowFailException(str(error)) from error
        except AirflowSkipException:
            raise  # there was nothing to do
        except Exception:  # any failure: what it has cost is said, and it goes on to Airflow
            self.log.info(account(meter, context, self.model, self.stage))
            raise
        reference = result.save(workspace.store).to_dict()
        seen.result, seen.reference = result, reference
        used = account(
            meter, context, self.model, self.stage, rows=_rows(result), billed=self.billed_seconds()
        )
        self.log.info(
            "\n%s", block(self.stage, self.model.name, [*result.describe(), *self.inputs(), used])
        )
        self.finish(workspace, context, result, reference)
        seen.finished = True
        return reference

    def run_stage(self, workspace: Workspace, context: Context) -> Result:
        """Call the lifecycle function."""
        raise NotImplementedError

    def billed_seconds(self) -> float | None:
        """What another engine charges for this try, in seconds; None where the task works itself."""
        return None

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        """What a result means for the rest of the run, after it was saved and logged."""

    def inputs(self) -> list[str]:
        """The results this task was given, with their digests, for the log."""
        return [
            f"input {name}: {value['digest'][:12]} {value['uri']}"
            for name, value in self._given().items()
        ]

    def _given(self) -> dict[str, dict[str, Any]]:
        """Parameter → reference, of those that are one."""
        fields = {name: getattr(self, name, None) for name in self.template_fields}
        return {
            name: value
            for name, value in fields.items()
            if isinstance(value, dict) and "digest" in value
        }

    def skip_rest(self, context: Context, reference: dict[str, Any], *besides: str) -> None:
        """End well, with everything downstream visibly skipped but teardowns and ``besides``."""
        context["ti"].xcom_push(key="return_value", value=reference)
        after = context["task"].get_direct_relatives(upstream=False)
        tasks = [t for t in after if not t.is_teardown and t.task_id not in besides]
        self.skip(ti=context["ti"], tasks=tasks)


def _rows(result: Result) -> int | None:
    """How many rows a result is about, where it knows."""
    from evergreen.lifecycle.lineage import told

    return told(result).rows


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


def promotions(model: Declaration) -> Asset:
    """What a version that went live emits: ``<model>.bake`` waits for it."""
    return Asset(f"x-evergreen://{model.name}/promotions")


def ask_a_person(context: Context, model: Declaration) -> None:
    """Start ``<model>.escalate``. A hint like every event: its task reads the ledger."""
    events = context["outlet_events"][escalations(model)]
    events.add(Asset(f"x-evergreen://{model.name}/escalations"))


def block(stage: str, model: str, lines: Sequence[str]) -> str:
    """The closing block of a task's log."""
    title = f"── {model}: {stage} "
    shown = [part for line in lines for part in _harmless(line)]
    return "\n".join([title + "─" * max(0, 78 - len(title)), *shown, "─" * 78])


def _harmless(line: str) -> Iterator[str]:
    """A line as it can be logged: a further one is indented and other controls are spelled out, so
    that no column's name or comment looks like another task's block."""
    for number, part in enumerate(line.splitlines() or [""]):
        said = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part)
        yield f"  | {said}" if number else said


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
