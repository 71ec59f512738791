"""What the champion really answered in production, for the rows that everyone is judged on.

The prediction log is found by the ledger's scores: the latest of a partition speaks for its file.
An answer counts when it is the champion's, of the same revision, and of the same row at the same
event time. What was found is kept under the run that looked: the log goes on while an evaluation
is repeated, and a repeat must find what the first attempt found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.ledger import records
from evergreen.lifecycle.contracts import FeatureSet, Reference, Snapshot
from evergreen.lifecycle.fitted import plain_name, targets
from evergreen.lifecycle.metrics import measure_quietly
from evergreen.lifecycle.sets import footer, put_table
from evergreen.lifecycle.watched import known_labels
from evergreen.store import Store
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from evergreen.ledger.tables import LabelRow, ScoreRow

    Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-6
_ROW = ["partition", "row_id", "event_timestamp"]


@dataclass(frozen=True)
class Asked:
    """Whose answers are looked for: the live version, with its classes in order, as of a moment."""

    version: str
    classes: tuple[str, ...]
    as_of: datetime


@dataclass(frozen=True)
class Production:
    """The champion's logged answers, and how it did on all that was learned of them since.

    :ivar asked: whether the log holds an answer for a holdout row, shape (n,).
    :ivar answers: those answers as `evergreen.lifecycle.metrics` wants them, one for each row that
        was asked; what is not finite stands in the log like that.
    :ivar realised: the metrics over every labelled row that the version answered.
    :ivar problem: why answers that the ledger knows of can't be read.
    :ivar notes: answers that were left out, and why.
    """

    asked: Array
    answers: Array
    realised: dict[str, float]
    realised_rows: int
    problem: str | None
    notes: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Whether there are answers, and every one is a number to measure by."""
        import numpy as np

        return bool(len(self.answers) and np.isfinite(self.answers).all())

    def differs(self, anew: Array) -> float | None:
        """The share of logged answers that differ from the version's answers anew by more than
        `TOLERANCE` in any class: training-serving skew. None where nothing was logged.

        :param anew: the answers to every holdout row, shape (n,) or (n, k).
        """
        import numpy as np

        if not len(self.answers):
            return None
        with np.errstate(invalid="ignore"):  # infinity less infinity is no number, and differs
            alike = np.abs(self.answers - anew[self.asked]) <= TOLERANCE
        return float(1 - alike.reshape(len(alike), -1).all(axis=1).mean())


def find_production(
    declaration: Declaration,
    workspace: Workspace,
    feature_set: FeatureSet,
    rows: pd.DataFrame,
    asked: Asked,
    *,
    key: str,
) -> Production:
    """Look up the logged answers to ``rows``, once for each ``key``.

    :param rows: the holdout: ``partition``, ``row_id`` and ``event_timestamp``, one row each.
    :param key: what must be the same for two attempts to find the same.
    """
    name, store = f"tables/production/{key}.parquet", workspace.store
    if not store.exists(name):
        search = _Search(declaration, store, asked, *_known(declaration, workspace))
        found, problems, notes = search.answers(rows, _revisions(workspace, feature_set))
        realised, labelled, left_out = search.realised()
        facts = {
            "realised": realised,
            "realised_rows": labelled,
            "problem": "; ".join(problems) or None,
            "notes": list(dict.fromkeys((*notes, *left_out))),
        }
        put_table(store, name, found, facts)
    uri = store.uri(name)
    return _aligned(declaration, rows, store.get_table(uri), footer(store, uri).note)


def _aligned(
    declaration: Declaration, rows: pd.DataFrame, found: pd.DataFrame, facts: Mapping[str, Any]
) -> Production:
    """What was found, in the order of the holdout's rows."""
    there = rows[_ROW].merge(found, on=_ROW, how="left", validate="1:1", indicator=True)
    asked = (there["_merge"] == "both").to_numpy()
    columns = [name for name in found.columns if name not in _ROW]
    answers = there.loc[asked, columns].to_numpy("float64")
    return Production(
        asked=asked,
        answers=answers if declaration.task is Task.MULTICLASS else answers[:, 0],
        realised=dict(facts["realised"]),
        realised_rows=facts["realised_rows"],
        problem=facts["problem"],
        notes=tuple(facts["notes"]),
    )


def _known(
    declaration: Declaration, workspace: Workspace
) -> tuple[dict[str, ScoreRow], dict[tuple[str, str], LabelRow]]:
    """Each partition's latest score, and what the last monitoring knew of its labels."""
    with workspace.ledger.read() as session:
        scores = {row.partition: row for row in records.scores(session, declaration.name)}
        return scores, records.labels_known(session, declaration.name)


def _revisions(workspace: Workspace, feature_set: FeatureSet) -> dict[str, int]:
    """The revision of each partition in the set: its snapshot's; without one the latest."""
    name = f"documents/{Snapshot.kind}/{feature_set.snapshot}.json"
    if workspace.store.exists(name):
        uri = workspace.store.uri(name)
        reference = Reference(kind=Snapshot.kind, uri=uri, digest=feature_set.snapshot)
        snapshot = Snapshot.load(workspace.store, reference)
        return {partition.key: partition.revision for partition in snapshot.partitions}
    with workspace.ledger.read() as session:
        latest = records.latest_partitions(session, feature_set.model)
    return {row.key: row.revision for row in latest}


@dataclass(frozen=True)
class _Search:
    declaration: Declaration
    store: Store
    asked: Asked
    scores: Mapping[str, ScoreRow]
    labels: Mapping[tuple[str, str], LabelRow]

    @property
    def columns(self) -> list[str]:
        """The log's columns that hold an answer."""
        if self.declaration.task is not Task.MULTICLASS:
            return ["prediction"]
        return [f"prediction_{k}" for k in range(len(self.asked.classes))]

    def answers(
        self, rows: pd.DataFrame, revisions: Mapping[str, int]
    ) -> tuple[pd.DataFrame, list[str], list[str]]:
        """The logged answers to ``rows``; what can't be read, and what was left out."""
        import pandas as pd

        found, problems, notes = [], [], []
        for key, wanted in rows[_ROW].groupby("partition", sort=True):
            score = self.scores.get(str(key))
            if score is None or score.version != self.asked.version:
                continue
            if score.revision != revisions.get(score.partition):
                notes.append(
                    f"{key}: the log answers revision {score.revision}, the holdout holds "
                    f"revision {revisions.get(score.partition)}"
                )
                continue
            log = self.log(score)
            if isinstance(log, str):
                problems.append(log)
                continue
            same = wanted.merge(self.own(log), on=_ROW, validate="1:1")
            if left_out := int(wanted["row_id"].isin(log["row_id"]).sum()) - len(same):
                notes.append(f"{key}: {left_out:,} logged rows have another version or event time")
            found.append(same)
        nothing = pd.DataFrame({**{name: rows[name].iloc[:0] for name in _ROW}})
        table = pd.concat(found) if found else nothing.reindex(columns=[*_ROW, *self.columns])
        return table[[*_ROW, *self.columns]].reset_index(drop=True), problems, notes

    def realised(self) -> tuple[dict[str, float], int, list[str]]:
        """The metrics of every labelled row that the version answered, and how many there are."""
        import numpy as np
        import pandas as pd

        parts, notes = [], []
        for part in self._labelled():
            if isinstance(part, str):
                notes.append(part)
            else:
                parts.append(part)
        if not parts:
            return {}, 0, notes
        rows = pd.concat(parts, ignore_index=True)
        answers = rows[self.columns].to_numpy("float64")
        if not np.isfinite(answers).all():
            lost = int((~np.isfinite(answers)).any(axis=1).sum())
            return {}, len(rows), [*notes, f"{lost:,} labelled answers in the log are not finite"]
        task = self.declaration.task
        labels = targets(task, rows["label"], self.asked.classes)
        answers = answers if task is Task.MULTICLASS else answers[:, 0]
        return measure_quietly(self.declaration, labels, answers), len(rows), notes

    def _labelled(self) -> Iterator[pd.DataFrame | str]:
        """Of each partition, the answers whose label is known and of a class the version knows."""
        for key in sorted(self.scores):
            score, label = self.scores[key], self.labels.get((key, self.asked.version))
            if score.version != self.asked.version or label is None:
                continue
            if label.revision != score.revision:
                yield f"{key}: labels are known of revision {label.revision} only"
                continue
            log = self.log(score)
            if isinstance(log, str):
                yield log
                continue
            known = known_labels(self.store.get_table(label.uri), self.asked.as_of)
            if self.declaration.task.classifies:
                known = known[known["label"].isin(self._values(known["label"]))]
            labelled = known[["row_id", "label"]].merge(self.own(log), on="row_id", validate="1:1")
            if len(labelled):
                yield labelled

    def _values(self, labels: pd.Series) -> list[Any]:
        """Of the label values those that are classes of the version, however they are spelt."""
        return [v for v in labels.unique().tolist() if plain_name(v) in self.asked.classes]

    def log(self, score: ScoreRow) -> pd.DataFrame | str:
        """A partition's log with `_ROW`, `columns` and the version; or why it can't be read."""
        import pyarrow as pa

        where = f"the prediction log of {score.partition} ({score.uri})"
        if not self.store.exists(score.uri):
            return f"{where} is gone, though the ledger records {score.rows:,} answers"
        try:
            there = footer(self.store, score.uri).columns
            wrong = {name for name in there if name.startswith("prediction")} ^ set(self.columns)
            if wrong:
                return f"{where} doesn't hold just {', '.join(self.columns)}: {', '.join(sorted(wrong))}"
            columns = ["row_id", "event_timestamp", "model_version", *self.columns]
            rows = self.store.get_table(score.uri, columns)
        except pa.ArrowInvalid as error:
            return f"{where} can't be read as Parquet: {error}"
        if rows["row_id"].duplicated().any():
            return f"{where} answers a row twice"
        return rows.assign(partition=score.partition)

    def own(self, log: pd.DataFrame) -> pd.DataFrame:
        """The rows that the version answered: between the scorer's file and its ledger row lies a
        moment in which the file is another version's already."""
        return log[log["model_version"].astype(str) == self.asked.version]
