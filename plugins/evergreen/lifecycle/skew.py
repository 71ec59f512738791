"""Detect skew: did replicas answer with the features that a training set holds for the same rows?

What came from the online store is put beside the point-in-time join of the tables that landed
since, for the same keys at the same event timestamps, value by value. A difference means that the
model is asked other questions than it learned from: the online store is stale, or a feature is
made in two ways. No retrain can mend that, so the gate doesn't promote until it is gone.

Request features come with the question itself and are in no table: they aren't compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import ServedRow, SkewRow
from evergreen.lifecycle.contracts import (
    FeatureSkew,
    Partition,
    PartitionSkew,
    SkewReport,
    Snapshot,
    ValidationReport,
)
from evergreen.lifecycle.definition_reading import load, lookback
from evergreen.lifecycle.definitions import Definitions
from evergreen.lifecycle.expectations import read_suite
from evergreen.lifecycle.rows import MAIN
from evergreen.lifecycle.servedfeatures import compare_features, to_compare
from evergreen.lifecycle.servedlog import read_served
from evergreen.lifecycle.tables import FeatureTables
from evergreen.store import digest_of
from evergreen.workspace import Workspace

CAUSE = "skew"  # a signal that asks for a person, not for a retrain
Check = Callable[[Snapshot], ValidationReport]
_NAMED = 3  # so many features are named in a signal's reasons, the worst ones


def detect_skew(
    declaration: Declaration,
    workspace: Workspace,
    *,
    as_of: datetime | None = None,
    check: Check | None = None,
) -> SkewReport:
    """Compare what was served in partitions that have landed since; nothing is recorded.

    A partition is compared again when more was served in its time, or when it, its predecessors,
    the feature code, the suite or the bounds are others than its latest comparison's.

    :param as_of: partitions that end later don't count; the data watermark when None.
    :param check: says which rows are set aside, and what is blocked; as for scoring, so that its
        feature tables are found again. Nothing is when None.
    :raises DeclarationError: when a feature function returns what can't be used.
    """
    name = declaration.name
    with workspace.ledger.read() as session:
        moment = as_of or records.watermark(session, name)
        through = records.sequence(session, name)
        rows = records.latest_partitions(session, name, through)
        files = _by_partition(records.served(session, name))
        before = _digests(session, name)
    every = [Partition.from_row(row) for row in rows if row.key not in declaration.data.exclude]
    pending = []
    for partition in every:
        if partition.key in files and moment is not None and partition.end <= moment:
            scope = _scope(declaration, partition, every, files[partition.key])
            digest = _digest_of_next(scope.content, before.get(partition.key, ()))
            pending += [(scope, digest)] if digest else []
    return SkewReport(
        model=name,
        as_of=moment,
        sequence=through,
        bound=declaration.serving.skew.mismatch_at_most,
        partitions=tuple(
            _compare(declaration, workspace, s, digest, check) for s, digest in pending
        ),
    )


def record_skew(declaration: Declaration, workspace: Workspace, report: SkewReport) -> None:
    """Write down what was compared, and raise a signal for each partition that violates.

    One transaction; a repeat writes nothing.
    """
    with workspace.ledger.write() as session:
        records.lock(session, declaration.name)
        for part in report.partitions:
            assert report.as_of is not None  # noqa: S101 - there are partitions, so a watermark
            row = SkewRow(
                model=declaration.name,
                partition=part.partition,
                digest=part.digest,
                start=part.start,
                end=part.end,
                as_of=report.as_of,
                sequence=report.sequence,
                rows=part.compared,
                judged=part.skipped is None,
                violates=list(part.violates),
                evidence=report.model_copy(update={"partitions": (part,)}).to_dict(),
            )
            records.put(session, row, "model", "partition", "digest")
            if part.violates:
                key = f"{part.partition}/{part.digest[:12]}"
                evidence = _evidence(part, report.bound)
                records.raise_signal(session, declaration.name, CAUSE, key, report.as_of, evidence)


@dataclass(frozen=True)
class _Scope:
    """A partition to compare, and what the comparison depends on.

    :ivar context: earlier partitions that its features read.
    :ivar content: digest of all that the comparison depends on.
    """

    partition: Partition
    context: tuple[Partition, ...]
    definitions: Definitions
    content: str


def _scope(
    declaration: Declaration,
    partition: Partition,
    every: Sequence[Partition],
    files: Sequence[ServedRow],
) -> _Scope:
    since = partition.start - lookback(declaration)
    context = tuple(p for p in every if since < p.end <= partition.start)
    definitions, suite = load(declaration, partition.files[MAIN].columns), read_suite(declaration)
    content = digest_of(
        {
            "served": [file.uri for file in files],
            "partitions": [p.digest for p in (*context, partition)],
            "code": definitions.digest,
            "suite": suite.digest if suite else None,  # it says which rows are set aside
            "bounds": declaration.serving.skew.model_dump(mode="json"),
        }
    )
    return _Scope(partition, context, definitions, content)


def _digest_of_next(content: str, before: Sequence[str]) -> str | None:
    """The digest of a partition's next comparison; None when its latest was of the same content.

    What was compared before the latest, and is as then again (say, a change of the code was taken
    back), is compared anew: its digest then names the row that it follows.
    """
    if before and before[-1] in (content, *(digest_of([content, each]) for each in before[-2:-1])):
        return None
    return digest_of([content, before[-1]]) if content in before else content


def _digests(session: Session, model: str) -> dict[str, list[str]]:
    """Partition → the digests of its comparisons, in order."""
    rows = select(SkewRow.partition, SkewRow.digest).where(SkewRow.model == model)
    found: dict[str, list[str]] = {}
    for partition, digest in session.execute(rows.order_by(SkewRow.id)):
        found.setdefault(partition, []).append(digest)
    return found


def _by_partition(files: Sequence[ServedRow]) -> dict[str, list[ServedRow]]:
    found: dict[str, list[ServedRow]] = {}
    for file in files:
        found.setdefault(file.partition, []).append(file)
    return found


def _compare(
    declaration: Declaration, workspace: Workspace, scope: _Scope, digest: str, check: Check | None
) -> PartitionSkew:
    """A partition's answers beside the join offline, or why they weren't judged."""
    partition, least = scope.partition, declaration.serving.skew.min_rows
    served = read_served(declaration, workspace, partition.key)
    asked = to_compare(declaration, served, scope.definitions)
    found: tuple[FeatureSkew, ...] = ()
    skipped = None
    if len(asked) < least:
        skipped = (
            f"{len(asked):,} answers with features of the online store are fewer than "
            f"serving.skew.min_rows: {least:,}"
        )
    elif (tables := _tables(declaration, workspace, scope, check)) is None:
        skipped = "its data is blocked; land corrected files"
    else:
        found = compare_features(tables, partition, asked)
    return PartitionSkew(
        partition=partition.key,
        digest=digest,
        start=partition.start,
        end=partition.end,
        rows=len(served),
        compared=0 if skipped else len(asked),
        features=found,
        skipped=skipped,
    )


def _tables(
    declaration: Declaration, workspace: Workspace, scope: _Scope, check: Check | None
) -> FeatureTables | None:
    """The feature tables to join; None where the partition is blocked."""
    checked = check(_snapshot(declaration, scope)) if check else None
    blocked, aside = (checked.blocked, checked.quarantined) if checked else ((), {})
    if scope.partition.key in blocked:
        return None
    usable = [p for p in (*scope.context, scope.partition) if p.key not in blocked]
    return FeatureTables(
        declaration, workspace.store, scope.definitions, usable, aside, workspace.feature_store
    )


def _snapshot(declaration: Declaration, scope: _Scope) -> Snapshot:
    """The partition as scoring would freeze it; labels don't count here, so it has none."""
    partition = scope.partition
    return Snapshot(
        model=declaration.name,
        purpose="score",
        as_of=partition.end,
        start=partition.start,
        end=partition.end,
        partitions=(partition,),
        context=scope.context,
        rows=partition.rows,
        matured=0,
        immature=0,
        never=partition.rows,
        columns={source: file.columns for source, file in partition.files.items()},
    )


def _evidence(part: PartitionSkew, bound: float) -> Mapping[str, Any]:
    """What a person needs to know of a violation: the worst features first."""
    worst = sorted((f for f in part.features if f.violates), key=lambda f: (-f.share, f.feature))
    told = [
        f"{f.feature} as served in {part.partition} differs from the join offline in {f.share:.2%} "
        f"of the answers, allowed are {bound:.2%}"
        for f in worst[:_NAMED]
    ]
    more = [f"and so do {len(worst) - _NAMED} more features"] if len(worst) > _NAMED else []
    return {
        "partition": part.partition,
        "features": [f.feature for f in worst],
        "share": {f.feature: f.share for f in worst},
        "reasons": [*told, *more],
    }
