"""Rises are found, chance is not; pieces and the whole, backfill and live, see the same stream."""

from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.declaration import Declaration, Task
from evergreen.errors import CorruptError
from evergreen.lifecycle.concept import Concept, Errors, Yardstick, follow, new_errors, watch
from evergreen.lifecycle.contracts import (
    Detection,
    DetectorState,
    LabelReport,
    LabelsKnown,
    WatchedPartition,
)
from evergreen.store import Store
from tests.builders import declare
from tests.printing import Figure

BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
ALL = ("adwin", "page_hinkley", "ddm")
CLASSES = ("0", "1")


def watching(folder: Path, *detectors: str, **sections: Any) -> Declaration:
    return declare(folder, monitoring={"drift": {"concept": detectors or ALL}}, **sections)


def answered(
    rng: np.random.Generator, rows: int, flipped: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and a calibrated model's answers; a share of labels is turned round."""
    chance = rng.beta(1, 2, rows)
    labels = rng.binomial(1, chance)
    return np.where(rng.random(rows) < flipped, 1 - labels, labels), np.clip(chance, 0.001, 0.999)


@pytest.fixture(scope="module")
def yardstick() -> Yardstick:
    labels, answers = answered(np.random.default_rng(99), 5000)
    return Yardstick.of(Task.BINARY, labels, answers, CLASSES)


def stream(yardstick: Yardstick, *stretches: tuple[int, float], seed: int = 1) -> Errors:
    """Errors of stretches of rows, each with a share of labels turned round; 1,000 a partition."""
    rng = np.random.default_rng(seed)
    parts = [answered(rng, rows, flipped) for rows, flipped in stretches]
    labels, answers = (np.concatenate(each) for each in zip(*parts, strict=True))
    rows = len(labels)
    days = [BEGIN + timedelta(days=i // 1000) for i in range(rows)]
    return Errors(
        yardstick.shares(Task.BINARY, labels, answers),
        ((answers >= 0.5) != labels).astype(float),
        [f"{day:%Y-%m-%d}" for day in days],
        [BEGIN + timedelta(minutes=i) for i in range(rows)],
    )


def cut(errors: Errors, begin: int, end: int) -> Errors:
    return Errors(
        errors.shares[begin:end],
        None if errors.wrong is None else errors.wrong[begin:end],
        errors.partitions[begin:end],
        errors.at[begin:end],
    )


@pytest.mark.parametrize("name", ALL)
def test_a_rise_is_found_by_each_and_its_fall_too(
    tmp_path: Path, yardstick: Yardstick, name: str
) -> None:
    errors = stream(yardstick, (4000, 0.0), (4000, 0.35), (6000, 0.0))
    found = follow(watching(tmp_path, name), Store(str(tmp_path)), "1", errors, yardstick, None)
    assert found.detections
    rise = found.detections[0]
    assert (rise.detector, rise.worse, rise.version) == (name, True, "1")
    assert "2013-01-05" <= rise.window <= "2013-01-06"
    assert rise.after > 1.3 * rise.before
    fall = found.detections[-1]
    assert not fall.worse
    assert fall.window >= "2013-01-09"
    assert fall.after < fall.before
    assert found.state.worse_since is None
    assert found.state.rows == 14_000


def test_worse_since_is_the_partition_of_the_rise(tmp_path: Path, yardstick: Yardstick) -> None:
    errors = stream(yardstick, (3000, 0.0), (3000, 0.2), (3000, 0.45))
    found = follow(watching(tmp_path), Store(str(tmp_path)), "1", errors, yardstick, None)
    worse = [each for each in found.detections if each.worse]
    assert len(worse) >= 2  # it rose twice; since is the first
    assert found.state.worse_since == worse[0].window
    assert [d.at for d in found.detections] == sorted(d.at for d in found.detections)


def test_an_improvement_is_not_worse(tmp_path: Path) -> None:
    """A version whose holdout was as noisy as its first rows; then the noise ends."""
    noisy = answered(np.random.default_rng(98), 5000, 0.35)
    measure = Yardstick.of(Task.BINARY, *noisy, CLASSES)
    errors = stream(measure, (4000, 0.35), (4000, 0.0))
    declaration = watching(tmp_path, "adwin", "page_hinkley")
    found = follow(declaration, Store(str(tmp_path)), "1", errors, measure, None)
    assert {each.detector for each in found.detections} == {"adwin", "page_hinkley"}
    assert not any(each.worse for each in found.detections)
    assert found.state.worse_since is None


def test_a_noisy_stretch_is_one_change(tmp_path: Path) -> None:
    """Errors six times as large vary six times as much: they rise once, and don't fall."""
    rng = np.random.default_rng(1)
    measure = Yardstick.of(Task.REGRESSION, np.zeros(1000), rng.normal(0, 1, 1000))
    noise = np.r_[rng.normal(0, 1, 500), rng.normal(0, 6, 5000)]
    rows = len(noise)
    shares = measure.shares(Task.REGRESSION, noise, np.zeros(rows))
    errors = Errors(shares, None, ["p"] * rows, [BEGIN] * rows)
    declaration = watching(
        tmp_path, "page_hinkley", task="regression", evaluation={"primary": "mean_absolute_error"}
    )
    found = follow(declaration, Store(str(tmp_path)), "1", errors, measure, None)
    assert [each.worse for each in found.detections] == [True]


def test_a_stationary_stream(tmp_path: Path, yardstick: Yardstick, figure: Figure) -> None:
    """20 streams of 10,000 rows in which nothing happens."""
    rows, runs = 10_000, 20
    found: dict[str, int] = dict.fromkeys(ALL, 0)
    for seed in range(runs):
        errors = stream(yardstick, (rows, 0.0), seed=seed)
        seen = follow(watching(tmp_path), Store(str(tmp_path)), "1", errors, yardstick, None)
        for each in seen.detections:
            found[each.detector] += 1
    figure(f"false detections in {rows * runs:,} stationary rows: {found}")
    assert found["adwin"] <= 1
    assert found["page_hinkley"] <= 3
    assert found["ddm"] <= 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5999), max_size=6, unique=True), st.integers(0, 5))
def test_pieces_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    """However the stream is cut, detections, means and the last state are exactly the same."""
    folder = tmp_path_factory.mktemp("pieces")
    declaration, store = watching(folder), Store(str(folder))
    measure = Yardstick(4.6, 0.1, 0.1, CLASSES)
    errors = stream(measure, (2000, 0.0), (2000, 0.35), (2000, 0.05), seed=seed)
    whole = follow(declaration, store, "1", errors, measure, None)
    assert whole.detections
    state: DetectorState | None = None
    seen: list[Detection] = []
    edges = [0, *sorted(cuts), 6000]
    for begin, end in pairwise(edges):
        piece = follow(declaration, store, "1", cut(errors, begin, end), measure, state)
        seen += piece.detections
        state = piece.state
    assert tuple(seen) == whole.detections
    assert state == whole.state


def test_a_changed_state_is_refused(tmp_path: Path, yardstick: Yardstick) -> None:
    declaration, store = watching(tmp_path), Store(str(tmp_path))
    errors = stream(yardstick, (1000, 0.0))
    state = follow(declaration, store, "7", errors, yardstick, None).state
    path = Path(state.uri)
    kept = path.read_bytes()
    for changed in (kept.replace(b'"total":', b'"total":9'), b"not even JSON"):
        path.write_bytes(changed)
        with pytest.raises(CorruptError, match=r"detectors of version 7, hashes to .* was changed"):
            follow(declaration, store, "7", errors, yardstick, state)
    path.write_bytes(kept)
    assert follow(declaration, store, "7", errors, yardstick, state).state.rows == 2000


def test_a_state_of_another_river_begins_anew(tmp_path: Path, yardstick: Yardstick) -> None:
    declaration, store = watching(tmp_path), Store(str(tmp_path))
    uri, sha, _ = store.put_object(BytesIO(b'{"river": "0.1", "detectors": {"adwin": {}}}'))
    old = DetectorState(version="1", uri=uri, sha256=sha, rows=500, worse_since="2012-12-01")
    found = follow(declaration, store, "1", stream(yardstick, (1000, 0.0)), yardstick, old)
    assert "0.1 were kept: they begin anew" in found.notes[0]
    assert (found.state.rows, found.state.worse_since) == (1500, "2012-12-01")


def test_detectors_declared_later_begin_then(tmp_path: Path, yardstick: Yardstick) -> None:
    store = Store(str(tmp_path))
    errors = stream(yardstick, (3000, 0.0), (3000, 0.35))
    first = follow(watching(tmp_path, "adwin"), store, "1", cut(errors, 0, 2000), yardstick, None)
    both = follow(
        watching(tmp_path, "adwin", "ddm"),
        store,
        "1",
        cut(errors, 2000, 6000),
        yardstick,
        first.state,
    )
    assert {each.detector for each in both.detections} == {"adwin", "ddm"}


def test_one_row_cannot_dominate(yardstick: Yardstick) -> None:
    labels, answers = np.array([1, 0, 1]), np.array([1e-12, 1e-12, 0.5])
    shares = yardstick.shares(Task.BINARY, labels, answers)
    assert shares.max() == 1.0
    assert shares == pytest.approx([1.0, 0.0, np.log(2) / yardstick.largest])
    errors = Yardstick.of(Task.REGRESSION, np.zeros(100), np.ones(100))
    assert errors.shares(Task.REGRESSION, np.zeros(2), np.array([2.0, 900.0])) == pytest.approx(
        [0.2, 1.0]
    )
    perfect = Yardstick.of(Task.REGRESSION, np.zeros(100), np.zeros(100))
    assert perfect.largest > 0


def test_regression_has_no_wrong_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = np.r_[rng.normal(0, 1, 3000), rng.normal(0, 2.5, 3000)]
    measure = Yardstick.of(Task.REGRESSION, np.zeros(1000), rng.normal(0, 1, 1000))
    errors = Errors(
        measure.shares(Task.REGRESSION, noise, np.zeros(6000)),
        None,
        [str(i // 1000) for i in range(6000)],
        [BEGIN] * 6000,
    )
    declaration = watching(
        tmp_path, task="regression", evaluation={"primary": "mean_absolute_error"}
    )
    found = follow(declaration, Store(str(tmp_path)), "1", errors, measure, None)
    assert {each.detector for each in found.detections} == {"adwin", "page_hinkley"}
    assert found.detections[0].before == pytest.approx(0.8, abs=0.1)  # in the label's unit
    assert found.notes == ("DDM counts wrong classes; a regression has none, so it is left out",)


def test_a_million_rows(tmp_path: Path, yardstick: Yardstick, figure: Figure) -> None:
    rng = np.random.default_rng(1)
    errors = Errors(
        rng.random(1_000_000),
        (rng.random(1_000_000) < 0.2).astype(float),
        ["2013-01-01"] * 1_000_000,
        [BEGIN] * 1_000_000,
    )
    begun = perf_counter()
    found = follow(
        watching(tmp_path), Store(str(tmp_path)), "1", errors, Yardstick(4.6, 0.5, 0.29), None
    )
    took = perf_counter() - begun
    figure(f"1,000,000 rows, three detectors: {took:.1f} s")
    assert len(found.detections) <= 3, "nothing happens in it"


# The stream as it is read from prediction logs and label tables.


class Log:
    """Partitions of 400 rows in a store, whose labels come ``delay`` days after, out of order."""

    def __init__(self, folder: Path, days: int = 12, turned: int = 6, delay: int = 3) -> None:
        self.store, self.days = Store(str(folder)), days
        rng = np.random.default_rng(5)
        self.parts: list[WatchedPartition] = []
        for day in range(days):
            labels, answers = answered(rng, 400, 0.5 if day >= turned else 0.0)
            start = BEGIN + timedelta(days=day)
            times = pd.date_range(start, periods=400, freq="3min").as_unit("us")
            wait = pd.to_timedelta(rng.uniform(0, 2 * delay, 400), unit="D").round("1s")
            rows = np.arange(400)
            log = pd.DataFrame({"row_id": rows, "event_timestamp": times, "prediction": answers})
            known = pd.DataFrame(
                {"row_id": rows, "label": labels.astype(float), "label_timestamp": times + wait}
            )
            corrected = known.iloc[:40].assign(
                label=1 - known["label"].iloc[:40],
                label_timestamp=known["label_timestamp"].iloc[:40] + timedelta(days=2),
            )
            table = pd.concat([known, corrected], ignore_index=True).sample(frac=1, random_state=1)
            self.parts.append(
                WatchedPartition(
                    partition=f"{start:%Y-%m-%d}",
                    revision=1,
                    version="1",
                    start=start,
                    end=start + timedelta(days=1),
                    predictions=self.store.put_table(f"log/{day}.parquet", log),
                    labels=self.store.put_table(f"labels/{day}.parquet", table),
                    rows=400,
                    matured=0,
                )
            )

    def report(self, as_of: datetime, before: datetime | None) -> LabelReport:
        over = [part for part in self.parts if part.end <= as_of]
        known = [
            part.model_copy(
                update={
                    "before": LabelsKnown(uri=part.labels, as_of=before)
                    if before is not None and part.end <= before
                    else None
                }
            )
            for part in over
        ]
        return LabelReport(model="example", as_of=as_of, sequence=1, partitions=tuple(known))

    def watch(
        self, declaration: Declaration, yardstick: Yardstick, *moments: datetime
    ) -> tuple[list[Detection], DetectorState]:
        before: datetime | None = None
        state: DetectorState | None = None
        found: list[Detection] = []
        for moment in moments:
            seen = watch(
                declaration, self.store, self.report(moment, before), "1", yardstick, state
            )
            if isinstance(seen, Concept):
                found += seen.detections
                state = seen.state
            before = moment
        assert state is not None
        return found, state


def test_a_backfill_is_what_live_monitoring_was(tmp_path: Path, yardstick: Yardstick) -> None:
    """Every day, or once at the end: late, corrected and unordered labels, one stream."""
    log, declaration = Log(tmp_path), watching(tmp_path)
    end = BEGIN + timedelta(days=30)
    live = log.watch(
        declaration, yardstick, *(BEGIN + timedelta(days=1 + i, hours=7) for i in range(20)), end
    )
    at_once = log.watch(declaration, yardstick, end)
    assert live == at_once
    detections, state = live
    assert any(each.worse for each in detections)
    assert state.rows == 12 * 400  # each row once, though forty a day were corrected
    assert state.worse_since is not None
    assert state.worse_since >= "2013-01-06"


def test_nothing_new_is_nothing(tmp_path: Path, yardstick: Yardstick) -> None:
    log, declaration = Log(tmp_path), watching(tmp_path)
    end = BEGIN + timedelta(days=30)
    assert watch(declaration, log.store, log.report(end, end), "1", yardstick, None) is None
    assert watch(declaration, log.store, log.report(end, None), "2", yardstick, None) is None
    early = log.report(BEGIN, None)
    assert new_errors(declaration, log.store, early.partitions, BEGIN, yardstick) is None


def test_order_is_when_labels_became_known(tmp_path: Path, yardstick: Yardstick) -> None:
    log, declaration = Log(tmp_path), watching(tmp_path)
    end = BEGIN + timedelta(days=30)
    found = new_errors(declaration, log.store, log.parts, end, yardstick)
    assert found is not None
    assert list(found.at) == sorted(found.at)
    assert list(found.partitions) != sorted(found.partitions)
    again = new_errors(declaration, log.store, reversed(log.parts), end, yardstick)
    assert again is not None
    assert list(again.partitions) == list(found.partitions)
    assert (again.shares == found.shares).all()


def test_a_class_never_seen_is_the_largest_error(tmp_path: Path) -> None:
    store, declaration = Store(str(tmp_path)), watching(tmp_path, task="multiclass_classification")
    measure = Yardstick(4.6, 0.1, 0.1, ("a", "b", "c"))
    log = pd.DataFrame({f"prediction_{k}": [0.8, 0.8, 0.8] for k in range(3)})
    log[["prediction_1", "prediction_2"]] = 0.1
    known = pd.DataFrame({"row_id": range(3), "label": ["a", "zeppelin", "b"]})
    part = WatchedPartition(
        partition="p",
        revision=1,
        version="1",
        start=BEGIN,
        end=BEGIN,
        predictions=store.put_table("log.parquet", log.assign(row_id=range(3))),
        labels=store.put_table("labels.parquet", known.assign(label_timestamp=pd.Timestamp(BEGIN))),
        rows=3,
        matured=3,
    )
    found = new_errors(declaration, store, [part], BEGIN, measure)
    assert found is not None
    assert found.shares == pytest.approx([-np.log(0.8) / 4.6, 1.0, -np.log(0.1) / 4.6])
    assert found.wrong is not None
    assert found.wrong.tolist() == [0.0, 1.0, 1.0]
