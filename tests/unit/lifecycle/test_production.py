"""What the champion answered in production stands beside what it answers anew; the gate asks both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.foreground import Foreground
from evergreen.ledger import records
from evergreen.ledger.tables import LabelRow, ScoreRow
from evergreen.lifecycle.contracts import Evaluation, Verdict
from evergreen.lifecycle.evaluation import evaluate
from evergreen.lifecycle.evidence import Evidence
from evergreen.lifecycle.gating import judge
from tests.builders import declare
from tests.lifelike import SMALL, Life

DAY, AS_OF = "2013-01-03", datetime(2013, 1, 4, tzinfo=UTC)
WEAK = {**SMALL["training"], "parameters": {"C": 1e-3}}
THREE: dict[str, Any] = {
    "task": "multiclass_classification",
    "evaluation": {"primary": "log_loss", "metrics": ["accuracy"]},
}


def lived(folder: Path, **sections: Any) -> tuple[Life, Foreground]:
    """A weak model that went live after two days and answered the third; a better candidate."""
    life = Life.begin(folder, **{**sections, "training": WEAK})
    rng = np.random.default_rng(0)
    words = ["early", "late", "on time"]
    for day in (1, 2, 3):
        # the life's own labels are binary; several classes follow x, which a day draws first
        x = np.random.default_rng(day).normal(size=200)
        noise = rng.normal(scale=0.5, size=200)
        several = {"late": np.array(words)[np.digitize(x + noise, [-0.5, 0.5])]}
        life.land(day, **(several if sections else {}))
        if day == 2:
            assert life.retrain("run 1").promotes
    assert [part.partition for part in life.score().scored] == [DAY]
    better = declare(folder, **{**SMALL, **sections})
    return life, Foreground(better, life.workspace, AS_OF)


@dataclass
class Judged:
    """A candidate whose champion has a prediction log that a test may edit."""

    life: Life
    run: Foreground

    @property
    def log(self) -> Path:
        home = self.life.workspace.home
        return home / f"store/predictions/model=example/partition={DAY}/predictions.parquet"

    def edit(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        change(pd.read_parquet(self.log)).to_parquet(self.log, index=False)

    def evaluate(self) -> Evaluation:
        """As another run would: without what an earlier attempt found."""
        for found in (self.life.workspace.home / "store/tables/production").glob("*"):
            found.unlink()
        return self.again()

    def again(self) -> Evaluation:
        live = self.run.champion
        assert live is not None
        return evaluate(
            self.run.declaration,
            self.run.workspace,
            self.run.trained,
            self.run.features,
            champion=(live.version, live.model_uri),
            as_of=AS_OF,
        )

    def judge(self, found: Evaluation | None = None, **changed: Any) -> Verdict:
        run, found = self.run, found or self.evaluate()
        rows = run.workspace.store.get_table(found.predictions)
        declaration = run.declaration.model_copy(update=changed)
        pieces = (run.trained, run.validation, found, run.infrastructure, run.champion, rows)
        return judge(Evidence(declaration, *pieces))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    life, run = lived(tmp_path_factory.mktemp("binary"))
    run.snapshot.save(run.workspace.store)  # as the DAG's extraction does
    return Judged(life, run)


@pytest.fixture
def judged(binary: Judged) -> Iterator[Judged]:
    """With the log as the scorer left it, before and after."""
    before = binary.log.read_bytes()
    yield binary
    binary.log.parent.mkdir(exist_ok=True)
    binary.log.write_bytes(before)


def line(verdict: Verdict, name: str) -> str:
    """What the table says under a name, or nothing."""
    rules = {rule.name: rule for rule in verdict.rules}
    rule = rules.get(name)
    return f"{'pass' if rule.passed else 'FAIL'}: {rule.observed}" if rule else ""


def test_a_candidate_that_beats_the_logged_answers_is_promoted(judged: Judged) -> None:
    found = judged.evaluate()
    verdict = judged.judge(found)
    assert (found.production_rows, found.production_differs) == (200, 0.0)
    assert found.metrics["production"] == found.metrics["champion"]
    assert found.metrics["candidate_where_production"] == found.metrics["candidate"]
    assert verdict.verdict == "promote"
    assert "better than its 200 answers in production: log_loss improves" in verdict.reason
    assert (verdict.production_rows, verdict.production_interval) == (200, verdict.interval)
    assert "200 of 200 matured holdout rows were" in line(verdict, "production rows")
    assert line(verdict, "improvement over production").startswith("pass: log_loss improves by +")
    assert line(verdict, "same answers as in production").startswith("pass: yes, 0.0%")
    assert any("production: 200 of these rows" in told for told in found.describe())


def test_better_answers_in_production_than_anew_hold_a_candidate_back(judged: Judged) -> None:
    rows = judged.run.workspace.store.get_table(judged.evaluate().predictions)
    judged.edit(lambda log: log.assign(prediction=rows["candidate"].to_numpy()))
    twin = judged.judge()
    assert twin.verdict == "inconclusive"
    assert "against its 200 answers in production" in twin.reason
    assert "improvement over champion" in [rule.name for rule in twin.rules if rule.passed]
    judged.edit(lambda log: log.assign(prediction=rows["label"].to_numpy() * 0.98 + 0.01))
    oracle = judged.judge()
    assert (oracle.verdict, oracle.promotes) == ("reject", False)
    assert oracle.reason.startswith("worse than its 200 answers in production: log_loss improves")
    assert line(oracle, "improvement over production").startswith("FAIL")
    assert line(oracle, "same answers as in production").startswith("pass: NO, 100.0%")


def test_skew_is_the_share_of_answers_that_differ(judged: Judged) -> None:
    judged.edit(lambda log: log.assign(prediction=log["prediction"] + 1e-7))
    assert judged.evaluate().production_differs == 0.0
    judged.edit(lambda log: log.assign(prediction=log["prediction"] + (log["row_id"] < 30) * 0.01))
    verdict = judged.judge()
    assert line(verdict, "same answers as in production").startswith("pass: NO, 15.0%")
    assert verdict.verdict == "promote"


def test_few_rows_say_that_the_holdout_decides_alone(judged: Judged) -> None:
    judged.edit(lambda log: log.iloc[:49])
    verdict = judged.judge()
    assert verdict.verdict == "promote"
    assert "pass: 49 of 200" in line(verdict, "production rows")
    assert "rests on the holdout alone" in line(verdict, "production rows")
    assert line(verdict, "improvement over production") == ""
    assert "holdout's 200 rows alone: champion 1 answered 49 of them" in verdict.reason
    assert (verdict.production_rows, verdict.production_interval) == (49, None)


def test_few_days_are_few_whatever_their_rows(judged: Judged) -> None:
    by_hour = judged.run.declaration.gate.model_copy(update={"resample": "hour"})
    assert judged.judge(gate=by_hour).production_interval is not None
    judged.edit(lambda log: log.iloc[:72])  # six hours of rows every five minutes
    assert "at least 7 hours" in str(judged.judge(gate=by_hour).rules)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_fails_closed(value: float, judged: Judged) -> None:
    judged.edit(
        lambda log: log.assign(prediction=log["prediction"].where(log["row_id"] > 2, value))
    )
    found = judged.evaluate()
    verdict = judged.judge(found)
    assert "production" not in found.metrics
    assert found.production_differs == pytest.approx(3 / 200)
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    told = "3 of 200 answers in the prediction log are missing or not finite"
    assert told in verdict.reason
    assert line(verdict, "production rows") == f"FAIL: {told}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "is gone, though the ledger records 200 answers"),
        (lambda log: log.drop(columns="prediction"), "doesn't hold just prediction: prediction"),
        (lambda log: pd.concat([log, log.head(1)]), "answers a row twice"),
    ],
)
def test_recorded_answers_that_cannot_be_read_fail_closed(
    change: Callable[[pd.DataFrame], pd.DataFrame] | None, told: str, judged: Judged
) -> None:
    if change:
        judged.edit(change)
    else:
        judged.log.unlink()
    found = judged.evaluate()
    verdict = judged.judge(found)
    assert found.production_rows == 0
    assert told in (found.production_problem or "")
    assert not verdict.promotes
    assert told in verdict.reason


def test_a_file_that_is_no_parquet_fails_closed(judged: Judged) -> None:
    judged.log.write_bytes(b"not Parquet")
    assert "can't be read as Parquet" in judged.judge().reason


def test_other_answers_than_these_are_not_used(judged: Judged) -> None:
    judged.edit(lambda log: log.assign(model_version="2"))
    found = judged.evaluate()
    assert (found.production_rows, found.production_problem) == (0, None)
    assert found.production_notes == (f"{DAY}: 200 logged rows have another version or event time",)
    moved = judged.run.workspace.store.get_table(found.predictions)
    assert "production" not in moved
    judged.edit(
        lambda log: log.assign(
            model_version="1", event_timestamp=log["event_timestamp"] + pd.Timedelta(seconds=1)
        )
    )
    found = judged.evaluate()
    assert found.production_rows == 0
    assert found.production_notes == (f"{DAY}: 200 logged rows have another version or event time",)
    assert judged.judge(found).verdict == "promote"


def test_a_repeat_finds_what_the_first_attempt_found(judged: Judged) -> None:
    first = judged.evaluate()
    judged.edit(lambda log: log.assign(prediction=0.5))
    assert judged.again() == first
    assert judged.again().save(judged.run.workspace.store) == first.save(judged.run.workspace.store)
    assert judged.evaluate().metrics["production"] != first.metrics["production"]


def test_realised_is_told_of_labels_the_monitor_knew(judged: Judged) -> None:
    assert judged.evaluate().realised_rows == 0
    store, late = judged.run.workspace.store, pd.Timestamp("2013-02-01T00:00Z")
    labels = pd.DataFrame(
        {
            "row_id": [0, 0, 1, 2, 3],
            "label": [1.0, 0.0, 1.0, 1.0, 7.0],  # corrected; a class that nobody knows is left out
            "label_timestamp": pd.Timestamp("2013-01-03T12:00Z") + pd.to_timedelta(range(5), "h"),
        }
    )
    labels.loc[3, "label_timestamp"] = late
    row = LabelRow(
        model="example", partition=DAY, revision=1, version="1", as_of=AS_OF, sequence=3,
        rows=200, matured=2, pending=1, uri=store.put_table("tables/labels/some.parquet", labels),
    )  # fmt: skip
    with judged.run.workspace.ledger.write() as session:
        records.put(session, row, "model", "partition", "version", "as_of", "sequence")
    found = judged.evaluate()
    log = pd.read_parquet(judged.log).set_index("row_id")["prediction"]
    assert found.realised_rows == 2
    expected = -(np.log(1 - log[0]) + np.log(log[1])) / 2
    assert found.realised["log_loss"] == pytest.approx(expected)
    assert any(f"log_loss {expected:.4f} on 2 rows" in told for told in found.describe())


def test_a_score_of_another_version_or_revision_is_not_used(tmp_path: Path) -> None:
    life, run = lived(tmp_path)
    run.snapshot.save(run.workspace.store)
    judged = Judged(life, run)
    assert judged.evaluate().production_rows == 200
    for version, revision, told in (("1", 2, "the log answers revision 2"), ("2", 1, "")):
        row = ScoreRow(
            model="example", partition=DAY, revision=revision, version=version, run_id="later",
            rows=200, uri=str(judged.log), digest="d", metrics={},
        )  # fmt: skip
        with run.workspace.ledger.write() as session:
            records.put(session, row, "model", "partition", "revision", "version")
        found = judged.evaluate()
        assert found.production_rows == 0
        assert told in str(found.production_notes)


def test_no_log_promotes_on_the_holdout_and_says_so(tmp_path: Path) -> None:
    """The whole run, through the real gate."""
    life = Life.begin(tmp_path, training=WEAK)
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    life.land(3)
    better = Life(declare(tmp_path, **SMALL), life.workspace)
    verdict = better.retrain("run 2")
    assert verdict.verdict == "promote"
    assert "pass: 0 of 200 matured holdout rows" in line(verdict, "production rows")
    assert "champion 1 answered 0 of them in production" in verdict.reason
    assert line(verdict, "same answers as in production") == ""


def test_several_classes_are_compared_class_by_class(tmp_path: Path) -> None:
    judged = Judged(*lived(tmp_path, **THREE))
    found = judged.evaluate()
    assert (found.production_rows, found.production_differs) == (200, 0.0)
    assert found.metrics["production"] == found.metrics["champion"]
    rows = judged.run.workspace.store.get_table(found.predictions)
    assert {"production_0", "production_1", "production_2"} <= set(rows.columns)
    assert "better than its 200 answers in production" in judged.judge().reason
    judged.edit(
        lambda log: log.assign(
            prediction_2=log["prediction_2"].where(log["row_id"] > 9, log["prediction_2"] + 0.1)
        )
    )
    assert judged.evaluate().production_differs == pytest.approx(0.05)
