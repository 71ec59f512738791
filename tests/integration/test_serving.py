"""Under load: versions come and go, a replica is killed, and nothing is lost or unlogged.

The figures are printed (``-s``, or in the report of a failure); what is asserted are counts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from evergreen.ledger import records
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.servedlog import read_served
from tests.integration.fleet import KEYS, WHOLE, Proxy, Replica, Served, free_port
from tests.load.run import Answer, begin, figures
from tests.printing import Figure

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(900)]

REQUESTS, USERS = 20_000, 8
#: The load goes on until the last move; this many bound it, at 50 a second and user.
MOST = 10 * REQUESTS
#: Versions that go live under load, each other than the one before, and how often one comes back.
PROMOTIONS, MOVES = 3, 10


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Two days, and two versions of which the second is live; no replica is declared."""
    served = Served.create(tmp_path_factory.mktemp("served") / "project")
    for day in (1, 2):
        served.land(day)
    for run_id in ("first", "second"):
        served.promote(run_id)
    for move in range(PROMOTIONS):
        served.redeclare(training=_recipe(move))
        served.prepare(f"move {move}")
    return served


def logged(served: Served) -> dict[str, set[str]]:
    """Request id → the versions that its logged rows name, once all that is shipped is compacted."""
    compact(served.declaration, served.workspace)
    rows = read_served(served.declaration, served.workspace)
    assert not rows.duplicated(["request_id", "request_row", "role"]).any()
    return {str(k): set(v) for k, v in rows.groupby("request_id")["model_version"]}


def missing_from(log: dict[str, set[str]], answers: list[Answer]) -> list[Answer]:
    """Answered requests that aren't logged as answered by the version that they were told."""
    return [a for a in answers if a.status == 200 and log.get(a.id) != {a.version}]


def test_ten_moves_under_load_lose_nothing(
    template: Served, tmp_path: Path, figure: Figure
) -> None:
    port = free_port()
    folder = shutil.copytree(template.folder, tmp_path / "project")
    served = Served(folder)
    served.redeclare(serving={"replicas": [f"http://127.0.0.1:{port}"]})
    replica = Replica(served, port, "one").start()
    load = begin(
        tmp_path, replica.address, ["/predict", "/invocations"], _mixed(), name="moves",
        requests=REQUESTS, users=USERS, rate=50.0, most=MOST,
    )  # fmt: skip
    try:
        _wait_for_answers(replica, 200)
        moved = list(_moves(served))
        still_going = load.process.poll() is None
        load.enough()
        answers = load.answers(timeout=600)
    finally:
        load.stop()
        replica.stop()
    log = logged(served)
    failed = [a for a in answers if a.status != 200]
    found = figures(answers)
    figure(
        f"{len(answers):,} requests during {len(moved)} promotions and rollbacks: "
        f"{len(failed)} failed, {len(missing_from(log, answers))} unlogged, by versions "
        f"{sorted({str(a.version) for a in answers}, key=int)}; {found['per_second']:.0f}/s, "
        f"p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms (throttled)"
    )
    assert still_going, f"{MOST:,} requests were over before the last move"
    assert len(answers) >= REQUESTS
    assert failed == []
    assert missing_from(log, answers) == []
    assert {a.version for a in answers} >= set(moved)


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy, a Debian package")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "closed"])
def test_a_killed_replica_loses_only_what_was_in_flight_in_it(
    template: Served, tmp_path: Path, figure: Figure, *, kept: bool
) -> None:
    served = Served(shutil.copytree(template.folder, tmp_path / "project"))
    replicas = [Replica(served, free_port(), name).start() for name in ("left", "right")]
    proxy = Proxy(tmp_path, replicas, kept).start()
    load = begin(
        tmp_path, proxy.address, ["/predict", "/invocations"], _mixed(), name="killed",
        requests=6_000, users=USERS,
    )  # fmt: skip
    try:
        _wait_for_answers(replicas[0], 500)
        asked, died = replicas[0].kill()
        answers = load.answers(timeout=300)
        assert replicas[1].version()["version"] == "2"
    finally:
        load.stop()
        proxy.stop()
        for replica in replicas:
            replica.stop()
    log = logged(served)
    failed, sent_to = [a for a in answers if a.status != 200], proxy.servers()
    figure(
        f"{len(answers):,} requests, a replica of two killed, connections "
        f"{'kept' if kept else 'closed'}: {len(failed)} failed, in flight in it; {len(missing_from(log, answers))} unlogged"
    )
    assert len(answers) == 6_000
    assert set(sent_to.values()) >= {"left", "right"}
    # While it dies its socket still takes requests, so a client may lose more than one. HAProxy
    # leaves out of its log what it lost on a kept connection, and nothing else.
    unseen = [a for a in answers if a.id not in sent_to]
    assert [a for a in unseen if not kept or a.status == 200] == []
    assert [a for a in failed if sent_to.get(a.id, "left") != "left"] == []
    assert [a for a in failed if a.ended < asked or a.began > died] == []
    assert missing_from(log, answers) == []


def _moves(served: Served) -> Iterator[str]:
    """New versions go live, each followed by the one before coming back; then to and fro."""
    for move in range(PROMOTIONS):
        with served.workspace.ledger.read() as session:
            live = records.champion(session, "example")
            assert live is not None
        served.redeclare(training=_recipe(move))
        yield served.promote(f"move {move}").version
        yield served.roll_back(f"back {move}", live.version).version
    for move, version in enumerate(("1", "2") * ((MOVES - 2 * PROMOTIONS) // 2)):
        yield served.roll_back(f"again {move}", version, force=True).version


def _recipe(move: int) -> dict[str, object]:
    return {"parameters": {"max_iter": 110 + 10 * move, "early_stopping": False}}


def _mixed() -> list[object]:
    """By keys and whole, in turn: the paths are taken in the same turn."""
    return [body for pair in zip(KEYS, WHOLE, strict=False) for body in pair]


def _wait_for_answers(replica: Replica, requests: int) -> None:
    """Until it has answered so many."""
    deadline = time.monotonic() + 60
    while _answered(replica) < requests:
        assert time.monotonic() < deadline, replica.log.read_text()[-3000:]
        time.sleep(0.1)  # between looks, until the deadline


def _answered(replica: Replica) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"{replica.address}/metrics", timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "evergreen_requests_total" and sample.labels["code"] == "200"
    )
