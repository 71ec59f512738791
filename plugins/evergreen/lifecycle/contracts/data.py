"""What is known of data: partitions, what arrived, snapshots, checks, feature sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import AwareDatetime, Field

from evergreen.ledger.records import DATA
from evergreen.ledger.tables import PartitionRow
from evergreen.lifecycle.contracts.base import Contract, Result


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

    ``files`` is keyed by source; the model's own table is ``data``. Where labels land in a table
    of their own, its files are partitions of the source ``labels``, by when labels became known.
    """

    key: str
    revision: int
    sequence: int
    start: AwareDatetime
    end: AwareDatetime
    digest: str
    rows: int
    files: dict[str, PartitionFile]
    source: str = Field(default=DATA, exclude_if=lambda source: source == DATA)

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
            source=row.source,
        )

    @property
    def name(self) -> str:
        """Its key; ``labels/<key>`` for one of the labels' table."""
        return partition_name(self.source, self.key)

    def __str__(self) -> str:
        return self.name if self.revision == 1 else f"{self.name} (revision {self.revision})"


def partition_name(source: str, key: str) -> str:
    """What a partition is called where those of all tables stand together.

    >>> partition_name("data", "2013-02"), partition_name("labels", "2013-02")
    ('2013-02', 'labels/2013-02')
    """
    return key if source == DATA else f"{source}/{key}"


class Refused(Contract):
    """A landed partition that could not be registered, and why."""

    key: str
    uri: str
    reason: str


class IngestReport(Result):
    """What arrived since the last look: the data's partitions, then the labels' own.

    Keys of the labels' table are written ``labels/<key>``.
    """

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
                    f"  CHANGED AFTER REGISTRATION: {partition.name} is now revision "
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


class Snapshot(Result):
    """An immutable choice of partitions, and the moment as of which labels are known.

    ``partitions`` are the window; ``context`` are earlier ones whose rows only feed features.
    ``columns`` is column → type per source, as found in the newest partition. Where labels land
    in a table of their own, ``labels`` are those of its partitions that can hold labels of the
    window, and ``orphans`` counts the labels in them that are of no row of the window.
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
    labels: tuple[Partition, ...] = Field(default=(), exclude_if=lambda labels: not labels)
    orphans: int = Field(default=0, exclude_if=lambda orphans: not orphans)

    def describe(self) -> Iterator[str]:
        first, last = self.partitions[0], self.partitions[-1]
        yield f"window: {self.start.isoformat()} to {self.end.isoformat()}, as of {self.as_of.isoformat()}"
        yield f"partitions: {len(self.partitions)} ({first} to {last}), context {len(self.context)}"
        yield (
            f"rows: {self.rows:,} = {self.matured:,} matured + {self.immature:,} not yet "
            f"+ {self.never:,} never labelled"
        )
        if self.labels:
            yield (
                f"labels: {len(self.labels)} files ({self.labels[0]} to {self.labels[-1]}), "
                f"{self.orphans:,} labels in them of no row of the window"
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
    """The features of one partition's rows, joined point in time. ``uri`` is Parquet.

    Where labels land in a table of their own, the part's rows have none and ``labels`` is the
    table of all that are known of them, whenever; see `evergreen.lifecycle.sets.read_part`.
    """

    partition: str
    start: AwareDatetime
    end: AwareDatetime
    digest: str
    uri: str
    rows: int
    labels: str | None = Field(default=None, exclude_if=lambda labels: labels is None)


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
