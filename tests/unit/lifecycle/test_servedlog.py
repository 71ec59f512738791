"""What replicas logged reads back as it was said, in batch scoring's types; what can't be read is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError, DeclarationError
from evergreen.ledger.tables import PartitionRow, PromotionRow
from evergreen.lifecycle import scoring
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import Champion, Origin
from evergreen.lifecycle.servedlog import read_served
from evergreen.workspace import Workspace
from tests.builders import declare, store_frame, workspace_in
from tests.feature_sets import AS_OF, example_rows, store_features
from tests.shipped import answer, files_of, fresh, keys, rows_of, segments_left, ship

DAY = "2013-01-03"


@pytest.fixture
def example(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One ledger for many models."""
    return workspace_in(tmp_path_factory.mktemp("shared"))


# what is written


def test_segments_become_a_file_a_partition(example: Declaration, workspace: Workspace) -> None:
    first, second = [answer(n) for n in range(60, 80)], [answer(n) for n in range(80, 90)]
    ship(workspace, "example", "20130102T000000000000Z-one-00000000", first)
    ship(workspace, "example", "20130102T000030000000Z-two-00000000", second, torn=b'{"request_id"')
    report = compact(example, workspace)
    assert (report.segments, report.rows, report.torn) == (2, 30, 1)
    assert list(report.files) == ["2013-01-01", "2013-01-02"]
    assert set(report.files.values()) == files_of(workspace, "example")
    assert segments_left(workspace, "example") == []
    assert rows_of(example, workspace) == keys(first + second)
    assert rows_of(example, workspace, partition="2013-01-01") == keys(first[:12])
    assert rows_of(example, workspace, partition="2013-01-03") == Counter()
    again = compact(example, workspace)
    assert (again.segments, again.files) == (0, {})


def test_a_line_comes_back_as_it_was_said(example: Declaration, workspace: Workspace) -> None:
    ship(
        workspace,
        "example",
        "s",
        [
            answer(1, event_timestamp="2012-12-31T23:59:59.999999+02:00", online=["x", "kind"]),
            answer(0, features={"x": None, "kind": None}, fallback="defaults", feature_age=None),
        ],
    )
    compact(example, workspace)
    (second, first) = read_served(example, workspace).to_dict("records")
    assert pd.isna(first.pop("row_id"))
    assert first == {
        "event_timestamp": pd.Timestamp("2012-12-31T21:59:59.999999Z"),
        "origin": "o1",
        "x": 0.25,
        "kind": "a",
        "prediction": 0.25,
        "model_version": "1",
        "request_id": "r0",
        "request_row": 1,
        "served_at": pd.Timestamp("2013-01-01T00:20Z"),
        "replica": "one",
        "route": "predict",
        "role": "champion",
        "fallback": None,
        "feature_age": 1.5,
        "online": "x,kind",
    }
    assert pd.isna(second["x"])
    assert second["kind"] is None
    assert second["fallback"] == "defaults"
    assert pd.isna(second["feature_age"])


def test_versions_may_have_different_features(shared: Workspace) -> None:
    declaration = fresh(shared, evaluation={"primary": "log_loss", "slices": ["region", "x"]})
    name = declaration.name
    old = answer(0, features={"x": 1, "gone": "g"}, slices={"region": "north"})
    new = answer(1, features={"x": 2, "made": 3}, model_version="2", slices={"region": None})
    ship(shared, name, "a", [old, new])
    late = answer(2, features={"later": "l", "made": 4}, model_version="3")
    ship(shared, name, "b", [late])
    assert compact(declaration, shared, at_most=1).rows == 2
    assert compact(declaration, shared).rows == 1
    rows = read_served(declaration, shared)
    common = ["row_id", "event_timestamp", "origin"]
    assert list(rows)[:9] == [*common, "x", "gone", "made", "region", "later", "prediction"]
    assert rows["x"].tolist()[:2] == [1.0, 2.0]
    assert pd.isna(rows.loc[2, "x"])
    assert rows["gone"].tolist() == ["g", None, None]
    assert rows["made"].tolist()[1:] == [3.0, 4.0]
    assert rows["region"].tolist() == ["north", None, None]
    assert rows["later"].tolist() == [None, None, "l"]
    assert rows_of(declaration, shared, version="2") == keys([new])


def test_a_type_follows_from_all_that_was_answered(shared: Workspace) -> None:
    declaration = fresh(shared, data={"entities": ["origin", "plane"]})
    large = 2**60 + 1  # float64 would round it
    numbers = [
        answer(n, entities={"origin": "o", "plane": plane}, features={"x": n})
        for n, plane in enumerate([large, None, 7.0])
    ]
    ship(shared, declaration.name, "a", numbers)
    compact(declaration, shared)
    rows = read_served(declaration, shared)
    assert rows["plane"].tolist()[::2] == [large, 7]
    assert rows["plane"].isna().tolist() == [False, True, False]
    text = answer(3, entities={"origin": "o", "plane": "N1"}, features={"x": "three"})
    ship(shared, declaration.name, "b", [text])
    compact(declaration, shared)
    rows = read_served(declaration, shared)
    assert rows["plane"].tolist() == [str(large), None, "7", "N1"]
    assert rows["x"].tolist() == ["0", "1", "2", "three"]


def test_roles_are_asked_for(example: Declaration, workspace: Workspace) -> None:
    lines = [answer(0), answer(1, role="canary"), answer(2, role="shadow", model_version="2")]
    ship(workspace, "example", "a", lines)
    compact(example, workspace)
    assert rows_of(example, workspace) == keys(lines[:2])
    assert rows_of(example, workspace, roles=("shadow",)) == keys(lines[2:])
    assert rows_of(example, workspace, version="2") == Counter()


def test_multiclass_answers_are_columns(shared: Workspace) -> None:
    declaration = fresh(shared, task="multiclass_classification")
    ship(shared, declaration.name, "a", [answer(0, prediction=[0.1, 0.9])])
    ship(shared, declaration.name, "b", [answer(1, prediction=[0.1, 0.2, 0.7])])
    compact(declaration, shared, at_most=1)
    compact(declaration, shared)
    rows = read_served(declaration, shared)
    answers = rows[["prediction_0", "prediction_1", "prediction_2"]]
    assert answers.iloc[1].tolist() == [0.1, 0.2, 0.7]
    assert answers.isna().sum().tolist() == [0, 0, 1]
    assert list(rows)[-11:-9] == ["prediction_2", "model_version"]


# what can't be read


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\x00\x00\n", "malformed"),
        (b"\n", "truncated"),
        (b'{"request_id": "a"}\n', "missing required field"),
        (json.dumps(answer(5, request_row="0")).encode() + b"\n", "request_row"),
        (json.dumps(answer(5, prediction=[0.1])).encode() + b"\n", "it answers"),
        (json.dumps(answer(5, event_timestamp="2013-01-01T00:00:00")).encode() + b"\n", "timezone"),
    ],
)
def test_a_line_that_is_none_is_named(shared: Workspace, bad: bytes, reason: str) -> None:
    declaration = fresh(shared)
    ship(shared, declaration.name, "20130101T0Z-one-aa", [answer(0)], torn=bad)
    with pytest.raises(CorruptError, match=f"20130101T0Z-one-aa.jsonl: line 2 .*{reason}"):
        compact(declaration, shared)
    assert segments_left(shared, declaration.name) == ["20130101T0Z-one-aa.jsonl"]
    assert rows_of(declaration, shared) == Counter()


def test_what_cant_be_read_stops_no_other_segment(shared: Workspace) -> None:
    declaration, lines = fresh(shared), [answer(n) for n in range(4)]
    name = declaration.name
    for segment, line in zip("bdfg", lines, strict=True):
        ship(shared, name, segment, [line])
    for segment in "ace":
        ship(shared, name, segment, [answer(9)], torn=b"{}\n")
    told = r"a.jsonl: line 2 .* Segments besides it that can't be read: 1; compacted: 2\."
    with pytest.raises(CorruptError, match=told):  # what it can't read doesn't use `at_most` up
        compact(declaration, shared, at_most=2)
    assert rows_of(declaration, shared) == keys(lines[:2])
    for compacted in (2, 0):
        with pytest.raises(CorruptError, match=f"can't be read: 2; compacted: {compacted}"):
            compact(declaration, shared)
        assert rows_of(declaration, shared) == keys(lines)
    assert segments_left(shared, name) == ["a.jsonl", "c.jsonl", "e.jsonl"]


def test_a_last_line_without_its_end_was_never_answered(shared: Workspace) -> None:
    declaration = fresh(shared)
    ship(shared, declaration.name, "whole", [answer(0)], torn=json.dumps(answer(1)).encode())
    ship(shared, declaration.name, "only", [], torn=b'{"req')
    ship(shared, declaration.name, "empty", [])
    report = compact(declaration, shared)
    assert (report.segments, report.rows, report.torn) == (3, 1, 2)
    assert rows_of(declaration, shared) == keys([answer(0)])
    assert segments_left(shared, declaration.name) == []


def test_a_feature_may_not_be_named_like_the_logs_own_columns(shared: Workspace) -> None:
    declaration = fresh(shared)
    ship(shared, declaration.name, "a", [answer(0, features={"route": 1.0, "prediction_1": 2.0})])
    with pytest.raises(DeclarationError, match="a column named route, prediction_1, for it has"):
        compact(declaration, shared)


def test_a_file_that_is_gone_is_named(example: Declaration, workspace: Workspace) -> None:
    ship(workspace, "example", "a", [answer(0)])
    (uri,) = compact(example, workspace).files.values()
    workspace.store.path(uri).unlink()
    with pytest.raises(CorruptError, match="is gone, though the ledger records 1 answers"):
        read_served(example, workspace)


def test_other_names_are_not_segments(example: Declaration, workspace: Workspace) -> None:
    ship(workspace, "example", ".half.jsonl.aside-1", [answer(0)])
    workspace.store.put_bytes("served/example/segments/notes.txt", b"notes")
    assert compact(example, workspace).segments == 0
    assert len(segments_left(workspace, "example")) == 2


# beside batch scoring's log


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Declaration, Workspace, str]:
    """A model with a champion, and the address of batch scoring's log of a partition."""
    folder = tmp_path_factory.mktemp("scored")
    workspace = workspace_in(folder)
    declaration = declare(
        folder,
        data={"entities": ["origin", "plane"]},
        evaluation={"primary": "log_loss", "slices": ["gate", "carrier"]},
    )
    rows = example_rows().assign(plane=7, gate=2.0)
    feature_set, reference = store_features(workspace, rows)
    raw = store_frame(workspace, rows[["event_timestamp", "origin", "plane", "gate"]], key=DAY)
    origin = Origin(version="1", trained=reference, features=reference, evaluation=reference)
    promotion = PromotionRow(
        model="example",
        position=1,
        run_id="run 1",
        version="1",
        replaced=None,
        kind="bootstrap",
        reason="",
        as_of=AS_OF,
        mlflow_run="",
        model_uri="",
        snapshot_uri="",
        snapshot_digest="",
        trained_through=AS_OF,
        origin=origin.to_dict(),
        person=None,
    )
    landed = PartitionRow(
        model="example",
        source="data",
        key=raw.key,
        revision=1,
        start=raw.start,
        end=raw.end,
        digest=raw.digest,
        rows=raw.rows,
        late=False,
        files={name: file.to_dict() for name, file in raw.files.items()},
        maturity={},
    )
    with workspace.ledger.write() as session:
        session.add_all([promotion, landed])
    day = rows[rows["partition"] == DAY].reset_index(drop=True)
    answers = np.linspace(0.1, 0.9, len(day))
    log = scoring._log(declaration, Champion.from_row(promotion), day, answers, feature_set)
    uri = workspace.store.put_table(f"predictions/model=example/partition={DAY}/p.parquet", log)
    return declaration, workspace, uri


def test_it_is_empty_with_the_champions_columns_before_any_answer(
    scored: tuple[Declaration, Workspace, str],
) -> None:
    declaration, workspace, uri = scored
    rows, log = read_served(declaration, workspace, "1999-01-01"), workspace.store.get_table(uri)
    assert rows.empty
    assert list(rows)[: len(log.columns)] == list(log.columns)
    text = {name for name in log if log[name].dtype == object}
    assert {name for name in log if rows[name].dtype == object} == text
    assert rows["event_timestamp"].dtype == log["event_timestamp"].dtype


@pytest.mark.parametrize("missing", [False, True], ids=["all there", "all missing"])
def test_common_columns_are_of_batch_scorings_types(
    scored: tuple[Declaration, Workspace, str], missing: bool
) -> None:
    declaration, workspace, uri = scored
    log = workspace.store.get_table(uri)
    plain = log.astype(object).where(log.notna(), None)

    def said(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: None if missing else row[name] for name in names}

    lines = [
        answer(
            n,
            event_timestamp=row["event_timestamp"].isoformat(),
            entities=said(row, ["origin", "plane"]),
            features=said(row, ["wind", "delay", "gust", "carrier"]),
            slices=said(row, ["gate"]),
            prediction=row["prediction"],
        )
        for n, row in enumerate(plain.to_dict("records"))
    ]
    ship(workspace, "example", f"s-{missing}", lines)
    served = compact(declaration, workspace).files[DAY]
    ours, theirs = (parquet.read_schema(found.removeprefix("file://")) for found in (served, uri))
    assert ours.names[: len(theirs.names)] == theirs.names
    assert [ours.field(name).type for name in theirs.names] == list(theirs.types)
    if not missing:
        rows = read_served(declaration, workspace, DAY)
        common = [name for name in log if name != "row_id"]
        pd.testing.assert_frame_equal(rows[common], log[common])
