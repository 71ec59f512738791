"""A model's life in this process, without Airflow: to try triggers on history before they count.

Each step does what the DAGs do after a partition has landed, in their order, by the same
lifecycle functions over a real ledger and store: ingest, score, monitor, bake, decide, and as
that says train, judge and promote, or roll back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from evergreen.declaration import Declaration
from evergreen.foreground import Foreground
from evergreen.ledger import records
from evergreen.lifecycle.arbitration import arbitrate, conclude
from evergreen.lifecycle.contracts import Decision, MonitorReport, Verdict
from evergreen.lifecycle.gating import gate
from evergreen.lifecycle.ingestion import ingest
from evergreen.lifecycle.promotion import promote
from evergreen.lifecycle.rollback import roll_back
from evergreen.workspace import Workspace


@dataclass(frozen=True)
class Step:
    """What a step did.

    :ivar watched: None when there was nothing to watch.
    :ivar verdict: None when nothing was trained.
    """

    decision: Decision
    watched: MonitorReport | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Rehearsal:
    """A declared model in a workspace of its own.

    :ivar watching: False leaves monitoring out, for triggers that don't hear it.
    """

    declaration: Declaration
    workspace: Workspace
    watching: bool = True

    def step(self, as_of: datetime, run_id: str | None = None) -> Step:
        """Take in what has landed by ``as_of`` and let the model live on."""
        ingest(self.declaration, self.workspace, as_of)
        self.score()
        watched = self.watch() if self.watching else None
        decision, verdict = self.retrain(run_id or f"rehearsal__{as_of.isoformat()}")
        return Step(decision, watched, verdict)

    def score(self) -> None:
        """Answer every partition that has no predictions."""
        with self.workspace.ledger.read() as session:
            mark = records.watermark(session, self.declaration.name)
        if mark is not None:
            Foreground(self.declaration, self.workspace, mark).score()

    def watch(self) -> MonitorReport | None:
        """What `<model>.monitor` does."""
        from evergreen.lifecycle.baking import look_at_labels
        from evergreen.lifecycle.drift import detect_drift
        from evergreen.lifecycle.monitoring import detector_states, join_labels, raise_signals
        from evergreen.lifecycle.performance import measure_performance

        declaration, workspace = self.declaration, self.workspace
        labels = join_labels(declaration, workspace)
        if labels is None or not labels.windows:
            return None
        drift = detect_drift(declaration, workspace, labels)
        states = detector_states(declaration, workspace, labels)
        performance = measure_performance(declaration, workspace, labels, states)
        report = raise_signals(declaration, workspace, labels, drift, performance)
        look_at_labels(declaration, workspace)
        return report

    def retrain(self, run_id: str) -> tuple[Decision, Verdict | None]:
        """What `<model>.retrain` does."""
        decision = arbitrate(self.declaration, self.workspace, run_id=run_id)
        if decision.action == "rollback":
            roll_back(
                self.declaration,
                self.workspace,
                run_id=f"retrain/{run_id}",
                reason=decision.reasons[0],
            )
        if decision.action != "retrain":
            return decision, None
        run = Foreground(self.declaration, self.workspace, decision.as_of, decision)
        verdict = gate(
            self.declaration,
            self.workspace,
            decision,
            run.trained,
            run.validation,
            run.evaluation,
            run.infrastructure,
        )
        if verdict.promotes:
            store = self.workspace.store
            promote(
                self.declaration,
                self.workspace,
                decision,
                verdict,
                run.trained,
                run.snapshot.save(store),
                run.features,
                run.evaluation.save(store),
            )
        conclude(self.declaration, self.workspace, run_id)
        return decision, verdict

    def metrics(self) -> Iterator[tuple[str, str, dict[str, float]]]:
        """Each scored partition, the version that answered it, and how it did."""
        with self.workspace.ledger.read() as session:
            scores = records.scores(session, self.declaration.name)
        yield from ((row.partition, row.version, row.metrics) for row in scores)
