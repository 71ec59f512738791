"""Every file is run once, by a process that may; what the third is given has no clock in it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scheduling import FILES, LANES, THIRD, Scheduling

ROOT = Path(__file__).parents[2]
OTHERS = [f"tests/unit/test_{name}.py" for name in "abcd"]
#: Files of one lane.
LANE = [f"tests/integration/{name}" for name in ("test_demo.py", "test_pages.py")]


class Process:
    """xdist's end of a test process: what it was sent, and whether it was told to end."""

    def __init__(self, name: str) -> None:
        self.gateway, self.shutting_down = SimpleNamespace(id=name), False
        self.sent: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def run(files: list[str], *names: str) -> dict[str, list[str]]:
    """Processes run three tests of each file, in turns; process → the files, in its order."""
    tests = [f"{file}::test_{n}" for file in files for n in range(3)]
    option = SimpleNamespace(loadscopereorder=False)
    config: Any = SimpleNamespace(getvalue=lambda _: ["popen"] * len(names), option=option)
    scheduling = Scheduling(config)
    processes: list[Any] = [Process(name) for name in names]
    for process in processes:
        scheduling.add_node(process)
        scheduling.add_node_collection(process, tests)
    scheduling.schedule()
    done = dict.fromkeys(names, 0)
    while any(done[it.gateway.id] < len(it.sent) for it in processes):
        for it in processes:
            if done[it.gateway.id] < len(it.sent):
                done[it.gateway.id] += 1
                scheduling.mark_test_complete(it, it.sent[done[it.gateway.id] - 1])
    assert not scheduling.workqueue
    ran = [index for it in processes for index in it.sent]
    assert sorted(ran) == list(range(len(tests))), "each test once"
    assert all(it.shutting_down for it in processes)
    return {
        it.gateway.id: list(dict.fromkeys(tests[n].split("::")[0] for n in it.sent))
        for it in processes
    }


def test_the_third_runs_what_is_patient_alone_and_a_lane_stays_together() -> None:
    ran = run([*LANE, *OTHERS, *FILES[:8]], "gw0", "gw1", THIRD)
    assert set(ran[THIRD]) <= set(FILES)
    assert ran[THIRD][:2] == FILES[:2]
    assert sum(set(LANE) <= set(files) for files in ran.values()) == 1


@pytest.mark.parametrize("names", [("gw0",), ("gw0", "gw1"), (THIRD,), ("gw0", THIRD)])
@pytest.mark.parametrize("files", [OTHERS, FILES[:3], [*OTHERS[:1], *FILES[:1]]])
def test_nothing_is_left_out_with_fewer_processes(names: tuple[str, ...], files: list[str]) -> None:
    run(files, *names)


@pytest.mark.parametrize("file", FILES)
def test_no_clock_in_it(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.findall(r"\b(?:perf_counter|monotonic|sleep|timeout|time\.time)\b", text)
    assert text.count("@given") == text.count("deadline=None")


def test_lanes_hold_files() -> None:
    for of in LANES.values():
        assert all((ROOT / "tests" / prefix).exists() for prefix in of)
