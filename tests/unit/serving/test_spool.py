"""What was acknowledged is there: after SIGKILL, a full disk, a store that was away."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.lifecycle.servedlines import segment_name
from evergreen.serving import segments
from evergreen.serving.spool import Shipper, Spool
from evergreen.store import Store
from tests.printing import Figure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


def line(writer: object, number: int, size: int = 40) -> bytes:
    return json.dumps({"writer": writer, "number": number, "text": "x" * size}).encode()


def shipped(store: Store) -> dict[str, bytes]:
    """Segment → content, in the store."""
    folder = Path(store.path(segment_name("example", "any")).path).parent
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def lines_of(content: bytes) -> list[bytes]:
    """The whole lines of a segment."""
    return content.split(b"\n")[:-1]


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """A child process that does ``work`` with the writing end of a pipe; its id and our end."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ours)
            work(theirs)
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    return child, ours


def told(pipe: int) -> bytes:
    """All that a child says until it ends."""
    said = b""
    while part := os.read(pipe, 1 << 16):
        said += part
    os.close(pipe)
    return said


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# appending


def test_lines_are_there_when_append_returns(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", replica="blue/1")
    spool.append([b'{"a": 1}', b'{"a": 2}'])
    (segment,) = (tmp_path / "spool").iterdir()
    assert segment.name.endswith(".jsonl.open")
    assert "-blue_1-" in segment.name
    assert segment.read_bytes() == b'{"a": 1}\n{"a": 2}\n'
    spool.close()
    spool.close()
    (segment,) = (tmp_path / "spool").iterdir()
    assert segment.name.endswith(".jsonl")
    with pytest.raises(ValueError, match="is closed"):
        spool.append([b"{}"])


def test_what_holds_nothing_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([])
    spool.roll()
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("bad", [b"", b'{"a":\n1}', b"{}\n"])
def test_a_line_is_one_line(tmp_path: Path, bad: bytes) -> None:
    spool = Spool(tmp_path / "spool")
    with pytest.raises(ValueError, match="empty or holds a newline"):
        spool.append([b"{}", bad])
    assert list((tmp_path / "spool").iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), max_size=5), max_size=12),
    st.integers(1, 300),
    st.sets(st.integers(0, 11)),
)
def test_segments_in_order_hold_the_lines_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], limit: int, rolls: set[int]
) -> None:
    folder, ticks = tmp_path_factory.mktemp("spool"), iter(range(1000))
    spool = Spool(folder, max_bytes=limit, sync=False, clock=lambda: float(next(ticks)))
    written, wholes = [], set()
    for number, sizes in enumerate(batches):
        batch = [line(number, k, size) for k, size in enumerate(sizes)]
        spool.append(batch)
        written += batch
        wholes.add(len(b"".join(batch)) + len(batch))
        if number in rolls:
            spool.roll()
    spool.close()
    contents = [path.read_bytes() for path in sorted(folder.glob("*.jsonl"))]
    assert [each for content in contents for each in lines_of(content)] == written
    assert all(len(content) <= limit or len(content) in wholes for content in contents)


def test_threads_share_a_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=2000, sync=False)

    def write(writer: int) -> None:
        for number in range(50):
            spool.append([line(writer, number)])

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()
    found = [each for p in (tmp_path / "spool").iterdir() for each in lines_of(p.read_bytes())]
    assert sorted(found) == sorted(line(k, n) for k in range(4) for n in range(50))


def test_a_full_disk_leaves_no_half_batch(tmp_path: Path) -> None:
    """A limit on the size of a process's files stops a write midway, as a full disk does."""
    folder = tmp_path / "spool"

    def work(pipe: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        spool = Spool(folder)
        spool.append([line("small", 0)])
        with pytest.raises(OSError) as caught:
            spool.append([line("large", k) for k in range(50)])
        assert caught.value.errno == errno.EFBIG
        spool.append([line("small", 1)])  # in a segment of its own
        with pytest.raises(OSError):
            spool.append([line("huge", 0, 5000)])
        with pytest.raises(OSError):
            spool.append([line("huge", 1, 5000)])  # now the first of its segment
        os.write(pipe, b"done")

    child, pipe = fork(work)
    assert told(pipe) == b"done"
    assert ended(child) == 0
    kept = sorted(folder.iterdir())
    assert all(path.name.endswith(".jsonl") for path in kept)
    assert [path.read_bytes() for path in kept] == [line("small", k) + b"\n" for k in (0, 1)]


# killed processes


def keep_appending(folder: Path, writer: int, *, sync: bool) -> Callable[[int], None]:
    """Append batches of any size, and say after each that it is there."""

    def work(pipe: int) -> None:
        chance, number = random.Random(writer), 0
        spool = Spool(folder, max_bytes=1 << 18, sync=sync, replica=f"r{writer}")
        while True:
            size = chance.choice([1, 5, 50, 2000])
            spool.append([line(writer, number + k, chance.randint(0, 300)) for k in range(size)])
            number += size
            os.write(pipe, f"{number}\n".encode())

    return work


@pytest.mark.parametrize("sync", [True, False])
def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path, store: Store, sync: bool) -> None:
    folder, chance = tmp_path / "spool", random.Random(sync)
    kills, at_once, acknowledged = 12, 2, dict[int, int]()
    # A busy machine's children get little done in such a time: as many more are killed as it takes.
    while len(acknowledged) < kills or sum(acknowledged.values()) <= 1000:
        first = len(acknowledged)  # two replicas share the folder
        assert first < 20 * kills, "hardly anything was written"
        children = [
            (writer, *fork(keep_appending(folder, writer, sync=sync)))
            for writer in range(first, first + at_once)
        ]
        for writer, child, pipe in children:
            time.sleep(chance.uniform(0.005, 0.06))  # the moment of the kill is what is tried
            os.kill(child, signal.SIGKILL)
            assert ended(child) == -signal.SIGKILL
            said = told(pipe).split(b"\n")[:-1]
            acknowledged[writer] = int(said[-1]) if said else 0
    Shipper(folder, store, "example").ship()
    assert list(folder.iterdir()) == []
    found: dict[int, list[int]] = {writer: [] for writer in acknowledged}
    torn = 0
    for content in shipped(store).values():
        torn += not content.endswith(b"\n")
        for each in map(json.loads, lines_of(content)):
            found[each["writer"]].append(each["number"])
    assert torn <= len(acknowledged)
    for writer, numbers in found.items():
        assert sorted(numbers) == list(range(len(numbers)))
        assert acknowledged[writer] <= len(numbers) <= acknowledged[writer] + 2000


def test_a_segment_in_use_is_left_alone(tmp_path: Path, store: Store) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([line("a", 0)])
    shipper = Shipper(tmp_path / "spool", store, "example")
    assert shipper.ship() == 0
    spool.append([line("a", 1)])
    spool.roll()
    assert shipper.waiting() == 1
    assert shipper.ship() == 1
    assert shipper.waiting() == 0
    assert list(map(lines_of, shipped(store).values())) == [[line("a", 0), line("a", 1)]]


def test_an_empty_leftover_goes_away(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "20130101T000000000000Z-r-00000000.jsonl.open").touch()
    assert Shipper(folder, store, "example").ship() == 0
    assert list(folder.iterdir()) == []
    assert not store.exists("served")


def _after(first: Callable[[], object], real: Callable[[int], bool]) -> Callable[[int], bool]:
    """What is called as ``real`` once something has happened, the first time."""
    todo = [first]

    def call(handle: int) -> bool:
        while todo:
            todo.pop()()
        return real(handle)

    return call


def test_a_segment_that_another_took_meanwhile_is_not_taken(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([line("a", 0)])
    spool.close()
    other = Shipper(tmp_path / "spool", store, "example")
    monkeypatch.setattr(segments, "_locked", _after(other.ship, segments._locked))
    assert Shipper(tmp_path / "spool", store, "example").ship() == 0
    assert len(shipped(store)) == 1


def test_a_new_segment_that_a_shipper_swept_is_begun_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(tmp_path / "spool", store, "example")
    monkeypatch.setattr(segments, "_locked", _after(shipper.ship, segments._locked))
    spool.append([line("a", 0)])
    spool.close()
    assert shipper.ship() == 1
    assert lines_of(*shipped(store).values()) == [line("a", 0)]
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_locked", lambda handle: False)
        with pytest.raises(OSError, match="no segment could be begun"):
            Spool(tmp_path / "spool").append([line("a", 1)])


def test_writers_and_shippers_of_several_processes_share_a_folder(
    tmp_path: Path, store: Store
) -> None:
    folder, writers, batches = tmp_path / "spool", 3, 60

    def write(writer: int) -> Callable[[int], None]:
        def work(pipe: int) -> None:
            spool = Spool(folder, max_bytes=500, sync=False, replica=f"r{writer}")
            shipper = Shipper(folder, store, "example")
            taken = 0
            for number in range(batches):
                spool.append([line(writer, number)])
                taken += shipper.ship()
            spool.close()
            os.write(pipe, str(taken + shipper.ship()).encode())

        return work

    children = [fork(write(writer)) for writer in range(writers)]
    taken = [int(told(pipe)) for _, pipe in children]
    assert [ended(child) for child, _ in children] == [0] * writers
    rest = Shipper(folder, store, "example").ship()
    there = shipped(store)
    assert sum(taken) + rest == len(there)
    found = Counter(each for content in there.values() for each in lines_of(content))
    assert found == Counter(line(w, n) for w in range(writers) for n in range(batches))


def test_a_shipper_killed_before_it_removed_ships_the_same_again(
    tmp_path: Path, store: Store
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([line("a", 0)])
    spool.close()
    (segment,) = (tmp_path / "spool").iterdir()
    store.put_bytes(segment_name("example", segment.stem), segment.read_bytes())
    assert Shipper(tmp_path / "spool", store, "example").ship() == 1
    assert shipped(store) == {segment.name: line("a", 0) + b"\n"}


# the thread


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it didn't come true in time"
        time.sleep(0.005)  # a poll


def test_a_segment_is_closed_when_it_is_old_and_shipped(tmp_path: Path, store: Store) -> None:
    spool = Spool(tmp_path / "spool", max_age=0.1)
    shipper = Shipper(tmp_path / "spool", store, "example", spool=spool, every=0.01)
    shipper.start()
    try:
        spool.append([line("a", 0)])
        wait_until(lambda: len(shipped(store)) == 1)
    finally:
        shipper.stop()
    assert not shipper.is_alive()


def test_an_old_segment_is_closed_by_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0], time=time.time)
    monkeypatch.setattr("evergreen.serving.spool.time", clock)
    spool = Spool(tmp_path / "spool", max_age=600.0)
    spool.append([line("a", 1)])
    spool.append([line("a", 2)])
    assert len(list((tmp_path / "spool").iterdir())) == 1
    passed[0] = 600.0
    spool.append([line("a", 3)])
    names = sorted(path.name for path in (tmp_path / "spool").iterdir())
    assert [name.partition(".")[2] for name in names] == ["jsonl", "jsonl.open"]
    spool.close()


def test_segments_wait_while_the_store_is_away(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("no folder")
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(tmp_path / "spool", store, "example", spool=spool, every=0.01, longest=0.05)
    shipper.start()
    try:
        for number in range(3):
            spool.append([line("a", number)])
            spool.roll()
        wait_until(lambda: shipper.problem is not None)
        assert f"the store at file://{tmp_path}/store can't be reached" in str(shipper.problem)
        wait_until(lambda: "can't be reached" in caplog.text)  # it is logged after it is kept
        assert not shipper.flush(0.05)
        assert shipper.waiting() == 3
        (tmp_path / "store").unlink()
        assert shipper.flush(10)
        wait_until(lambda: shipper.problem is None)
    finally:
        shipper.stop()
    assert [lines_of(content)[0] for content in shipped(store).values()] == [
        line("a", number) for number in range(3)
    ]


def test_it_asks_an_unreachable_store_ever_less_often(tmp_path: Path) -> None:
    class Away(Store):
        asked: list[float] = []  # noqa: RUF012 - one object only

        def write(self, name: str, produce: Callable[[Path], None]) -> str:
            self.asked.append(time.monotonic())
            raise ConnectionResetError("away")

    spool = Spool(tmp_path / "spool")
    spool.append([line("a", 0)])
    spool.close()
    store = Away("memory://nowhere")
    shipper = Shipper(tmp_path / "spool", store, "example", every=0.01, longest=0.08)
    shipper.start()
    try:
        wait_until(lambda: len(store.asked) >= 8)
    finally:
        shipper.stop()
    gaps = [later - first for first, later in zip(store.asked, store.asked[1:], strict=False)]
    assert gaps[0] >= 0.02
    assert all(gap >= 0.08 for gap in gaps[2:])
    assert max(gaps) < 1


def test_flush_gives_up_in_time_without_a_thread(tmp_path: Path, store: Store) -> None:
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(tmp_path / "spool", store, "example")
    assert shipper.flush(0.0)
    spool.append([line("a", 0)])
    spool.close()
    begun = time.monotonic()
    assert not shipper.flush(0.1)
    assert time.monotonic() - begun < 1
    shipper.stop()


def test_what_a_batch_costs(tmp_path: Path, figure: Figure) -> None:
    spool, batch = Spool(tmp_path / "spool"), [line("a", k, 650) for k in range(50)]
    seconds = []
    for _ in range(100):
        begun = time.perf_counter()
        spool.append(batch)
        seconds.append(time.perf_counter() - begun)
    spool.close()
    seconds.sort()
    figure(
        f"50 lines of 700 bytes, synced: p50 {seconds[50] * 1e3:.2f} ms, p95 {seconds[95] * 1e3:.2f} ms"
    )
