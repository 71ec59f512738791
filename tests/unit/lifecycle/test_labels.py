"""A label finds its row by key: whenever it comes, in whatever file, corrected or not at all."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.errors import DataBlockedError
from evergreen.ledger import records
from evergreen.lifecycle import label_files
from evergreen.lifecycle.contracts import Partition
from evergreen.lifecycle.ingestion import ingest
from evergreen.lifecycle.labels import label_partitions, label_tables, labels_of
from evergreen.lifecycle.watched import known_labels
from evergreen.workspace import Workspace
from tests.builders import declare, store_frame, store_labels, workspace_in

LATER = datetime(2030, 1, 1, tzinfo=UTC)
LABEL: dict[str, Any] = {
    "column": "late",
    "timestamp": "known_at",
    "uri": "landing/labels/{partition}.parquet",
    "key": ["order_id"],
}


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path, data={"label": LABEL})


def orders(day: int, ids: Sequence[Any]) -> pd.DataFrame:
    times = pd.date_range(f"2013-01-{day:02}", periods=len(ids), freq="min", tz="UTC", unit="us")
    return pd.DataFrame({"event_timestamp": times, "origin": "JFK", "order_id": ids, "x": 1.0})


def labels(*rows: tuple[Any, Any, str]) -> pd.DataFrame:
    """Rows of key, label, and when it was known: ``<day> <hour>``."""
    frame = pd.DataFrame(rows, columns=["order_id", "late", "known_at"])
    return frame.assign(known_at=[moment(text) for text in frame["known_at"]]).astype(
        {"known_at": "datetime64[us, UTC]"}
    )


def moment(text: str) -> pd.Timestamp:
    day, hour = text.split()
    return pd.Timestamp(2013, 1, int(day), int(hour), tz="UTC")


def land(workspace: Workspace, day: int, frame: pd.DataFrame, folder: str = "") -> None:
    path = workspace.home / "landing" / folder / f"2013-01-{day:02}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


def land_labels(workspace: Workspace, day: int, *rows: tuple[Any, Any, str]) -> None:
    land(workspace, day, labels(*rows), "labels")


def partition(workspace: Workspace, day: int) -> Partition:
    with workspace.ledger.read() as session:
        rows = records.latest_partitions(session, "example")
    return next(Partition.from_row(row) for row in rows if row.key == f"2013-01-{day:02}")


def known(
    declaration: Declaration, workspace: Workspace, day: int, as_of: str, through: int = 99
) -> dict[int, Any]:
    """Row id → the label known by then, of those registered through a sequence."""
    found = labels_of(declaration, workspace, partition(workspace, day), through)
    return dict(known_labels(found, moment(as_of)).set_index("row_id")["label"])


def test_a_label_in_the_same_row_is_there_whenever_it_becomes_known(
    workspace: Workspace, tmp_path: Path
) -> None:
    declaration = declare(tmp_path)
    times = pd.date_range("2013-01-01", periods=3, freq="h", tz="UTC").as_unit("us")
    frame = pd.DataFrame(
        {
            "event_timestamp": times,
            "origin": "JFK",
            "late": [1.0, None, 0.0],
            "label_timestamp": times + pd.Timedelta(days=9),
        }
    )
    day = store_frame(workspace, frame, key="2013-01-01")
    found = labels_of(declaration, workspace, day, 0)
    assert found["row_id"].tolist() == [0, 2]
    assert found["label"].tolist() == [1.0, 0.0]
    assert found["label_timestamp"].tolist() == [frame["label_timestamp"][i] for i in (0, 2)]
    assert [str(t) for t in found.dtypes] == ["int64", "float64", "datetime64[us, UTC]"]
    assert label_partitions(declaration, workspace, [day], 99) == ()
    assert label_tables(declaration, workspace.store, [day], []).tables == {}


def test_labels_come_late_out_of_order_and_for_several_days_in_one_file(
    declaration: Declaration, workspace: Workspace
) -> None:
    land_labels(workspace, 5, ("b", 1, "5 1"), ("z", 0, "5 2"))
    ingest(declaration, workspace, LATER)
    land(workspace, 1, orders(1, ["a", "b", "c"]))
    land(workspace, 2, orders(2, ["z", "y"]))
    land_labels(workspace, 2, ("a", 0, "2 3"), ("y", 1, "2 4"))
    ingest(declaration, workspace, LATER)
    assert known(declaration, workspace, 1, "9 0") == {0: 0, 1: 1}, "c never"
    assert known(declaration, workspace, 1, "3 0") == {0: 0}
    assert known(declaration, workspace, 2, "9 0") == {0: 0, 1: 1}
    assert known(declaration, workspace, 1, "9 0", through=1) == {1: 1}, "others came later"


def test_a_correction_counts_from_when_it_is_known(
    declaration: Declaration, workspace: Workspace
) -> None:
    land(workspace, 1, orders(1, ["a"]))
    land_labels(workspace, 3, ("a", 1, "3 0"), ("a", 0, "3 5"))
    land_labels(workspace, 2, ("a", 0, "2 1"))
    ingest(declaration, workspace, LATER)
    by = ("2 0", "2 1", "3 0", "3 4", "3 5", "9 0")
    assert [known(declaration, workspace, 1, t) for t in by] == [
        {}, {0: 0}, {0: 1}, {0: 1}, {0: 0}, {0: 0}
    ]  # fmt: skip
    found = labels_of(declaration, workspace, partition(workspace, 1), 99)
    assert found["label"].tolist() == [0, 1, 0], "all that are or will be known"
    early = labels_of(
        declaration, workspace, partition(workspace, 1), 99, until=datetime(2013, 1, 2, tzinfo=UTC)
    )
    assert early["label"].tolist() == [0]


def test_of_two_at_the_same_moment_the_last_in_the_file_counts(
    declaration: Declaration, workspace: Workspace
) -> None:
    land(workspace, 1, orders(1, ["a", "b"]))
    land_labels(workspace, 2, ("a", 1, "2 1"), ("b", 0, "2 1"), ("a", 0, "2 1"), ("b", 1, "2 1"))
    ingest(declaration, workspace, LATER)
    assert known(declaration, workspace, 1, "2 1") == {0: 0, 1: 1}


def test_a_label_without_value_or_key_says_nothing(
    declaration: Declaration, workspace: Workspace
) -> None:
    land(workspace, 1, orders(1, ["a", None, "c"]))
    land_labels(workspace, 1, ("a", 1.0, "1 5"), (None, 1.0, "1 6"), ("a", None, "1 7"))
    ingest(declaration, workspace, LATER)
    assert known(declaration, workspace, 1, "9 0") == {0: 1.0}


def test_a_label_file_landed_again_replaces_what_it_said(
    declaration: Declaration, workspace: Workspace
) -> None:
    land(workspace, 1, orders(1, ["a", "b", "c"]))
    land_labels(workspace, 2, ("a", 1, "2 1"), ("b", 1, "2 1"))
    ingest(declaration, workspace, LATER)
    land_labels(workspace, 2, ("b", 0, "2 1"), ("c", 1, "2 2"))
    assert ingest(declaration, workspace, LATER).registered[0].revision == 2
    assert known(declaration, workspace, 1, "9 0") == {1: 0, 2: 1}, "a's was withdrawn"
    assert known(declaration, workspace, 1, "9 0", through=2) == {0: 1, 1: 1}


def test_orphans_are_counted_and_ignored(declaration: Declaration, workspace: Workspace) -> None:
    days = [
        store_frame(workspace, orders(d, ids), key=f"2013-01-0{d}")
        for d, ids in ((1, ["a"]), (2, ["b"]))
    ]
    files = [
        store_labels(workspace, labels(("a", 1, "1 1"), ("x", 1, "1 1")), key="2013-01-01"),
        store_labels(
            workspace,
            labels(("b", 0, "2 1"), (None, 0, "2 1"), ("x", None, "2 1")),
            key="2013-01-02",
        ),
    ]
    found = label_tables(declaration, workspace.store, days, files)
    assert (found.labels, found.orphans, found.doubled) == (4, 2, 0)
    assert read(workspace, found.tables["2013-01-01"])["label"].tolist() == [1.0]


def test_a_label_known_before_its_partition_began_is_another_ones(
    declaration: Declaration, workspace: Workspace
) -> None:
    """A key that is used again years later doesn't get the old label."""
    days = [store_frame(workspace, orders(d, ["a"]), key=f"2013-01-0{d}") for d in (1, 3)]
    file = store_labels(workspace, labels(("a", 1, "2 1")), key="2013-01-02")
    found = label_tables(declaration, workspace.store, days, [file])
    sizes = [len(read(workspace, table)) for table in found.tables.values()]
    assert (sizes, found.doubled, found.orphans) == ([1, 0], 0, 0)


def test_a_key_in_two_partitions_is_counted(declaration: Declaration, workspace: Workspace) -> None:
    days = [store_frame(workspace, orders(d, ["a"]), key=f"2013-01-0{d}") for d in (1, 2)]
    file = store_labels(workspace, labels(("a", 1, "3 1"), ("a", 0, "3 2")), key="2013-01-03")
    assert label_tables(declaration, workspace.store, days, [file]).doubled == 2


def test_a_new_label_file_changes_the_tables_of_its_rows_only(
    declaration: Declaration, workspace: Workspace
) -> None:
    days = [
        store_frame(workspace, orders(d, [f"{d}a", f"{d}b"]), key=f"2013-01-0{d}") for d in (1, 2)
    ]
    first = store_labels(workspace, labels(("1a", 1, "2 1"), ("2a", 0, "2 2")), key="2013-01-02")
    second = store_labels(workspace, labels(("2b", 1, "3 1")), key="2013-01-03")
    before = label_tables(declaration, workspace.store, days, [first])
    after = label_tables(declaration, workspace.store, days, [first, second])
    assert before.tables["2013-01-01"] == after.tables["2013-01-01"]
    assert before.tables["2013-01-02"] != after.tables["2013-01-02"]
    assert read(workspace, after.tables["2013-01-02"])["row_id"].tolist() == [0, 1]
    assert label_tables(declaration, workspace.store, days, [first, second]) == after


def read(workspace: Workspace, table: str) -> pd.DataFrame:
    return workspace.store.get_table(table)


class TestKeys:
    @pytest.mark.parametrize(
        ("ids", "keys"),
        [
            ([2**60 + 1, 2**60 + 2], [2**60 + 1, 2**60 + 2]),
            ([1.0, None], np.array([1, 7], dtype="int32")),
            ([1, 2], ["1", None]),
            (pd.Categorical(["a", "b"]), ["a", "c"]),
            (
                pd.to_datetime(["2013-01-01", "2013-01-02"], utc=True).as_unit("ns"),
                pd.to_datetime(["2013-01-01T01:00+01:00", "2014-01-01T00:00+01:00"]).as_unit("us"),
            ),
        ],
        ids=["large", "whole", "differ", "categories", "times"],
    )
    def test_the_same_value_is_the_same_key_in_another_type(
        self, declaration: Declaration, workspace: Workspace, ids: Any, keys: Any
    ) -> None:
        day = store_frame(workspace, orders(1, [0, 0]).assign(order_id=ids), key="2013-01-01")
        landed = labels((0, 1, "1 1"), (0, 0, "1 1")).assign(order_id=keys)
        file = store_labels(workspace, landed, key="2013-01-01")
        if isinstance(keys, list) and keys[0] == "1":
            with pytest.raises(DataBlockedError, match=r"label.key order_id is string there and"):
                label_tables(declaration, workspace.store, [day], [file])
            return
        found = label_tables(declaration, workspace.store, [day], [file])
        rows = read(workspace, found.tables["2013-01-01"])["row_id"].tolist()
        assert rows == ([0, 1] if keys[0] == 2**60 + 1 else [0])

    def test_fractions_are_no_keys(self, declaration: Declaration, workspace: Workspace) -> None:
        day = store_frame(workspace, orders(1, [1.5, 2.0]), key="2013-01-01")
        with pytest.raises(DataBlockedError, match="order_id holds float64 values"):
            label_tables(declaration, workspace.store, [day], [])

    def test_a_file_from_before_the_key_was_declared_is_named(
        self, declaration: Declaration, workspace: Workspace
    ) -> None:
        frame = orders(1, ["a"]).drop(columns="order_id")
        day = store_frame(workspace, frame, key="2013-01-01")
        with pytest.raises(DataBlockedError, match="has no column order_id, though"):
            label_tables(declaration, workspace.store, [day], [])

    def test_a_file_without_any_says_nothing_of_types(
        self, declaration: Declaration, workspace: Workspace
    ) -> None:
        none = orders(1, [None, None])
        days = [
            store_frame(workspace, frame, key=f"2013-01-0{d}")
            for d, frame in ((1, none), (2, orders(2, [7, 8])))
        ]
        files = [
            store_labels(workspace, labels((7, None, "2 1")), key="2013-01-02"),
            store_labels(workspace, labels((7, "yes", "3 1"), (9, "no", "3 1")), key="2013-01-03"),
        ]
        found = label_tables(declaration, workspace.store, days, files)
        first, second = (read(workspace, table) for table in found.tables.values())
        assert (len(first), second["label"].tolist(), found.orphans) == (0, ["yes"], 1)

    def test_labels_are_of_one_type(self, declaration: Declaration, workspace: Workspace) -> None:
        day = store_frame(workspace, orders(1, ["a", "b"]), key="2013-01-01")
        files = [
            store_labels(workspace, labels(("a", value, f"{d} 1")), key=f"2013-01-0{d}")
            for d, value in ((1, 1), (2, "yes"))
        ]
        with pytest.raises(DataBlockedError, match="late is string there and number in"):
            label_tables(declaration, workspace.store, [day], files)

    def test_event_time_may_be_part_of_the_key(self, workspace: Workspace, tmp_path: Path) -> None:
        """In local time there, in UTC here; in CSV there, in Parquet here."""
        label = {**LABEL, "key": ["origin", "event_timestamp"], "uri": "labels/{partition}.csv"}
        declaration = declare(tmp_path, data={"label": label, "timezone": "America/New_York"})
        day = store_frame(workspace, orders(2, [1, 2, 3]), key="2013-01-02")
        landed = pd.DataFrame(
            {
                "origin": "JFK",
                "event_timestamp": ["2013-01-01T19:01:00", "2013-01-01T19:00:00"],
                "late": [1, 0],
                "known_at": "2013-01-02 05:00:00",
            }
        )
        file = store_labels(workspace, landed, key="2013-01-02", ending="csv")
        found = label_tables(declaration, workspace.store, [day], [file])
        table = read(workspace, found.tables["2013-01-02"])
        assert dict(zip(table["row_id"], table["label"], strict=True)) == {0: 0, 1: 1}
        assert table["label_timestamp"].tolist() == [pd.Timestamp("2013-01-02T10:00Z")] * 2


events = st.lists(
    st.tuples(
        st.integers(0, 9),  # the order; those from 6 on don't exist
        st.integers(0, 3),  # the label
        st.integers(1, 5),  # the day on which it became known
        st.integers(0, 23),  # the hour
    ),
    max_size=30,
    unique_by=lambda event: (event[0], *event[2:]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=events, as_of=st.integers(1, 6), at_once=st.sampled_from([1, 3, 1000]))
def test_of_any_labels_the_latest_known_of_each_key_counts(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[int, int, int, int]],
    as_of: int,
    at_once: int,
) -> None:
    """Whatever was landed in whatever order, and however few are held in memory at a time."""
    folder = tmp_path_factory.mktemp("any")
    workspace, declaration = workspace_in(folder), declare(folder, data={"label": LABEL})
    placed = {order: (1 + order // 2, order % 2) for order in range(6)}
    days = [
        store_frame(
            workspace, orders(d, [o for o in placed if placed[o][0] == d]), key=f"2013-01-0{d}"
        )
        for d in (1, 2, 3)
    ]
    by_day: Mapping[int, list[tuple[Any, Any, str]]] = {d: [] for d in range(1, 6)}
    for order, label, day, hour in events:
        by_day[day].append((order, label, f"{day} {hour}"))
    files = [
        store_labels(workspace, labels(*rows), key=f"2013-01-0{d}")
        for d, rows in by_day.items()
        if rows
    ]
    moment_known = {(o, d, h): label for o, label, d, h in events}
    expected = {}
    for order, (day, row) in placed.items():
        since = [
            (d, h) for o, d, h in moment_known if o == order and day <= d and (d, h) <= (as_of, 0)
        ]
        if since:
            expected[(day, row)] = moment_known[(order, *max(since))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_files, "AT_ONCE", at_once)
        found = label_tables(declaration, workspace.store, days, files)
    tables = {d: read(workspace, found.tables[f"2013-01-0{d}"]) for d in (1, 2, 3)}
    assert {
        (d, row): label
        for d, table in tables.items()
        for row, label in known_labels(table, moment(f"{as_of} 0"))[["row_id", "label"]].to_numpy()
    } == expected
    strays = [o for o, _, d, _ in events if o not in placed or placed[o][0] > d]
    assert (found.labels, found.orphans, found.doubled) == (len(events), len(strays), 0)
