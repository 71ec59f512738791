"""What replicas logged is compacted exactly once, whatever is killed, repeated or at once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError
from evergreen.lifecycle import compaction
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.servedlog import read_served
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.printing import Figure
from tests.shipped import (
    START,
    answer,
    files_known,
    files_of,
    fresh,
    keys,
    rows_of,
    segments_left,
    ship,
)


@pytest.fixture
def example(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One ledger for many models."""
    return workspace_in(tmp_path_factory.mktemp("shared"))


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
