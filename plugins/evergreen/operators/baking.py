"""Bake: watch the version that went live until it is verified, or is to be sent back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import timezone
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.errors import EvergreenError, ServingError, UnavailableError
from evergreen.notifications import ModelNotifier
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import BakeReport
    from evergreen.workspace import Workspace


class BakeOperator(StageOperator):
    """Look at the live version; skip when nothing bakes.

    By labels it looks once. By requests it looks again every ``bake.every`` until that part is
    over, and holds no slot in between: what a look must remember stands in the ledger.

    :param part: by which evidence.
    """

    stage = "bake"

    def __init__(
        self, *, model: Declaration, part: Literal["requests", "labels"], **kwargs: Any
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.part = part

    def run_stage(self, workspace: Workspace, context: Context) -> BakeReport:
        left = self._finish(workspace)
        report = (
            self._by_requests(workspace, context)
            if self.part == "requests"
            else self._by_labels(workspace)
        )
        if left is not None:
            # A version that is to go back goes back, and one that is watched is looked at again:
            # the next look tries to finish too, and says so when a replica stays away.
            again = self.part == "requests" and not report.over
            if report.outcome != "roll_back" and not again:
                raise left
            self.log.warning("going live isn't finished: %s", left)
        if report.outcome == "nothing":
            raise AirflowSkipException(f"nothing bakes by {self.part}: {report.reason}")
        return report

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        if result.outcome == "verified":
            ModelNotifier(
                model=self.model,
                event="verified",
                title=f"version {result.version} is verified",
                body="\n".join(result.describe()),
            ).notify(context)
        if self.part == "requests" and not result.over:
            pause = TimeDeltaTrigger(self.model.bake.every)
            self.defer(trigger=pause, method_name="look_again")

    def look_again(self, context: Context, event: Any = None) -> dict[str, Any] | None:
        """What Airflow calls when the pause is over."""
        return self.execute(context)

    def _finish(self, workspace: Workspace) -> UnavailableError | None:
        """Carry out what a killed promotion or rollback left: only what is live can be looked at.

        :returns: what kept that from being finished, such as a replica that doesn't report the
            live version in time: no reason not to look at the others.
        """
        from evergreen.lifecycle.golive import finish

        try:
            carried = finish(self.model, workspace)
        except ServingError:  # the look judges a version that a replica refuses
            self.log.exception("the live version isn't served")
            return None
        except UnavailableError as error:
            return error
        if carried is not None:
            self.log.info("carried out what was left of going live: %s", carried.server)
        return None

    def _by_requests(self, workspace: Workspace, context: Context) -> BakeReport:
        from evergreen.lifecycle.baking import look_at_requests

        self._compact(workspace)
        # The run's moment names the look's cause: a repeat in this run is told the same again.
        run = context["dag_run"].run_after
        return look_at_requests(self.model, workspace, now=timezone.utcnow(), as_of=run)

    def _compact(self, workspace: Workspace) -> None:
        """Compact, so that the answers of late can be read; what can't be is no reason not to look.

        :raises UnavailableError: when the store or the ledger can't be reached.
        """
        from evergreen.lifecycle.compaction import compact

        try:
            compacted = compact(self.model, workspace)
        except UnavailableError:
            raise
        except EvergreenError:  # an unreadable segment must not keep a bad version live
            self.log.exception("it is looked at without the newest of the prediction log")
            return
        if compacted.segments:
            self.log.info("\n%s", "\n".join(compacted.describe()))

    def _by_labels(self, workspace: Workspace) -> BakeReport:
        from evergreen.lifecycle.baking import look_at_labels

        return look_at_labels(self.model, workspace)
