"""Run one stage in this process, for a debugger: no Airflow, no decision, nothing promoted.

The stages before the one asked for are run too; what they made before is found again by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from evergreen.declaration import Declaration
from evergreen.errors import EvergreenError
from evergreen.ledger import records
from evergreen.lifecycle.contracts import (
    Champion,
    Decision,
    DriftReport,
    Evaluation,
    FeatureSet,
    InfrastructureReport,
    LabelReport,
    PerformanceReport,
    Result,
    ScoreReport,
    Snapshot,
    TrainedModel,
    ValidationReport,
    Verdict,
)
from evergreen.workspace import Workspace


@dataclass
class Foreground:
    """A retrain's stages as of a moment, each computed when it is first asked for.

    :ivar decided: the decision to carry out; only a preview of one when None.
    """

    declaration: Declaration
    workspace: Workspace
    as_of: datetime
    decided: Decision | None = None

    @property
    def run_key(self) -> str:
        """The same decision, or moment, is the same MLflow run."""
        return self.decided.run_id if self.decided else f"foreground__{self.as_of.isoformat()}"

    @cached_property
    def champion(self) -> Champion | None:
        """The version that is live."""
        with self.workspace.ledger.read() as session:
            live = records.champion(session, self.declaration.name)
        return Champion.from_row(live) if live else None

    def ingest(self) -> Result:
        """Register what has landed; this one does write, as the DAG would."""
        from evergreen.lifecycle.ingestion import ingest

        return ingest(self.declaration, self.workspace, self.as_of)

    @cached_property
    def decision(self) -> Decision:
        """What the arbiter would say, recorded nowhere; or said."""
        if self.decided is not None:
            return self.decided
        from evergreen.lifecycle.arbitration import preview

        return preview(self.declaration, self.workspace, run_id=self.run_key, as_of=self.as_of)

    @cached_property
    def snapshot(self) -> Snapshot:
        """The training window."""
        from evergreen.lifecycle.definition_reading import lookback
        from evergreen.lifecycle.extraction import extract

        return extract(
            self.declaration,
            self.workspace,
            as_of=self.as_of,
            sequence=self.decision.sequence,
            lookback=lookback(self.declaration),
        )

    @cached_property
    def validation(self) -> ValidationReport:
        """The data's checks."""
        from evergreen.lifecycle.validation import validate

        live = self.champion
        before = Snapshot.load(self.workspace.store, live.snapshot) if live else None
        return validate(self.declaration, self.workspace, self.snapshot, before)

    @cached_property
    def features(self) -> FeatureSet:
        """The training set."""
        from evergreen.lifecycle.preparation import prepare

        return prepare(self.declaration, self.workspace, self.snapshot, self.validation)

    @cached_property
    def trained(self) -> TrainedModel:
        """The candidate."""
        from evergreen.lifecycle.training import train

        return train(
            self.declaration,
            self.workspace,
            self.features,
            self.features.save(self.workspace.store),
            self.features.snapshot,
            run_key=self.run_key,
            as_of=self.as_of,
            cause=self.decided.cause if self.decided else "foreground",
            tune=self.decided.tune if self.decided else False,
            lineage={"dag_run": self.run_key},
        )

    @cached_property
    def evaluation(self) -> Evaluation:
        """Candidate, champion and baseline on the holdout."""
        from evergreen.lifecycle.evaluation import evaluate

        champion = (self.champion.version, self.champion.model_uri) if self.champion else None
        self.snapshot.save(self.workspace.store)  # says which revisions the holdout is of
        return evaluate(
            self.declaration,
            self.workspace,
            self.trained,
            self.features,
            champion=champion,
            as_of=self.as_of,
        )

    @cached_property
    def infrastructure(self) -> InfrastructureReport:
        """The model in a clean process."""
        from evergreen.lifecycle.infrastructure import check_infrastructure

        return check_infrastructure(self.declaration, self.workspace, self.trained, self.features)

    @cached_property
    def verdict(self) -> Verdict:
        """What the gate would say; nothing is recorded."""
        from evergreen.lifecycle.evidence import Evidence
        from evergreen.lifecycle.gating import judge, served_skew

        rows = self.workspace.store.get_table(self.evaluation.predictions)
        return judge(
            Evidence(
                self.declaration,
                self.trained,
                self.validation,
                self.evaluation,
                self.infrastructure,
                self.champion,
                rows,
                skew=served_skew(self.declaration, self.workspace),
            )
        )

    def score(self) -> ScoreReport:
        """Predictions for what has none; this one does write, as the DAG would."""
        from evergreen.lifecycle.definition_reading import lookback
        from evergreen.lifecycle.extraction import extract_unscored
        from evergreen.lifecycle.preparation import prepare
        from evergreen.lifecycle.scoring import score
        from evergreen.lifecycle.validation import validate

        reach = lookback(self.declaration)
        snapshot = extract_unscored(self.declaration, self.workspace, lookback=reach)
        if snapshot is None:
            return ScoreReport(model=self.declaration.name)
        report = validate(self.declaration, self.workspace, snapshot)
        features = prepare(self.declaration, self.workspace, snapshot, report)
        return score(self.declaration, self.workspace, snapshot, features, run_id=self.run_key)

    @cached_property
    def labels(self) -> LabelReport:
        """The prediction log beside the labels known; nothing is recorded."""
        from evergreen.lifecycle.monitoring import join_labels

        found = join_labels(self.declaration, self.workspace)
        if found is None:
            raise EvergreenError(f"{self.declaration.name}: nothing is registered; ingest first")
        return found

    def detect_drift(self) -> DriftReport:
        """Drift of what nobody has looked at; nothing is recorded."""
        from evergreen.lifecycle.drift import detect_drift

        return detect_drift(self.declaration, self.workspace, self.labels)

    def measure_performance(self) -> PerformanceReport:
        """Performance by labels nobody has measured by; nothing is recorded."""
        from evergreen.lifecycle.monitoring import detector_states
        from evergreen.lifecycle.performance import measure_performance

        states = detector_states(self.declaration, self.workspace, self.labels)
        return measure_performance(self.declaration, self.workspace, self.labels, states)


STAGES: dict[str, Callable[[Foreground], Result]] = {
    "ingest": Foreground.ingest,
    "arbitrate": lambda run: run.decision,
    "extract": lambda run: run.snapshot,
    "validate_data": lambda run: run.validation,
    "prepare": lambda run: run.features,
    "train": lambda run: run.trained,
    "evaluate": lambda run: run.evaluation,
    "check_infrastructure": lambda run: run.infrastructure,
    "gate": lambda run: run.verdict,
    "score": Foreground.score,
    "join_labels": lambda run: run.labels,
    "detect_drift": Foreground.detect_drift,
    "measure_performance": Foreground.measure_performance,
}


def run_stage(
    name: str, declaration: Declaration, workspace: Workspace, as_of: datetime
) -> Iterator[str]:
    """Run a stage and yield the lines of its log block.

    :raises EvergreenError: for a name that is no stage, or one that only the DAG may run.
    """
    if name not in STAGES:
        hint = " Promotion is the DAG's alone: evergreen retrain." if name == "promote" else ""
        raise EvergreenError(
            f"no stage {name!r} to run here; there are: {', '.join(STAGES)}.{hint}"
        )
    yield from STAGES[name](Foreground(declaration, workspace, as_of)).describe()
