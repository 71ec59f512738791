"""A partition is answered by the version that was live when it began; a repeat replaces."""

import pandas as pd
import pytest

from evergreen.ledger import records
from tests.lifelike import Life


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    life = Life.begin(tmp_path_factory.mktemp("life"))
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    return life


def log_of(life: Life) -> pd.DataFrame:
    return pd.read_parquet(f"{life.workspace.home}/store/predictions/model=example")


def test_only_what_began_under_a_champion_is_scored(life: Life) -> None:
    life.land(3)
    report = life.score()
    assert [(part.partition, part.version, part.rows) for part in report.scored] == [
        ("2013-01-03", "1", 200)
    ]
    assert report.scored[0].metrics["log_loss"] < 0.69
    log = log_of(life)
    assert len(log) == 200
    assert set(log["partition"].astype(str)) == {"2013-01-03"}
    assert {"x", "kind", "prediction", "model_version", "origin", "event_timestamp"} <= set(
        log.columns
    )
    assert not life.score().scored


def test_a_new_revision_replaces_the_log(life: Life) -> None:
    before = log_of(life)
    life.land(3, rows=150)
    report = life.score()
    assert report.scored[0].revision == 2
    after = log_of(life)
    assert (len(before), len(after)) == (200, 150)
    with life.workspace.ledger.read() as session:
        assert [row.revision for row in records.scores(session, "example")] == [1, 2]


def test_a_category_never_seen_is_scored_and_counted(life: Life) -> None:
    life.land(4, kind="zeppelin")
    part = life.score().scored[0]
    assert part.unseen == {"kind": 200}
    assert part.rows == 200


def test_a_feature_that_is_gone_is_named(life: Life) -> None:
    from evergreen.errors import DataBlockedError
    from evergreen.lifecycle.fitted import load_fitted
    from evergreen.lifecycle.scoring import answers_of

    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
    assert live is not None
    fitted = load_fitted(life.workspace, life.declaration, live.model_uri)
    with pytest.raises(
        DataBlockedError, match="the champion needs x, which the features don't have"
    ):
        answers_of(fitted, "example", log_of(life).drop(columns="x"))
