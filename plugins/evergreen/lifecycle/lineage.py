"""What results say of data: which files, tables and models a stage read, and which it wrote.

Each kind of result has one entry here: what it names as read, what it names as written, how many
rows it is about, and the word it ends with. A stage also reads what the results it was given
name; which of them, `READS` says. All of it is derived from the documents: nothing is recorded
beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from evergreen.lifecycle import contracts as c
from evergreen.lifecycle.contracts.serving import Materialized
from evergreen.store import Store

# Azure's addresses: what stands before the @ is a container, not a user.
_CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})


@dataclass(frozen=True)
class Data:
    """A document, a file, a table or a model.

    :ivar digest: what it hashes to, or what else tells its version; None where nobody knows.
    :ivar bytes: its size.
    :ivar columns: column → type.
    """

    uri: str
    digest: str | None = None
    rows: int | None = None
    bytes: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and name, after OpenLineage's naming rules."""
        return naming(self.uri)


def naming(uri: str) -> tuple[str, str]:
    """A URI as namespace and name, without any secret that it holds.

    Rules: https://openlineage.io/docs/spec/naming

    >>> naming("s3://bucket/a/b.parquet"), naming("file:///tmp/b.json"), naming("/tmp/b.json")
    (('s3://bucket', 'a/b.parquet'), ('file', '/tmp/b.json'), ('file', '/tmp/b.json'))
    """
    scheme, _, rest = ("file", "", uri) if uri.startswith("/") else uri.partition(":")
    if scheme in ("file", "local"):
        return "file", f"/{rest.lstrip('/')}"
    if not rest.startswith("//"):  # MLflow's own: models:/name/1, runs:/id/model
        return scheme, rest.lstrip("/")
    parts = urlsplit(uri)
    host = parts.netloc if scheme in _CONTAINERS else parts.netloc.rpartition("@")[2]
    return f"{scheme}://{host}", parts.path.lstrip("/") or "/"


@dataclass(frozen=True)
class Told:
    """What a result tells.

    :ivar written: what its stage wrote besides the result's document.
    :ivar read: what its stage read besides what it was given.
    :ivar named: what a stage that is given the result reads by it.
    """

    written: tuple[Data, ...] = ()
    read: tuple[Data, ...] = ()
    named: tuple[Data, ...] = ()
    rows: int | None = None
    conclusion: str | None = None


# The kinds of given results of which a stage reads what they name, not only the document.
READS: Mapping[str, frozenset[str]] = {
    "validate_data": frozenset({"snapshot"}),
    "prepare": frozenset({"snapshot", "validation", "features"}),
    "train": frozenset({"features"}),
    "evaluate": frozenset({"training", "features"}),
    "check_infrastructure": frozenset({"training", "features"}),
    "gate": frozenset({"evaluation"}),
    "score": frozenset({"features"}),
    "monitor": frozenset({"labels"}),
}


def given(store: Store, stage: str, references: Iterable[c.Reference]) -> Iterator[Data]:
    """The documents that a stage was given, and what it reads by them.

    :raises CorruptError: when a document was changed behind our back.
    """
    for reference in references:
        yield Data(uri=reference.uri, digest=reference.digest)
        kind = kinds().get(reference.kind)
        if kind is not None and reference.kind in READS.get(stage, ()):
            yield from told(kind.load(store, reference)).named


def kinds() -> dict[str, type[c.Result]]:
    """Kind → class of every result."""
    return {kind.kind: kind for kind in c.Result.__subclasses__()}


@functools.singledispatch
def told(result: c.Result) -> Told:  # noqa: ARG001 - the entries below take it
    """What a result tells of data; nothing besides its document where no entry says more."""
    return Told()


def _files(partitions: Iterable[c.Partition], *, landed: bool = False) -> tuple[Data, ...]:
    """Files of partitions: as the store keeps them, or where they had landed."""
    return tuple(
        Data(f.uri if landed else f.stored, f.sha256, f.rows, f.bytes, f.columns)
        for partition in partitions
        for f in partition.files.values()
    )


def _version(model: str, version: str | None) -> tuple[Data, ...]:
    """A registered version of a model."""
    return (Data(f"models:/{model}/{version}", digest=version),) if version else ()


@told.register
def _ingest(result: c.IngestReport) -> Told:
    new = result.registered
    return Told(
        written=_files(new),
        read=_files(new, landed=True),
        rows=sum(partition.rows for partition in new),
        conclusion=f"{len(new)} registered, {len(result.refused)} refused",
    )


@told.register
def _snapshot(result: c.Snapshot) -> Told:
    named = _files((*result.partitions, *result.context, *result.labels))
    return Told(read=named, named=named, rows=result.rows)


@told.register
def _validation(result: c.ValidationReport) -> Told:
    aside = tuple(Data(uri) for uri in result.quarantined.values())
    page = (Data(result.report),) if result.report else ()
    blocked = f"blocked: {', '.join(result.blocked)}" if result.blocked else "usable"
    return Told(written=(*aside, *page), named=aside, conclusion=blocked)


@told.register
def _features(result: c.FeatureSet) -> Told:
    parts = tuple(Data(part.uri, part.digest, part.rows) for part in result.parts)
    labels = tuple(Data(part.labels) for part in result.parts if part.labels)
    return Told(written=(*parts, *labels), named=(*parts, *labels), rows=result.rows)


@told.register
def _training(result: c.TrainedModel) -> Told:
    model = (Data(result.model_uri, result.mlflow_run),)
    return Told(written=model, named=model, rows=result.training_rows)


@told.register
def _evaluation(result: c.Evaluation) -> Told:
    table = (Data(result.predictions, rows=result.holdout_rows),)
    champion = _version(result.model, result.champion_version)
    return Told(written=table, read=champion, named=table, rows=result.holdout_rows)


@told.register
def _infrastructure(result: c.InfrastructureReport) -> Told:
    return Told(conclusion="usable" if result.problem is None else f"unusable: {result.problem}")


@told.register
def _decision(result: c.Decision) -> Told:
    return Told(conclusion=result.action)


@told.register
def _verdict(result: c.Verdict) -> Told:
    return Told(conclusion=result.verdict)


@told.register
def _promotion(result: c.Promotion) -> Told:
    version = _version(result.model, result.version)
    return Told(written=version, conclusion=f"version {result.version} is live")


@told.register
def _rollback(result: c.Rollback) -> Told:
    version = _version(result.model, result.version)
    return Told(written=version, conclusion=f"version {result.version} is live again")


@told.register
def _drill(result: c.DrillReport) -> Told:
    read = (*_version(result.model, result.version), *_version(result.model, result.target))
    return Told(read=read, conclusion="passed" if result.passed else "failed")


@told.register
def _bake(result: c.BakeReport) -> Told:
    read = (*_version(result.model, result.version), *_version(result.model, result.former))
    return Told(read=read, rows=result.rows, conclusion=result.outcome)


@told.register
def _score(result: c.ScoreReport) -> Told:
    versions = dict.fromkeys(part.version for part in result.scored)
    return Told(
        written=tuple(Data(part.uri, part.digest, part.rows) for part in result.scored),
        read=tuple(data for version in versions for data in _version(result.model, version)),
        rows=sum(part.rows for part in result.scored),
    )


@told.register
def _labels(result: c.LabelReport) -> Told:
    parts = result.partitions
    predictions = tuple(Data(part.predictions, rows=part.rows) for part in parts)
    labels = tuple(Data(part.labels) for part in parts)
    return Told(
        written=labels,
        read=predictions,
        named=(*predictions, *labels),
        rows=sum(part.rows for part in parts),
    )


@told.register
def _drift(result: c.DriftReport) -> Told:
    windows = result.windows
    violating = [window.window for window in windows if window.violates]
    return Told(
        written=tuple(Data(window.report) for window in windows if window.report),
        rows=sum(window.rows for window in windows),
        conclusion=f"drifted: {', '.join(violating) or 'nothing'}",
    )


@told.register
def _performance(result: c.PerformanceReport) -> Told:
    violating = [window.window for window in result.windows if window.violates]
    return Told(
        written=tuple(
            Data(state.uri, state.sha256, state.rows) for state in result.detectors.values()
        ),
        rows=sum(window.matured for window in result.windows),
        conclusion=f"violated: {', '.join(violating) or 'nothing'}",
    )


@told.register
def _monitoring(result: c.MonitorReport) -> Told:
    causes = ", ".join(signal.cause for signal in result.signals)
    return Told(conclusion=f"signals: {causes or 'none'}")


@told.register
def _compaction(result: c.Compaction) -> Told:
    return Told(written=tuple(map(Data, result.files.values())), rows=result.rows)


@told.register
def _skew(result: c.SkewReport) -> Told:
    skewed = [part.partition for part in result.partitions if part.violates]
    return Told(
        rows=sum(part.compared for part in result.partitions),
        conclusion=f"skewed: {', '.join(skewed) or 'nothing'}",
    )


@told.register
def _materialized(result: Materialized) -> Told:
    # An online store has no address that holds for all of them; its views stand for it.
    written = (Data(f"x-evergreen://{result.model}/online/{view}") for view in result.views)
    return Told(written=tuple(written))


@told.register
def _escalation(result: c.EscalationReport) -> Told:
    return Told(conclusion=result.priority)


@told.register
def _answer(result: c.EscalationAnswer) -> Told:
    return Told(conclusion=result.answer)
