"""Does the relation of inputs to labels change? Detectors on the stream of labelled errors.

A label that becomes known makes one error known; errors are taken in the order in which their
labels became known (of partitions that were over), each row's first label once. So labels in pieces, as monitoring finds them,
and all at once, as a backfill does, are the same stream and give the same detections. What the
detectors know between two monitorings is kept as numbers in a JSON object under its sha256.

Detectors are river's: ADWIN (A. Bifet and R. Gavaldà 2007), Page-Hinkley (E. S. Page 1954) and
DDM (J. Gama et al. 2004); see `evergreen.lifecycle.detectors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from evergreen.declaration import METRICS, Declaration, Task
from evergreen.errors import CorruptError
from evergreen.lifecycle.contracts import Detection, DetectorState, LabelReport, WatchedPartition
from evergreen.lifecycle.detectors import Watcher
from evergreen.lifecycle.fitted import class_indices, plain_name
from evergreen.lifecycle.metrics import classes_of, row_losses
from evergreen.lifecycle.watched import known_labels, logged_answers
from evergreen.store import Store

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

LEAST_CHANCE = 0.01  # log loss counts as if no chance were smaller: no row dominates
MOST_TIMES = 10.0  # an absolute error counts up to so many times the holdout's mean


@dataclass(frozen=True)
class Yardstick:
    """Errors as shares of the largest that counts, which ADWIN's bound is proven for.

    :ivar largest: that error: nats of log loss, or the label's unit.
    :ivar typical: the mean of the holdout's errors, as shares; ``deviation`` their standard one.
    :ivar classes: the names of the version's classes; none for regression.
    """

    largest: float
    typical: float
    deviation: float
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, task: Task, labels: Array, answers: Array, classes: tuple[str, ...] = ()
    ) -> Yardstick:
        """From what the version showed on its holdout, shaped as metrics want it."""
        import numpy as np

        if task.classifies:
            largest = float(-np.log(LEAST_CHANCE))
        else:
            largest = MOST_TIMES * (float(np.abs(labels - answers).mean()) or 1.0)
        shares = cls(largest, 0.0, 0.0).shares(task, labels, answers)
        typical, deviation = max(float(shares.mean()), 0.01), max(float(shares.std()), 0.01)
        return cls(largest, typical, deviation, classes)

    def shares(self, task: Task, labels: Array, answers: Array) -> Array:
        """Each row's error, 0 to 1, shape (n,)."""
        import numpy as np

        metric = METRICS["log_loss" if task.classifies else "mean_absolute_error"]
        losses = row_losses(metric, task, labels, answers)
        assert losses is not None  # noqa: S101 - both are means over rows
        return np.asarray(np.minimum(losses / self.largest, 1.0))


@dataclass(frozen=True)
class Errors:
    """Labelled errors in the order in which they became known, one a row.

    :ivar shares: as `Yardstick` measures them, shape (n,).
    :ivar wrong: whether the answered class was another, shape (n,); None for regression.
    :ivar partitions: the key of each row's partition; ``at`` is when its label became known.
    """

    shares: Array
    wrong: Array | None
    partitions: Sequence[str]
    at: Sequence[datetime]


@dataclass(frozen=True)
class Concept:
    """The detectors after new errors, and what they saw."""

    state: DetectorState
    detections: tuple[Detection, ...] = ()
    notes: tuple[str, ...] = ()


def watch(
    declaration: Declaration,
    store: Store,
    report: LabelReport,
    version: str,
    yardstick: Yardstick,
    before: DetectorState | None,
) -> Concept | None:
    """Let a version's detectors see the errors that became known since the last monitoring.

    :param before: as that monitoring left them; None at first.
    :returns: None when no error is new.
    :raises CorruptError: when the kept state isn't what was written.
    """
    parts = [part for part in report.partitions if part.version == version]
    errors = new_errors(declaration, store, parts, report.as_of, yardstick)
    return follow(declaration, store, version, errors, yardstick, before) if errors else None


def new_errors(
    declaration: Declaration,
    store: Store,
    parts: Iterable[WatchedPartition],
    as_of: datetime,
    yardstick: Yardstick,
) -> Errors | None:
    """The errors of rows whose first label became known since ``before``; None without any.

    A class that the version never saw is the largest error: it gave that class no chance.
    """
    import pandas as pd

    frames = [_new_labels(store, part, as_of) for part in parts]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return None
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.sort_values(["at", "partition", "row_id"], ignore_index=True)
    shares, wrong = _measured(declaration.task, rows, logged_answers(declaration, rows), yardstick)
    return Errors(
        shares,
        wrong if declaration.task.classifies else None,
        rows["partition"].tolist(),
        pd.DatetimeIndex(rows["at"]).to_pydatetime().tolist(),
    )


def _new_labels(store: Store, part: WatchedPartition, as_of: datetime) -> pd.DataFrame:
    """Rows whose first label is new, with answers. A label is known ``at`` its time, but not
    before its partition was over: until then nobody looks, and a backfill keeps to that."""
    import pandas as pd

    labels = store.get_table(part.labels)
    known = labels[labels["label"].notna() & (labels["label_timestamp"] <= as_of)]
    first = known.sort_values(["row_id", "label_timestamp"], kind="stable")
    first = first.drop_duplicates("row_id", keep="first")
    if part.before is not None:
        seen = known_labels(store.get_table(part.before.uri), part.before.as_of)["row_id"]
        first = first[~first["row_id"].isin(seen)]
    if first.empty:
        return first
    log = store.get_table(part.predictions)
    answers = [name for name in log.columns if str(name).startswith("prediction")]
    times = first["label_timestamp"]
    at = times.where(times > part.end, pd.Timestamp(part.end))
    rows = first[["row_id", "label"]].assign(at=at, partition=part.partition)
    return rows.merge(log[["row_id", *answers]], on="row_id")


def _measured(
    task: Task, rows: pd.DataFrame, answers: Array, yardstick: Yardstick
) -> tuple[Array, Array]:
    import numpy as np

    shares, wrong = np.ones(len(rows)), np.ones(len(rows))
    if not task.classifies:
        return yardstick.shares(task, rows["label"].to_numpy("float64"), answers), wrong
    seen = rows["label"].map(plain_name).isin(yardstick.classes).to_numpy()
    if seen.any():
        labels = class_indices(rows.loc[seen, "label"], yardstick.classes)
        shares[seen] = yardstick.shares(task, labels, answers[seen])
        wrong[seen] = classes_of(task, answers[seen]) != labels
    return shares, wrong


def follow(
    declaration: Declaration,
    store: Store,
    version: str,
    errors: Errors,
    yardstick: Yardstick,
    before: DetectorState | None,
) -> Concept:
    """Give errors to the detectors, and keep what these know then.

    :raises CorruptError: as `watch`.
    """
    names = [
        n for n in declaration.monitoring.drift.concept if n != "ddm" or errors.wrong is not None
    ]
    left = set(declaration.monitoring.drift.concept) - set(names)
    notes = ["DDM counts wrong classes; a regression has none, so it is left out"] if left else []
    kept, note = _read(store, before)
    notes += note
    found: list[tuple[int, Detection]] = []
    written: dict[str, Any] = {}
    for name in names:
        watcher = Watcher(name, yardstick.deviation, yardstick.typical)
        if name in kept:
            watcher.restore(kept[name])
        values = errors.wrong if name == "ddm" else errors.shares
        unit = 1.0 if name == "ddm" else yardstick.largest
        assert values is not None  # noqa: S101 - DDM is left out where nothing can be wrong
        for place, old, new in watcher.follow(values.tolist()):
            seen = Detection(
                detector=name,
                version=version,
                window=errors.partitions[place],
                at=errors.at[place],
                before=old * unit,
                after=new * unit,
                worse=new > old,
            )
            found.append((place, seen))
        written[name] = watcher.state()
    detections = tuple(seen for _, seen in sorted(found, key=lambda each: each[0]))
    since = before.worse_since if before else None
    for seen in detections:
        since = (since or seen.window) if seen.worse else None
    uri, sha = _write(store, written)
    rows = (before.rows if before else 0) + len(errors.partitions)
    state = DetectorState(version=version, uri=uri, sha256=sha, rows=rows, worse_since=since)
    return Concept(state, detections, tuple(notes))


def _write(store: Store, written: dict[str, Any]) -> tuple[str, str]:
    import river

    document = {"river": river.__version__, "detectors": written}
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    uri, sha, _ = store.put_object(BytesIO(content))
    return uri, sha


def _read(store: Store, before: DetectorState | None) -> tuple[dict[str, Any], list[str]]:
    """What each detector knew. Numbers of another river may mean something else: begin anew."""
    import river

    if before is None:
        return {}, []
    content = store.read_bytes(before.uri)
    if (found := hashlib.sha256(content).hexdigest()) != before.sha256:
        raise CorruptError(
            f"{before.uri}, the concept-drift detectors of version {before.version}, hashes to "
            f"{found[:12]} where {before.sha256[:12]} was written: it was changed. Restore it from "
            "a backup, or monitor from the beginning to make it anew."
        )
    document = json.loads(content)
    if (kept := document["river"]) != river.__version__:
        return {}, [f"river is {river.__version__}, detectors of {kept} were kept: they begin anew"]
    return dict(document["detectors"]), []
