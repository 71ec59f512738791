"""Prepare: raw partitions → feature tables → parts, joined point in time.

Each partition gives one part, named by what it was made from; a part that is there is not made
again, so a retrain costs its new partitions. Labels are judged when the set is split; those that
land in a table of their own are put beside the parts.
"""

from __future__ import annotations

from collections.abc import Iterator

from evergreen.declaration import Declaration, format_duration
from evergreen.errors import DataBlockedError
from evergreen.lifecycle.contracts import FeaturePart, FeatureSet, Snapshot, ValidationReport
from evergreen.lifecycle.definition_reading import load
from evergreen.lifecycle.features import apply_definitions
from evergreen.lifecycle.labels import label_tables
from evergreen.lifecycle.parts import make_part, request_features
from evergreen.lifecycle.rows import MAIN
from evergreen.lifecycle.sets import Split, split
from evergreen.lifecycle.tables import FeatureTables
from evergreen.store import digest_of
from evergreen.workspace import Workspace


def prepare(
    declaration: Declaration, workspace: Workspace, snapshot: Snapshot, validation: ValidationReport
) -> FeatureSet:
    """Build what is missing of a snapshot's features.

    To score, a blocked partition is left out; to train, any blocks the whole.

    :raises DataBlockedError: when data is blocked, or too few rows are left to learn from.
    :raises DeclarationError: when a feature function returns what can't be used.
    """
    _check_validated(declaration, snapshot, validation)
    columns = snapshot.columns[MAIN]
    definitions = load(declaration, columns)
    apply_definitions(declaration, workspace, columns)
    every = sorted((*snapshot.context, *snapshot.partitions), key=lambda partition: partition.start)
    usable = [partition for partition in every if partition.key not in validation.blocked]
    tables = FeatureTables(
        declaration,
        workspace.store,
        definitions,
        usable,
        validation.quarantined,
        workspace.feature_store,
    )
    window = {partition.key for partition in snapshot.partitions}
    made = [make_part(tables, partition) for partition in usable if partition.key in window]
    store, labels = workspace.store, snapshot.labels
    beside = label_tables(declaration, store, snapshot.partitions, labels).tables
    uris = {key: store.uri(table) for key, table in beside.items()}
    found = FeatureSet(
        model=declaration.name,
        purpose=snapshot.purpose,
        snapshot=validation.snapshot,
        as_of=snapshot.as_of,
        features=(*definitions.features, *request_features(definitions, made)),
        parts=tuple(_beside(each.part, uris.get(each.part.partition)) for each in made),
        rows=sum(each.part.rows for each in made),
        reused=sum(each.reused for each in made),
    )
    return _with_split(declaration, workspace, found) if snapshot.purpose == "train" else found


def _check_validated(
    declaration: Declaration, snapshot: Snapshot, validation: ValidationReport
) -> None:
    if validation.snapshot != (digest := digest_of(snapshot.to_dict())):
        raise DataBlockedError(
            f"{declaration.name}: the validation is of snapshot {validation.snapshot[:12]}, the data "
            f"is snapshot {digest[:12]}. Validate this snapshot first."
        )
    partitions = {partition.key for partition in (*snapshot.context, *snapshot.partitions)}
    whole = set(validation.blocked) - partitions
    if validation.blocked and (snapshot.purpose == "train" or whole):
        raise DataBlockedError(
            f"{declaration.name}: blocked by validation: {', '.join(validation.blocked)}. "
            "Its report says by which checks; land corrected files, or exclude the partitions."
        )


def _with_split(declaration: Declaration, workspace: Workspace, found: FeatureSet) -> FeatureSet:
    """The set parted into training and holdout, or a refusal when either is too small."""
    window, holdout = declaration.training.window, declaration.training.holdout
    cut = split(
        workspace.store,
        found.parts,
        found.as_of,
        length=holdout.length,
        embargo=holdout.embargo,
        skip_recent=window.skip_recent,
    )
    for side, rows, needed in (
        ("training.window", cut.training_rows, window.min_rows),
        ("training.holdout", cut.holdout_rows, holdout.min_rows),
    ):
        if rows < needed:
            raise DataBlockedError(
                f"{declaration.name}: {side} has {rows:,} matured rows as of "
                f"{found.as_of.isoformat()}, declared are at least {needed:,} (min_rows). Training "
                f"ends at {cut.training_end.isoformat()}; the holdout of "
                f"{format_duration(holdout.length)} begins at {cut.holdout_start.isoformat()}. "
                "Wait for labels, or change the declaration."
            )
    parts = (
        tuple(_clipped(part, cut) for part in found.parts) if window.skip_recent else found.parts
    )
    moments = [m.isoformat() for m in (cut.training_end, cut.holdout_start, cut.end, found.as_of)]
    return found.model_copy(
        update={
            "parts": parts,
            "training_end": cut.training_end,
            "holdout_start": cut.holdout_start,
            "training_rows": cut.training_rows,
            "holdout_rows": cut.holdout_rows,
            "digest_of_rows": digest_of([[*_names(workspace, parts)], moments]),
        }
    )


def _beside(part: FeaturePart, labels: str | None) -> FeaturePart:
    return part.model_copy(update={"labels": labels}) if labels else part


def _clipped(part: FeaturePart, cut: Split) -> FeaturePart:
    """A part that ends where ``skip_recent`` begins: its newer rows are on neither side."""
    return part.model_copy(update={"end": max(part.start, min(part.end, cut.end))})


def _names(workspace: Workspace, parts: tuple[FeaturePart, ...]) -> Iterator[str]:
    """What the rows and labels of parts are known by, in every deployment."""
    for part in parts:
        yield part.digest
        if part.labels:
            yield part.labels.removeprefix(f"{workspace.store.root}/")
