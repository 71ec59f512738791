"""Labels that land in a table of their own, beside the same rows with them inside."""

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Partition
from evergreen.lifecycle.sets import read_part, read_rows
from evergreen.workspace import Workspace
from tests.builders import declare, store_frame, store_labels
from tests.feature_models import (
    AS_OF,
    DAYS,
    declare_flights,
    flights,
    prepared,
    store_days,
    times_of_files,
    weather,
)

LABEL = {
    "column": "late",
    "timestamp": "known_at",
    "uri": "landing/labels/{partition}.parquet",
    "key": ["flight"],
}


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare_flights(tmp_path / "example")


def names(day: str) -> list[str]:
    return [f"{day} {number}" for number in range(48)]


@pytest.fixture
def apart(tmp_path: Path) -> Declaration:
    data = {
        "uri": "landing/flights/{partition}.parquet",
        "sources": {"weather": {"uri": "landing/weather/{partition}.parquet"}},
        "label": LABEL,
    }
    return declare_flights(tmp_path / "apart", data=data)


def rows_of(workspace: Workspace) -> list[Partition]:
    return [
        store_frame(
            workspace,
            flights(day).drop(columns=["late", "label_timestamp"]).assign(flight=names(day)),
            key=day,
            sources={"weather": weather(day)},
        )
        for day in DAYS
    ]


def labels_of(workspace: Workspace) -> list[Partition]:
    """Every flight's label, by the day on which it became known, in no order."""
    every = pd.concat([flights(day).assign(flight=names(day)) for day in DAYS])
    every = every[["flight", "late", "label_timestamp"]].rename(
        columns={"label_timestamp": "known_at"}
    )
    by_day = every["known_at"].dt.strftime("%Y-%m-%d")
    return [
        store_labels(workspace, part.sample(frac=1, random_state=0), key=str(key))
        for key, part in every.groupby(by_day)
    ]


def test_training_and_holdout_are_those_of_labels_in_the_rows(
    declaration: Declaration, apart: Declaration, workspace: Workspace
) -> None:
    inside = prepared(declaration, workspace, *store_days(workspace))
    labels = labels_of(workspace)
    found = prepared(apart, workspace, *rows_of(workspace), labels=tuple(labels))
    assert [p.key for p in labels] == ["2026-01-02", "2026-01-03", "2026-01-04"]
    for field in ("rows", "training_rows", "holdout_rows", "training_end", "holdout_start"):
        assert getattr(found, field) == getattr(inside, field)
    for which in ("training", "holdout"):
        mine = read_rows(workspace.store, found, which)
        pd.testing.assert_frame_equal(mine, read_rows(workspace.store, inside, which))
        assert len(mine) > 40


def test_parts_are_reused_when_only_labels_arrived(
    apart: Declaration, workspace: Workspace
) -> None:
    rows, labels = rows_of(workspace), tuple(labels_of(workspace))
    early = prepared(apart, workspace, *rows, labels=labels[:1], purpose="score")
    parts = times_of_files(workspace)
    late = prepared(apart, workspace, *rows, labels=labels)
    assert late.reused == 3
    assert [p.uri for p in early.parts] == [p.uri for p in late.parts]
    assert times_of_files(workspace).items() >= parts.items(), "nothing is written again"
    assert [a.labels == b.labels for a, b in zip(early.parts, late.parts, strict=True)] == [
        True,  # nothing new is about the first day
        False,
        False,
    ]


def test_the_label_known_by_then_counts(apart: Declaration, workspace: Workspace) -> None:
    rows, labels = rows_of(workspace), labels_of(workspace)
    before = prepared(apart, workspace, *rows, labels=tuple(labels))
    mend = pd.DataFrame({"flight": [names(DAYS[0])[1]] * 2, "late": [7.0, 9.0]})
    mend["known_at"] = pd.to_datetime(["2026-01-03T23:00Z", "2026-01-05T01:00Z"])
    third, fifth = mend.iloc[:1], mend.iloc[1:]
    labels[1] = store_labels(
        workspace,
        pd.concat([workspace.store.get_table(labels[1].files["labels"].stored), third]),
        key=labels[1].key,
        revision=2,
    )
    labels.append(store_labels(workspace, fifth, key="2026-01-05"))
    after = prepared(apart, workspace, *rows, labels=tuple(labels))
    assert after.digest_of_rows != before.digest_of_rows
    assert after.reused == 3
    was, now = (read_rows(workspace.store, each, "training") for each in (before, after))
    changed = now["label"] != was["label"]
    assert now.loc[changed, ["partition", "row_id", "label"]].to_numpy().tolist() == [
        [DAYS[0], 1, 7.0]
    ]
    late = {"as_of": datetime(2026, 2, 1, tzinfo=UTC)}
    last = prepared(apart, workspace, *rows, labels=tuple(labels), **late)
    assert read_rows(workspace.store, last, "training")["label"].max() == 9.0


def test_a_part_of_its_own_has_the_labels_known(apart: Declaration, workspace: Workspace) -> None:
    rows, labels = rows_of(workspace), tuple(labels_of(workspace))
    found = prepared(apart, workspace, *rows, labels=labels, purpose="score")
    part = found.parts[1]
    assert read_part(workspace.store, part, AS_OF)["label"].notna().all()
    noon = datetime(2026, 1, 3, 12, tzinfo=UTC)
    assert read_part(workspace.store, part, noon)["label"].notna().sum() == 25
    assert workspace.store.get_table(part.uri)["label"].isna().all()


def test_without_a_module_neither_key_nor_label_is_a_feature(
    workspace: Workspace, tmp_path: Path
) -> None:
    plain = declare(tmp_path, data={"label": LABEL})
    rows = rows_of(workspace)[:1]
    found = prepared(plain, workspace, *rows, purpose="score")
    assert [feature.name for feature in found.features] == ["carrier", "distance"]
