"""What replicas logged is compacted exactly once, whatever is killed, repeated or at once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError, DeclarationError
from evergreen.ledger import records
from evergreen.ledger.tables import PartitionRow, PromotionRow
from evergreen.lifecycle import compaction, scoring
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import Champion, Origin
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.servedlog import read_served
from evergreen.workspace import Workspace
from tests.builders import declare, store_frame, workspace_in
from tests.feature_sets import AS_OF, example_rows, store_features
from tests.printing import Figure

START = datetime(2013, 1, 1, tzinfo=UTC)
NAMES = count()
DAY = "2013-01-03"


def answer(number: int, **fields: Any) -> dict[str, Any]:
    """A replica's line about a row; three of them to an hour of event time."""
    moment = START + timedelta(minutes=20 * number)
    return {
        "request_id": f"r{number // 2}",
        "request_row": number % 2,
        "served_at": moment.isoformat(timespec="microseconds"),
        "replica": "one",
        "route": "predict",
        "role": "champion",
        "model_version": "1",
        "event_timestamp": moment.isoformat(timespec="microseconds"),
        "entities": {"origin": f"o{number}"},
        "features": {"x": number / 4, "kind": "a"},
        "online": ["x"],
        "slices": {},
        "prediction": 0.25,
        "fallback": None,
        "feature_age": 1.5,
        **fields,
    }


def ship(
    workspace: Workspace,
    model: str,
    segment: str,
    lines: Sequence[Mapping[str, Any]],
    torn: bytes = b"",
) -> None:
    content = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
    workspace.store.put_bytes(segment_name(model, segment), content + torn)


def segments_left(workspace: Workspace, model: str) -> list[str]:
    folder = workspace.home / "store" / "served" / model / "segments"
    return sorted(path.name for path in folder.glob("*"))


def files_of(workspace: Workspace, model: str) -> set[str]:
    """Compacted files that are there, whether or not the ledger names them."""
    folder = workspace.home / "store" / "predictions" / f"model={model}"
    return {f"file://{path}" for path in folder.rglob("*") if path.is_file()}


def files_known(workspace: Workspace, model: str) -> set[str]:
    with workspace.ledger.read() as session:
        return {row.uri for row in records.served(session, model)}


def rows_of(
    declaration: Declaration, workspace: Workspace, **asked: Any
) -> Counter[tuple[str, int]]:
    rows = read_served(declaration, workspace, **asked)
    return Counter(zip(rows["request_id"], rows["request_row"].astype(int), strict=True))


def keys(lines: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((each["request_id"], each["request_row"]) for each in lines)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_in(tmp_path)


@pytest.fixture
def example(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One ledger for many models."""
    return workspace_in(tmp_path_factory.mktemp("shared"))


def fresh(shared: Workspace, **sections: Any) -> Declaration:
    return declare(shared.home, name=f"m{next(NAMES)}", **sections)


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


# what is refused


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


# exactly once


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_split_and_any_order_of_compactions_reads_back_the_same(
    shared: Workspace, data: st.DataObject
) -> None:
    declaration = fresh(shared)
    moments = data.draw(st.lists(st.integers(0, 200), max_size=25))
    lines = [
        answer(at, request_id=f"id{k}", request_row=0, prediction=k / 7)
        for k, at in enumerate(moments)
    ]
    homes = [data.draw(st.integers(0, 4)) for _ in lines]
    for home in data.draw(st.permutations(sorted(set(homes)))):
        mine = [each for each, place in zip(lines, homes, strict=True) if place == home]
        ship(shared, declaration.name, f"s{home}", mine)
        if data.draw(st.booleans()):
            compact(declaration, shared, at_most=data.draw(st.integers(0, 3)))
    for _ in range(5):
        compact(declaration, shared, at_most=data.draw(st.integers(1, 5)))
    rows = read_served(declaration, shared)
    expected = sorted(lines, key=lambda each: (each["served_at"], each["request_id"]))
    assert rows["request_id"].tolist() == [each["request_id"] for each in expected]
    assert rows["prediction"].tolist() == [each["prediction"] for each in expected]
    assert files_of(shared, declaration.name) == files_known(shared, declaration.name)
    assert segments_left(shared, declaration.name) == []


def test_groups_are_bounded(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    declaration = fresh(shared)
    lines = [answer(n) for n in range(12)]
    size = len(json.dumps(lines[0])) + 1
    monkeypatch.setattr(compaction, "GROUP_BYTES", 3 * size)
    for n, each in enumerate(lines[:7]):
        ship(shared, declaration.name, f"s{n}", [each])
    ship(shared, declaration.name, "s9-larger-than-a-group", lines[7:])
    report = compact(declaration, shared)
    assert (report.segments, report.rows) == (8, 12)
    assert (
        report.files["2013-01-01"].count(".parquet") == len(files_of(shared, declaration.name)) >= 4
    )
    assert rows_of(declaration, shared) == keys(lines)


def _nth(which: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """What ends the process at its call number ``which``, and is itself before."""
    calls = count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == which:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return call


# What is called for the n-th time when the process ends.
STEPS = [
    ("put_table", 1, "before anything is written"),
    ("put_table", 2, "between two partitions' files"),
    ("_commit", 1, "before the ledger"),
    ("_compactions", 2, "in the ledger's transaction"),
    ("_finish", 2, "after the ledger"),
    ("_sweep", 2, "between two partitions' sweeps"),
    ("_delete", 1, "before a segment is deleted"),
    ("_delete", 2, "between two segments"),
]


@pytest.mark.parametrize(("step", "which", "moment"), STEPS, ids=[moment for *_, moment in STEPS])
def test_a_killed_compaction_is_done_once(
    tmp_path: Path, example: Declaration, step: str, which: int, moment: str
) -> None:
    lines = [answer(n) for n in range(60, 90)]
    ship(workspace_in(tmp_path), "example", "a", lines[:10])
    ship(workspace_in(tmp_path), "example", "b", lines[10:20])
    _ = workspace_in(tmp_path).ledger.engine  # it is there before, as in life

    def work() -> None:
        setattr(compaction, step, _nth(which, getattr(compaction, step)))
        compact(example, workspace_in(tmp_path))

    assert in_child(work) == -signal.SIGKILL
    workspace = workspace_in(tmp_path)
    known = files_known(workspace, "example")
    assert rows_of(example, workspace) == (keys(lines[:20]) if known else Counter())
    ship(workspace, "example", "c", lines[20:])
    for _ in range(2):
        compact(example, workspace)
        assert rows_of(example, workspace) == keys(lines)
        assert files_of(workspace, "example") == files_known(workspace, "example")
        assert segments_left(workspace, "example") == []


def in_child(work: Callable[[], object], seconds: float = 60.0) -> int:
    """The exit code of a child that does ``work``."""
    return end(begin(work), seconds)


def begin(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def end(child: int, seconds: float = 60.0) -> int:
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)  # a poll


def test_a_segment_that_comes_again_is_not_compacted_again(
    example: Declaration, workspace: Workspace
) -> None:
    """A shipper that was killed before it removed a segment ships it again."""
    ship(workspace, "example", "a", [answer(0)])
    compact(example, workspace)
    ship(workspace, "example", "a", [answer(0)])
    ship(workspace, "example", "b", [answer(1)])
    assert compact(example, workspace).segments == 1
    assert rows_of(example, workspace) == keys([answer(0), answer(1)])
    assert segments_left(workspace, "example") == []


@pytest.mark.parametrize("more", [0, 1], ids=["the same segments", "one segment more"])
def test_of_two_compactors_the_slower_one_does_nothing(
    example: Declaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """The other one begins and ends while this one is about to write to the ledger."""
    lines = [answer(n) for n in range(60, 90)]
    ship(workspace, "example", "a", lines[:20])
    commit = compaction._commit

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(compaction, "_commit", commit)
        if more:
            ship(workspace, "example", "b", lines[20:])
        assert compact(example, workspace).segments == 1 + more
        return commit(*arguments)

    monkeypatch.setattr(compaction, "_commit", overtaken)
    assert compact(example, workspace).segments == 0
    assert rows_of(example, workspace) == keys(lines if more else lines[:20])
    assert files_of(workspace, "example") == files_known(workspace, "example")


def test_a_compactor_doesnt_sweep_what_another_is_about_to_record(
    example: Declaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(workspace, "example", "b", [answer(0)])
    commit = compaction._commit

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(compaction, "_commit", commit)
        ship(workspace, "example", "a", [answer(1)])
        assert compact(example, workspace, at_most=1).segments == 1
        return commit(*arguments)

    monkeypatch.setattr(compaction, "_commit", overtaken)
    assert compact(example, workspace).segments == 1
    assert rows_of(example, workspace) == keys([answer(0), answer(1)])


def test_what_another_compactor_deleted_meanwhile_is_left_out(
    example: Declaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        ship(workspace, "example", f"s{n}", [answer(n)])
    pieces = compaction._pieces

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(compaction, "_pieces", pieces)
        assert compact(example, workspace, at_most=2).segments == 2
        return pieces(*arguments)

    monkeypatch.setattr(compaction, "_pieces", overtaken)
    assert compact(example, workspace).segments == 1
    assert rows_of(example, workspace) == keys([answer(n) for n in range(3)])
    workspace.store.put_bytes(segment_name("example", "lost"), b"")
    monkeypatch.setattr(compaction, "_listed", lambda *_: ["lost", "never"])
    with pytest.raises(CorruptError, match=r"never\.jsonl was there a moment ago and is gone"):
        compact(example, workspace)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_compactors_at_once_compact_once(tmp_path: Path, example: Declaration, kind: str) -> None:
    workspace = workspace_in(tmp_path)
    _ = workspace.ledger.engine
    lines = [answer(n) for n in range(200)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(6):
                compact(example, workspace_in(tmp_path), at_most=4)
        except BaseException as error:
            failures.append(error)
            raise

    for n in range(10):
        ship(workspace, "example", f"s{n}", lines[10 * n : 10 * n + 10])
    if kind == "processes":
        children = [begin(work) for _ in range(3)]
        _ship_more(workspace, lines)
        assert [end(child) for child in children] == [0, 0, 0]
    else:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        _ship_more(workspace, lines)
        for thread in threads:
            thread.join(60)
        assert not failures
    compact(example, workspace)
    compact(example, workspace)
    assert rows_of(example, workspace) == keys(lines)
    assert segments_left(workspace, "example") == []
    assert files_of(workspace, "example") == files_known(workspace, "example")


def _ship_more(workspace: Workspace, lines: Sequence[Mapping[str, Any]]) -> None:
    for n in range(10, 20):
        ship(workspace, "example", f"s{n}", lines[10 * n : 10 * n + 10])


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


def test_a_hundred_thousand_answers(shared: Workspace, figure: Figure) -> None:
    declaration = fresh(shared)
    features = {f"f{k}": k / 3 for k in range(20)} | {"carrier": "AA", "none": None}
    text = (
        json.dumps(answer(0, features=features, event_timestamp="{}")).replace('"{}"', "%s") + "\n"
    )
    moments = [json.dumps((START + timedelta(seconds=n)).isoformat()) for n in range(100_000)]
    for n in range(10):
        content = "".join(text % moment for moment in moments[n * 10_000 : (n + 1) * 10_000])
        shared.store.put_bytes(segment_name(declaration.name, f"s{n}"), content.encode())
    begun = time.perf_counter()
    report = compact(declaration, shared)
    compacted = time.perf_counter()
    rows = read_served(declaration, shared)
    read = time.perf_counter()
    assert report.rows == len(rows) == 100_000
    figure(
        f"100,000 answers of {len(content) / 10_000:.0f} bytes: compacted in "
        f"{compacted - begun:.1f} s, read in {read - compacted:.1f} s"
    )
