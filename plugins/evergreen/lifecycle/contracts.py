"""What stages hand each other: small frozen documents, written down once by digest.

A stage's result goes into the store as JSON named by its own digest; between tasks only its
`reference` travels (kind, uri, digest). Large things inside are URIs. Every result can describe
itself in a few lines for the person who reads the task's log.

Longer than most files: it is the one page where all of them can be read in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from evergreen.ledger.tables import DecisionRow, PartitionRow, PromotionRow
from evergreen.store import Store


class Contract(BaseModel):
    """A frozen value that stages exchange."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values only."""
        return self.model_dump(mode="json")


class Reference(Contract):
    """Where a result is written, and what it must hash to."""

    kind: str
    uri: str
    digest: str


class Result(Contract):
    """A stage's result."""

    kind: ClassVar[str]
    model: str

    def save(self, store: Store) -> Reference:
        """Write the result once, under its digest."""
        uri, digest = store.put_document(self.kind, self.to_dict())
        return Reference(kind=self.kind, uri=uri, digest=digest)

    @classmethod
    def load(cls, store: Store, reference: Reference | dict[str, Any]) -> Self:
        """Read a result back and check its digest."""
        ref = Reference.model_validate(reference)
        return cls.model_validate(store.get_document(ref.uri, ref.digest))

    def describe(self) -> Iterator[str]:
        """The lines of the task's closing block: inputs, numbers beside bounds, what is next."""
        yield from ()


class PartitionFile(Contract):
    """One landed file, as it was when it was registered."""

    uri: str
    sha256: str
    bytes: int
    rows: int
    stored: str
    fingerprint: str
    columns: dict[str, str]


class Partition(Contract):
    """A registered partition: the files of one period of event time, in one revision.

    ``files`` is keyed by source; the model's own table is ``data``.
    """

    key: str
    revision: int
    sequence: int
    start: AwareDatetime
    end: AwareDatetime
    digest: str
    rows: int
    files: dict[str, PartitionFile]

    @classmethod
    def from_row(cls, row: PartitionRow) -> Self:
        """Read a ledger row."""
        files = {source: PartitionFile.model_validate(file) for source, file in row.files.items()}
        return cls(
            key=row.key,
            revision=row.revision,
            sequence=row.id,
            start=row.start,
            end=row.end,
            digest=row.digest,
            rows=row.rows,
            files=files,
        )

    def __str__(self) -> str:
        return self.key if self.revision == 1 else f"{self.key} (revision {self.revision})"


class Refused(Contract):
    """A landed partition that could not be registered, and why."""

    key: str
    uri: str
    reason: str


class IngestReport(Result):
    """What arrived since the last look."""

    kind = "ingest"
    registered: tuple[Partition, ...] = ()
    late: tuple[str, ...] = ()
    waiting: dict[str, tuple[str, ...]] = {}
    early: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    missing: tuple[str, ...] = ()
    watermark: AwareDatetime | None = None

    def describe(self) -> Iterator[str]:
        for partition in self.registered:
            yield f"registered {partition}: {partition.rows:,} rows, {partition.digest[:12]}"
            if partition.revision > 1:
                yield (
                    f"  CHANGED AFTER REGISTRATION: {partition.key} is now revision "
                    f"{partition.revision}; snapshots made before keep the old content"
                )
        for key in self.late:
            yield f"late: {key} arrived after a newer partition; the next snapshot includes it"
        for key, sources in self.waiting.items():
            yield f"waiting: {key} is not complete, no file yet for {', '.join(sources)}"
        for key in self.early:
            yield f"waiting: {key} is not over yet, or named for the future"
        for key in self.missing:
            yield f"missing: no file for {key}, though newer partitions are there"
        for refused in self.refused:
            yield f"REFUSED {refused.key}: {refused.reason}"
        yield f"watermark: {self.watermark.isoformat() if self.watermark else 'nothing registered'}"


Action = Literal["retrain", "suppress", "investigate", "rollback"]


class Decision(Result):
    """What the arbiter decided, for which causes, and why."""

    kind = "decision"
    id: int
    run_id: str
    action: Action
    cause: str | None
    causes: tuple[str, ...] = ()
    reasons: tuple[str, ...]
    as_of: AwareDatetime
    sequence: int
    until: AwareDatetime | None = None
    tune: bool = False
    override: str | None = None

    @classmethod
    def from_row(cls, row: DecisionRow) -> Self:
        """Read a ledger row."""
        names = set(cls.model_fields)
        return cls.model_validate({name: getattr(row, name) for name in names})

    def describe(self) -> Iterator[str]:
        yield f"as of {self.as_of.isoformat()}, partitions through sequence {self.sequence}"
        yield f"signals: {', '.join(self.causes) or 'none'}"
        yield from (f"  {reason}" for reason in self.reasons)
        until = f" until {self.until.isoformat()}" if self.until else ""
        yield f"decision: {self.action.upper()}{until}" + (
            f", cause {self.cause}" if self.cause else ""
        )


class Snapshot(Result):
    """An immutable choice of partitions, and the moment as of which labels are known.

    ``partitions`` are the window; ``context`` are earlier ones whose rows only feed features.
    ``schema`` is column → type per source, as found in the newest partition.
    """

    kind = "snapshot"
    purpose: Literal["train", "score"]
    as_of: AwareDatetime
    start: AwareDatetime
    end: AwareDatetime
    partitions: tuple[Partition, ...]
    context: tuple[Partition, ...] = ()
    rows: int
    matured: int
    immature: int
    never: int
    columns: dict[str, dict[str, str]]

    def describe(self) -> Iterator[str]:
        first, last = self.partitions[0], self.partitions[-1]
        yield f"window: {self.start.isoformat()} to {self.end.isoformat()}, as of {self.as_of.isoformat()}"
        yield f"partitions: {len(self.partitions)} ({first} to {last}), context {len(self.context)}"
        yield (
            f"rows: {self.rows:,} = {self.matured:,} matured + {self.immature:,} not yet "
            f"+ {self.never:,} never labelled"
        )


class Check(Contract):
    """One validation check: what was found beside what is allowed."""

    name: str
    partition: str
    severity: Literal["block", "warn", "quarantine"]
    passed: bool
    observed: str
    bound: str


class ValidationReport(Result):
    """What the data's checks found. ``quarantined`` maps a partition's digest to a table of row ids."""

    kind = "validation"
    snapshot: str
    blocked: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    quarantined: dict[str, str] = {}
    quarantined_rows: int = 0
    schema_changes: tuple[str, ...] = ()
    report: str | None = None

    def describe(self) -> Iterator[str]:
        failed = [check for check in self.checks if not check.passed]
        yield f"checks: {len(self.checks)} over the snapshot {self.snapshot[:12]}, {len(failed)} failed"
        for check in failed[:20]:
            yield f"  {check.severity}: {check.partition}: {check.name}: {check.observed} (allowed: {check.bound})"
        yield from (f"  schema: {change}" for change in self.schema_changes)
        if self.quarantined_rows:
            yield f"quarantined: {self.quarantined_rows:,} rows set aside"
        yield f"verdict: {'BLOCKED: ' + ', '.join(self.blocked) if self.blocked else 'usable'}"
        if self.report:
            yield f"report: {self.report}"


class Feature(Contract):
    """A model's input column."""

    name: str
    type: Literal["number", "string"]


class FeaturePart(Contract):
    """The features of one partition's rows, joined point in time. ``uri`` is Parquet."""

    partition: str
    start: AwareDatetime
    end: AwareDatetime
    digest: str
    uri: str
    rows: int


class FeatureSet(Result):
    """The rows a model learns from or answers for, features joined point in time.

    Columns of a part: ``row_id`` (position in the raw partition), ``event_timestamp``,
    ``label_timestamp``, ``label``, the entities, the features, and declared slice columns.
    For training, ``holdout_start`` splits matured rows: training rows lie before
    ``training_end``, holdout rows from ``holdout_start`` on.
    """

    kind = "features"
    purpose: Literal["train", "score"]
    snapshot: str
    as_of: AwareDatetime
    features: tuple[Feature, ...]
    parts: tuple[FeaturePart, ...]
    rows: int
    training_end: AwareDatetime | None = None
    holdout_start: AwareDatetime | None = None
    training_rows: int = 0
    holdout_rows: int = 0
    digest_of_rows: str = ""
    reused: int = Field(default=0, exclude=True)  # said in the log; a repeat must not differ by it

    def describe(self) -> Iterator[str]:
        yield f"snapshot {self.snapshot[:12]}: {self.rows:,} rows in, {self.rows:,} out, none lost or doubled"
        yield f"parts: {len(self.parts)}, of which reused {self.reused}"
        yield f"features: {len(self.features)} ({', '.join(f.name for f in self.features)})"
        if self.holdout_start and self.training_end:
            yield (
                f"training rows {self.training_rows:,} before {self.training_end.isoformat()}, "
                f"holdout rows {self.holdout_rows:,} from {self.holdout_start.isoformat()}"
            )


class TrainedModel(Result):
    """A candidate: a fitted model in its MLflow run.

    ``classes`` names the classes in the order of ``predict_proba``. ``predictions_digest`` is of
    the answers for the holdout's rows. Nothing in here differs between two attempts of one run.
    """

    kind = "training"
    mlflow_run: str
    model_uri: str
    experiment: str
    estimator: str
    features: tuple[Feature, ...]
    classes: tuple[str, ...] = ()
    feature_set: Reference
    snapshot: str
    predictions_digest: str
    code_digest: str
    environment_digest: str
    parameters: dict[str, Any]
    training_rows: int
    holdout_start: AwareDatetime
    trained_through: AwareDatetime
    tuned: bool = False
    refit: bool = False

    def describe(self) -> Iterator[str]:
        yield f"estimator: {self.estimator}, {'tuned' if self.tuned else 'declared'} parameters {self.parameters}"
        yield f"features {self.feature_set.digest[:12]}, code {self.code_digest[:12]}, environment {self.environment_digest[:12]}"
        refit = ", window and holdout" if self.refit else ""
        yield f"fitted on {self.training_rows:,} rows before {self.trained_through.isoformat()}{refit}"
        yield f"predictions digest: {self.predictions_digest[:12]}"
        yield f"MLflow run: {self.mlflow_run} ({self.model_uri})"


class Evaluation(Result):
    """Candidate, champion and naive baseline on the same rows.

    ``predictions`` is Parquet, one row a holdout row: ``partition``, ``row_id``, ``label`` (a
    class index or a value), ``candidate``, ``champion`` (when it could answer) and ``baseline``
    (the probability of class 1, a value, or for several classes ``candidate_0``, ``candidate_1``,
    …), and the columns of slices and fairness. ``metrics[who][metric]``;
    ``slices[column][value]`` holds ``rows``, the candidate's metrics by name, and the champion's
    as ``champion.<metric>``. ``importance`` is what the candidate's primary metric loses when a
    feature is shuffled; ``importance_change`` is that less the champion's, on the same rows.
    """

    kind = "evaluation"
    mlflow_run: str
    holdout_digest: str
    holdout_rows: int
    champion_version: str | None
    champion_problem: str | None = None
    predictions: str
    classes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]]
    slices: dict[str, dict[str, dict[str, float]]] = {}
    calibration: dict[str, float] = {}
    importance: dict[str, float] = {}
    importance_change: dict[str, float] = {}

    def describe(self) -> Iterator[str]:
        yield f"holdout: {self.holdout_rows:,} rows, {self.holdout_digest[:12]}"
        for metric in self.metrics["candidate"]:
            values = (
                f"{who} {found[metric]:.4f}"
                for who, found in self.metrics.items()
                if metric in found
            )
            yield f"  {metric}: {', '.join(values)}"
        if self.champion_problem:
            yield f"champion {self.champion_version} can't score these rows: {self.champion_problem}"
        top = sorted(self.importance.items(), key=lambda item: -item[1])[:5]
        yield "importance: " + ", ".join(f"{name} {value:.4f}" for name, value in top)


class InfrastructureReport(Result):
    """How the logged model behaves in a clean process. Latencies in ms, memory in MB."""

    kind = "infrastructure"
    mlflow_run: str
    loads: bool
    problem: str | None = None
    signature_matches: bool = False
    same_predictions: bool = False
    latency_ms: dict[str, float] = {}
    memory_mb: float | None = None
    load_seconds: float | None = None

    def describe(self) -> Iterator[str]:
        if self.problem:
            yield f"the logged model is not usable: {self.problem}"
        yield f"signature matches: {self.signature_matches}; predictions equal the trainer's: {self.same_predictions}"
        if self.latency_ms:
            yield "latency: " + ", ".join(
                f"{name} {value:.1f} ms" for name, value in self.latency_ms.items()
            )
        if self.memory_mb is not None and self.load_seconds is not None:
            yield f"peak memory: {self.memory_mb:.0f} MB, loaded in {self.load_seconds:.1f} s"


class Champion(Contract):
    """The version that was live at some moment. ``position`` is what compare-and-set compares."""

    version: str
    position: int
    mlflow_run: str
    model_uri: str
    snapshot: Reference
    trained_through: AwareDatetime
    as_of: AwareDatetime

    @classmethod
    def from_row(cls, row: PromotionRow) -> Self:
        """Read a ledger row."""
        return cls(
            version=row.version,
            position=row.position,
            mlflow_run=row.mlflow_run,
            model_uri=row.model_uri,
            trained_through=row.trained_through,
            as_of=row.as_of,
            snapshot=Reference(kind="snapshot", uri=row.snapshot_uri, digest=row.snapshot_digest),
        )


class Rule(Contract):
    """One line of the gate's table."""

    name: str
    observed: str
    bound: str
    passed: bool


VerdictName = Literal["promote", "reject", "inconclusive", "incomparable", "bootstrap"]


class Verdict(Result):
    """The gate's answer and the whole table it rests on."""

    kind = "verdict"
    verdict: VerdictName
    promotes: bool
    reason: str
    rules: tuple[Rule, ...]
    primary: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    champion_version: str | None
    champion_position: int
    mlflow_run: str
    override: str | None = None

    def describe(self) -> Iterator[str]:
        width = max(len(rule.name) for rule in self.rules)
        for rule in self.rules:
            mark = "pass" if rule.passed else "FAIL"
            yield f"  {mark}  {rule.name:<{width}}  {rule.observed}  (bound: {rule.bound})"
        yield f"verdict: {self.verdict.upper()}: {self.reason}"
        yield "next: promote" if self.promotes else "next: nothing; the champion stays"


class Promotion(Result):
    """A version that went live, and what it replaced."""

    kind = "promotion"
    version: str
    position: int
    replaced: str | None
    as_of: AwareDatetime
    mlflow_run: str
    materialized: dict[str, tuple[datetime, datetime]] = {}
    server: str = "no server is declared; nothing to wait for"

    def describe(self) -> Iterator[str]:
        yield f"version {self.version} is live as of {self.as_of.isoformat()}; it replaced {self.replaced or 'nothing'}"
        for view, (start, end) in self.materialized.items():
            yield f"  online features {view}: {start.isoformat()} to {end.isoformat()}"
        yield f"serving: {self.server}"


class ScoredPartition(Contract):
    """The predictions of one partition by one version."""

    partition: str
    revision: int
    version: str
    rows: int
    uri: str
    digest: str
    metrics: dict[str, float] = {}
    unseen: dict[str, int] = {}


class ScoreReport(Result):
    """What was scored, and what was left and why."""

    kind = "score"
    scored: tuple[ScoredPartition, ...] = ()
    skipped: dict[str, str] = {}

    def describe(self) -> Iterator[str]:
        for part in self.scored:
            known = ", ".join(f"{name} {value:.4f}" for name, value in part.metrics.items())
            yield f"scored {part.partition}: {part.rows:,} rows by version {part.version}; {known}"
            for column, count in part.unseen.items():
                yield f"  {column}: {count:,} rows hold a category that version {part.version} never saw"
            yield f"  prediction log: {part.uri}"
        for key, reason in self.skipped.items():
            yield f"not scored {key}: {reason}"
