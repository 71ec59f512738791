"""A snapshot is fixed by its decision: what lands later, or is known later, isn't part of it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from evergreen.errors import DataBlockedError
from evergreen.lifecycle.contracts import Snapshot
from evergreen.lifecycle.extraction import extract, extract_unscored
from evergreen.lifecycle.ingestion import ingest
from tests.lifelike import LATER, Life

THIRD = datetime(2013, 1, 3, tzinfo=UTC)


def cut(
    life: Life, as_of: datetime = THIRD, sequence: int = 100, lookback: timedelta = timedelta(0)
) -> Snapshot:
    return extract(
        life.declaration, life.workspace, as_of=as_of, sequence=sequence, lookback=lookback
    )


def test_labels_not_known_by_then_are_not_matured(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    life.land(1)
    half_past_noon = datetime(2013, 1, 1, 12, 30, tzinfo=UTC)
    snapshot = cut(life, as_of=half_past_noon)
    known = 1 + (12 * 60 + 30 - 60) // 5  # a row each 5 minutes, its label known after an hour
    assert (snapshot.rows, snapshot.matured, snapshot.immature) == (200, known, 200 - known)


def test_what_is_registered_later_is_not_part_of_it(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    life.land(1)
    before = cut(life, sequence=1)
    life.land(2)
    life.land(1, slope=9.0)  # a new revision
    assert cut(life, sequence=1) == before
    after = cut(life, sequence=3)
    assert [(p.key, p.revision) for p in after.partitions] == [("2013-01-01", 2), ("2013-01-02", 1)]


def test_the_same_decision_gives_the_same_digest(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    life.land(1)
    assert cut(life).save(life.workspace.store) == cut(life).save(life.workspace.store)


def test_a_sliding_window_slides(tmp_path: Path) -> None:
    window = {"kind": "sliding", "length": "2d"}
    life = Life.begin(tmp_path, training={"estimator": "x.Y", "window": window})
    for day in (1, 2, 3, 4):
        life.land(day)
    assert [p.key for p in cut(life, THIRD + timedelta(days=2)).partitions] == [
        "2013-01-03",
        "2013-01-04",
    ]


def test_rows_before_the_window_come_as_context(tmp_path: Path) -> None:
    window = {"kind": "sliding", "length": "1d"}
    life = Life.begin(tmp_path, training={"estimator": "x.Y", "window": window})
    for day in (1, 2, 3):
        life.land(day)
    snapshot = cut(life, THIRD + timedelta(days=1), lookback=timedelta(hours=6))
    assert ([p.key for p in snapshot.partitions], [p.key for p in snapshot.context]) == (
        ["2013-01-03"],
        ["2013-01-02"],
    )


def test_excluded_partitions_are_left_out(tmp_path: Path) -> None:
    data = {"exclude": ["2013-01-01"]}
    life = Life.begin(tmp_path, data=data)
    life.land(1)
    life.land(2)
    assert [p.key for p in cut(life).partitions] == ["2013-01-02"]


def test_no_matured_label_is_refused_with_the_numbers(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    life.land(1, late=float("nan"))
    with pytest.raises(DataBlockedError, match=r"none of 200 rows has a label .* 200 never"):
        cut(life)


def test_no_partition_is_refused(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    with pytest.raises(DataBlockedError, match="no partition lies in the training window"):
        cut(life)


def test_nothing_is_scored_before_the_first_champion(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    life.land(1)
    assert extract_unscored(life.declaration, life.workspace) is None


class TestLabelsApart:
    """Labels that land in a table of their own."""

    @pytest.fixture
    def life(self, tmp_path: Path) -> Life:
        label = {
            "column": "verdict",
            "timestamp": "known_at",
            "uri": "labels/{partition}.parquet",
            "key": ["order_id"],
        }
        return Life.begin(tmp_path, data={"label": label})

    def land(self, life: Life, day: int) -> None:
        life.land(day, order_id=[f"{day}-{i}" for i in range(200)])

    def say(self, life: Life, day: int, labels: dict[str, float], hour: int = 1) -> None:
        """Land a label file of the day on which these became known."""
        folder = life.workspace.home / "labels"
        folder.mkdir(exist_ok=True)
        known = pd.Timestamp(2013, 1, day, hour, tz="UTC")
        frame = pd.DataFrame(
            {"order_id": labels.keys(), "verdict": labels.values(), "known_at": known}
        )
        frame.to_parquet(folder / f"2013-01-{day:02}.parquet")
        ingest(life.declaration, life.workspace, LATER)

    def test_labels_are_counted_as_they_are_known_by_then(self, life: Life) -> None:
        self.land(life, 1)
        self.say(life, 2, {"1-0": 1.0, "1-1": 0.0, "9-9": 1.0})
        self.say(life, 4, {"1-1": 1.0, "1-2": 1.0})
        early = cut(life, THIRD)
        assert (early.matured, early.immature, early.never) == (2, 1, 197)
        late = cut(life, THIRD + timedelta(days=3))
        assert (late.matured, late.immature, late.never) == (3, 0, 197)
        assert late.orphans == 1
        assert any(
            "labels/2013-01-02 to labels/2013-01-04), 1 labels" in x for x in late.describe()
        )

    def test_labels_registered_later_are_not_part_of_it(self, life: Life) -> None:
        self.land(life, 1)
        self.say(life, 2, {"1-0": 1.0})
        before = cut(life, sequence=2)
        self.say(life, 3, {"1-1": 1.0})
        self.say(life, 2, {"1-0": 0.0, "1-5": 0.0})  # a new revision
        assert cut(life, sequence=2) == before
        after = cut(life, sequence=4)
        assert [str(p) for p in after.labels] == [
            "labels/2013-01-02 (revision 2)",
            "labels/2013-01-03",
        ]
        assert after.save(life.workspace.store) != before.save(life.workspace.store)

    def test_only_files_that_can_hold_labels_of_the_window_are_part_of_it(
        self, tmp_path: Path, life: Life
    ) -> None:
        for day in (1, 2, 3):
            self.land(life, day)
            self.say(life, day, {f"{day}-0": 1.0})
        window = {"kind": "sliding", "length": "2d"}
        training = life.declaration.training.model_copy(
            update={"window": type(life.declaration.training.window).model_validate(window)}
        )
        sliding = life.declaration.model_copy(update={"training": training})
        snapshot = extract(sliding, life.workspace, as_of=THIRD + timedelta(days=1), sequence=100)
        assert [p.key for p in snapshot.labels] == [p.key for p in snapshot.partitions]
        assert (len(snapshot.labels), snapshot.matured) == (2, 2)

    def test_no_label_at_all_is_refused(self, life: Life) -> None:
        self.land(life, 1)
        with pytest.raises(DataBlockedError, match=r"none of 200 rows has a label .* 200 never"):
            cut(life)

    def test_a_snapshot_without_is_written_as_before(self, tmp_path: Path) -> None:
        """So that what older deployments have written keeps its digest."""
        (tmp_path / "other").mkdir()
        life = Life.begin(tmp_path / "other")
        life.land(1)
        snapshot = cut(life).to_dict()
        assert {"labels", "orphans"}.isdisjoint(snapshot)
        assert "source" not in snapshot["partitions"][0]
