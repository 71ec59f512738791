"""What lies in the store: evaluation, lineage and card, from documents as stages save them, and
without them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evergreen.ledger import records
from evergreen.lifecycle.contracts import (
    Evaluation,
    Feature,
    FeatureSet,
    Partition,
    PartitionFile,
    Reference,
    Snapshot,
    TrainedModel,
)
from evergreen.ui import card, lineage
from evergreen.workspace import Workspace
from tests.unit.ui.browser import Person
from tests.unit.ui.lives import DAY, HOSTILE, check_inert, go_live, live_with, look, measure

PARTS = ("evaluation", "lineage", "card", "card.md")


def partition(number: int, text: str = "") -> Partition:
    file = PartitionFile(
        uri="a", sha256="b", bytes=1, rows=1000, stored="c", fingerprint="d", columns={"x": "double"}
    )  # fmt: skip
    start = DAY + timedelta(days=number)
    return Partition(
        key=f"2013-01-{number:02}{text}", revision=1, sequence=number, start=start,
        end=start + timedelta(days=1), digest=f"{number:02}" + "e" * 62, rows=1000,
        files={"data": file},
    )  # fmt: skip


def origin(
    workspace: Workspace, text: str = "", *, partitions: int = 6, slices: Any = None
) -> tuple[dict[str, Any], tuple[str, str]]:
    """What a promotion refers to: documents, each in the store; and the snapshot's place."""
    parts = tuple(partition(number, text) for number in range(1, partitions + 1))
    feature = f"distance{text}"
    snapshot = Snapshot(
        model="example", purpose="train", as_of=DAY, start=parts[0].start, end=parts[-1].end,
        partitions=parts, rows=6000, matured=5900, immature=60, never=40,
        columns={"data": {"x": "double"}},
    ).save(workspace.store)  # fmt: skip
    features = FeatureSet(
        model="example", purpose="train", snapshot=snapshot.digest, as_of=DAY,
        features=(Feature(name=feature, type="number"),), parts=(), rows=6000,
        training_rows=5000, holdout_rows=900, digest_of_rows="f" * 64,
    ).save(workspace.store)  # fmt: skip
    trained = TrainedModel(
        model="example", mlflow_run="m" * 32, model_uri="models:/m", experiment="e",
        estimator=f"sklearn.linear_model.LogisticRegression{text}", features=(),
        feature_set=features, snapshot=snapshot.digest, predictions_digest="1" * 64,
        code_digest="c" * 64, environment_digest="n" * 64, parameters={f"C{text}": 1},
        training_rows=5000, holdout_start=DAY, trained_through=DAY,
    ).save(workspace.store)  # fmt: skip
    evaluation = Evaluation(
        model="example", mlflow_run="m" * 32, holdout_digest="h" * 64, holdout_rows=900,
        champion_version="1", champion_problem=text or None, predictions="p",
        metrics={
            "candidate": {"log_loss": 0.41234, f"m{text}": 0.7}, "champion": {"log_loss": 0.43},
            "baseline": {"log_loss": 0.69},
        },
        slices=slices or {f"carrier{text}": {
            f"AA{text}": {"rows": 90.0, "log_loss": 0.4, "champion.log_loss": 0.5},
            "BB": {"rows": 5.0},
        }},
        importance={feature: 0.25, "hour": 0.01}, importance_change={feature: -0.125},
    ).save(workspace.store)  # fmt: skip
    named = {"features": features, "trained": trained, "evaluation": evaluation}
    refers = {name: reference.to_dict() for name, reference in named.items()}
    return refers, (snapshot.uri, snapshot.digest)


@pytest.fixture
def lived(workspace: Workspace) -> Workspace:
    """A model whose live version's documents are all there."""
    refers, place = origin(workspace)
    go_live(workspace, origin=refers, snapshot=place)
    measure(workspace, kind="performance")
    measure(workspace)
    return workspace


@pytest.mark.usefixtures("lived")
def test_the_candidate_stands_beside_what_it_replaced(vera: Person) -> None:
    answer = vera.get("/models/example/evaluation")
    assert answer.status_code == 200
    text = " ".join(check_inert(answer.text).text.split())
    assert "900 rows" in text
    assert "0.4123" in text
    assert "carrier = AA 0.4000 0.5000 -0.1000" in text or "carrier = AA0.40000.5000-0.1000" in text
    assert "BB" not in text  # too few rows for the metric
    assert text.index("distance") < text.index("hour")
    assert "-0.12500" in text


def test_slices_without_the_metric_take_no_place(vera: Person, workspace: Workspace) -> None:
    """Small ones come first here, and there are more of the others than are shown."""
    small = {f"small {n}": {"rows": 5.0} for n in range(45)}
    large = {f"large {n:02}": {"rows": 90.0, "log_loss": 0.4} for n in range(42)}
    refers, place = origin(workspace, slices={"carrier": {**small, **large}})
    go_live(workspace, origin=refers, snapshot=place)
    text = look(vera.get("/models/example/evaluation").text).text
    assert "small" not in text
    assert text.count("carrier = large") == 40
    assert "the first 40 of 42" in text


@pytest.mark.usefixtures("lived")
def test_the_drawing_leads_from_the_data_to_what_is_served(vera: Person) -> None:
    answer = vera.get("/models/example/lineage")
    seen = check_inert(answer.text)
    text = " ".join(seen.text.split())
    order = ["partition 2013-01-01", "2 more partitions", "partition 2013-01-06", "snapshot",
             "1 features", "training run", "version 1", "completed"]  # fmt: skip
    assert sorted(order, key=text.index) == order
    titles = {attributes["title"] for tag, attributes in seen.tags if tag == "code"}
    assert {"01" + "e" * 62, "f" * 64, "n" * 64, "c" * 64} <= titles
    assert sum(tag == "li" for tag, _ in seen.tags) == 6


def test_few_partitions_are_all_named(workspace: Workspace) -> None:
    refers, (uri, digest) = origin(workspace, partitions=lineage.FEW)
    go_live(workspace, origin=refers, snapshot=(uri, digest))
    snapshot = Snapshot.load(workspace.store, Reference(kind="snapshot", uri=uri, digest=digest))
    with workspace.ledger.read() as session:
        live = records.champion(session, "example")
    assert live is not None
    columns = lineage.steps(live, snapshot=snapshot, features=None, trained=None, events={})
    assert [box.title for box in columns[0]] == [f"partition 2013-01-0{n}" for n in range(1, 5)]
    assert columns[-1][0].lines == ("not begun",)
    assert columns[2][0].lines == ("can't be read",)


@pytest.mark.usefixtures("lived")
def test_a_card_is_written_from_what_is_known(vera: Person) -> None:
    answer = vera.get("/models/example/card.md")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="example.md"'
    for said in (
        "# example, version 1\n", "- **Owner**: ops, ops@example.com", "## Data\n",
        "6,000, of these 5,900 labelled", "| log\\_loss | 0.4123 | 0.4300 | 0.6900 |",
        "### By carrier", "| distance | 0.2500 |", "| because | because | because | FAIL |",
        "- **log\\_loss**: 0.4000 \\[0.3000, 0.5000\\] in 2013-01-01",
        "- **Drifted inputs**: 25% in 2013-01-01",
    ):  # fmt: skip
        assert said in answer.text
    shown = vera.get("/models/example/card")
    assert answer.text.strip() in look(shown.text).text


def test_a_card_says_what_people_did(vera: Person, workspace: Workspace) -> None:
    live_with(workspace, "audited")
    assert "## What people did" in vera.get("/models/example/card.md").text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_documents_texts_are_only_shown(vera: Person, workspace: Workspace, text: str) -> None:
    refers, place = origin(workspace, text)
    go_live(workspace, origin=refers, snapshot=place, text=text)
    measure(workspace, kind="performance", window=text)
    for part in PARTS[:3]:
        answer = vera.get(f"/models/example/{part}")
        assert answer.status_code == 200, part
        check_inert(answer.text)
    lines = vera.get("/models/example/card.md").text.split("\n")
    assert [line for line in lines if line.startswith("#")] == [
        line for line in lines
        if line.startswith(("# example, version 1", "## ", "### By carrier", "### What it looks at"))
    ]  # fmt: skip
    for line in lines:
        bare = line.replace("\\\\", "")
        assert not [c for c in "<>[]`" if c in bare.replace(f"\\{c}", "")], line
        if line.startswith("| ") and "metric" not in line:
            assert bare.replace("\\|", "").count("|") in {3, 5}, line


@pytest.mark.parametrize("text", ["a|b", "<b>", "[x](javascript:y)", "# h", "a\nb\r\n\tc", "`~*_"])
def test_markdown_shows_text_as_it_is(text: str) -> None:
    plain = card._plain(text)
    assert "\n" not in plain
    assert plain.replace("\\", "") == " ".join(text.split())


def lose(workspace: Workspace, change: Callable[[Path], Any]) -> None:
    for document in Path(workspace.store.root.removeprefix("file://")).glob("documents/*/*.json"):
        change(document)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_text("{"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
    ids=["gone", "cut off", "another", "no text"],
)
def test_what_is_missing_is_said(vera: Person, lived: Workspace, change: Any) -> None:
    lose(lived, change)
    gone = vera.get("/models/example/evaluation")
    assert gone.status_code == 404
    assert "isn't in the store" in look(gone.text).text
    drawn = look(vera.get("/models/example/lineage").text).text
    assert "the snapshot can't be read" in drawn
    written = vera.get("/models/example/card.md").text
    assert "The snapshot can't be read." in written
    assert "The evaluation can't be read." in written
    assert "## In production" in written
    assert vera.get("/models/example").status_code == 200


def test_without_a_version_there_is_nothing_to_tell(vera: Person) -> None:
    for part in PARTS:
        answer = vera.get(f"/models/example/{part}")
        assert answer.status_code == 404
        assert "no version is live" in look(answer.text).text


def test_a_version_from_before_origins_were_kept(vera: Person, workspace: Workspace) -> None:
    go_live(workspace)
    assert vera.get("/models/example/evaluation").status_code == 404
    assert vera.get("/models/example/lineage").status_code == 200
    assert "No window is judged yet." in vera.get("/models/example/card.md").text
