"""A snapshot becomes parts: every row once, features as known then, nothing computed twice."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evergreen.declaration import Declaration, DeclarationError
from evergreen.errors import DataBlockedError
from evergreen.lifecycle import features
from evergreen.lifecycle.contracts import ValidationReport
from evergreen.lifecycle.preparation import prepare
from evergreen.lifecycle.sets import read_rows
from evergreen.workspace import Workspace
from tests.builders import declare, snapshot_of, store_frame, workspace_in
from tests.feature_models import (
    AS_OF,
    DAYS,
    MODULE,
    declare_flights,
    flights,
    prepared,
    store_days,
    times_of_files,
    validated,
    weather,
)


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare_flights(tmp_path / "example")


def expected(day: str, known: pd.DataFrame) -> pd.DataFrame:
    """What pandas' own as-of join says."""
    return pd.merge_asof(
        flights(day),
        known.sort_values("event_timestamp"),
        on="event_timestamp",
        by="origin",
        tolerance=pd.Timedelta(hours=3),
    )


def test_every_row_stands_once_with_what_was_known_then(
    declaration: Declaration, workspace: Workspace
) -> None:
    found = prepared(declaration, workspace, *store_days(workspace))
    rows = read_rows(workspace.store, found, "all")
    assert len(rows) == found.rows == 3 * 48
    assert list(rows) == [
        "row_id",
        "event_timestamp",
        "label_timestamp",
        "label",
        "origin",
        "temp",
        "sky",
        "distance",
        "carrier",
        "partition",
    ]
    assert [f"{f.name} {f.type}" for f in found.features] == [
        "temp number",
        "sky string",
        "origin string",
        "distance number",
    ]
    everything = pd.concat([weather(day) for day in DAYS])
    for day in DAYS:
        part = rows[rows["partition"] == day].reset_index(drop=True)
        truth = expected(day, everything)
        pd.testing.assert_series_equal(part["temp"], truth["temp"])
        assert part["sky"].tolist() == truth["sky"].where(truth["sky"].notna(), None).tolist()
    assert rows["temp"].isna().any(), "observations older than their time to live"
    assert set(map(type, rows["sky"])) == {str, type(None)}


def test_the_first_rows_of_a_day_see_the_last_of_the_day_before(
    declaration: Declaration, workspace: Workspace
) -> None:
    first, second, _ = store_days(workspace)
    found = prepared(declaration, workspace, second, context=(first,), purpose="score")
    rows = read_rows(workspace.store, found, "all")
    assert rows["temp"].tolist()[:2] == [122.0, 122.0]
    assert rows["sky"].tolist()[:2] == ["EWR-22", "JFK-22"]


def test_a_second_time_computes_nothing(declaration: Declaration, workspace: Workspace) -> None:
    days = store_days(workspace)
    once = prepared(declaration, workspace, *days)
    written = times_of_files(workspace)
    again = prepared(declaration, workspace, *days)
    assert times_of_files(workspace) == written
    assert (once.reused, again.reused) == (0, 3)
    assert again.model_copy(update={"reused": 0}) == once


def test_another_deployment_comes_to_the_same_bytes(
    declaration: Declaration, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = workspace_in(tmp_path / "other")
    here = prepared(declaration, workspace, *store_days(workspace))
    there = prepared(declaration, other, *store_days(other))
    assert [part.digest for part in here.parts] == [part.digest for part in there.parts]
    assert here.digest_of_rows == there.digest_of_rows
    for mine, theirs in zip(here.parts, there.parts, strict=True):
        assert workspace.store.read_bytes(mine.uri) == other.store.read_bytes(theirs.uri)


def test_a_new_day_costs_one_part_and_a_changed_one_also_what_looks_back_at_it(
    declaration: Declaration, workspace: Workspace
) -> None:
    days = store_days(workspace)
    assert prepared(declaration, workspace, *days[:2], purpose="score").reused == 0
    found = prepared(declaration, workspace, *days)
    assert found.reused == 2
    changed = weather(DAYS[1]).assign(temp=0.0)
    days[1] = store_frame(
        workspace, flights(DAYS[1]), key=DAYS[1], sources={"weather": changed}, revision=2
    )
    after = prepared(declaration, workspace, *days)
    assert after.reused == 1
    assert [a.uri == b.uri for a, b in zip(found.parts, after.parts, strict=True)] == [
        True,
        False,
        False,
    ]
    last = read_rows(workspace.store, after, "all").query("partition == '2026-01-03'")
    assert last["temp"].tolist()[0] == 0.0


def test_the_split_is_exact_at_its_edges(declaration: Declaration, workspace: Workspace) -> None:
    found = prepared(declaration, workspace, *store_days(workspace))
    newest = datetime(2026, 1, 3, tzinfo=UTC)
    assert found.holdout_start == newest - timedelta(days=1) + timedelta(microseconds=1)
    assert found.training_end == found.holdout_start
    training = read_rows(workspace.store, found, "training")
    holdout = read_rows(workspace.store, found, "holdout")
    assert (len(training), len(holdout)) == (found.training_rows, found.holdout_rows) == (49, 48)
    assert training["event_timestamp"].max() == newest - timedelta(days=1)
    assert holdout["event_timestamp"].max() == newest, "known exactly as of"
    assert len(read_rows(workspace.store, found, "all")) == 144


def test_embargo_and_skipped_days_are_on_neither_side(workspace: Workspace, tmp_path: Path) -> None:
    training = {
        "window": {"min_rows": 10, "skip_recent": "12h"},
        "holdout": {"length": "12h", "embargo": "6h", "min_rows": 20},
    }
    declaration = declare_flights(tmp_path / "example", training=training)
    found = prepared(declaration, workspace, *store_days(workspace))
    holdout = read_rows(workspace.store, found, "holdout")["event_timestamp"]
    assert holdout.max() == pd.Timestamp("2026-01-02T12:00Z")
    assert holdout.min() == pd.Timestamp("2026-01-02T00:30Z")
    rows = read_rows(workspace.store, found, "training")
    assert rows["event_timestamp"].max() == pd.Timestamp("2026-01-01T18:00Z")
    assert (len(rows), len(holdout)) == (found.training_rows, found.holdout_rows)


def test_a_part_does_not_change_when_labels_mature(
    declaration: Declaration, workspace: Workspace
) -> None:
    days = store_days(workspace)
    early = prepared(declaration, workspace, *days)
    late = prepared(declaration, workspace, *days, as_of=datetime(2026, 2, 1, tzinfo=UTC))
    assert late.reused == 3
    assert late.training_rows > early.training_rows
    assert late.digest_of_rows != early.digest_of_rows


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"window": {"min_rows": 500}}, r"training\.window has 49 matured rows.*at least 500"),
        (
            {"holdout": {"length": "1h", "min_rows": 20}},
            r"training\.holdout has 2 matured rows.*20",
        ),
        ({"window": {"skip_recent": "30d", "min_rows": 10}}, "once the newest 30 days"),
    ],
)
def test_too_few_rows_are_a_refusal_with_numbers(
    workspace: Workspace, tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    few = {"window": {"min_rows": 10}, "holdout": {"length": "1d", "min_rows": 20}, **section}
    declaration = declare_flights(tmp_path / "example", training=few)
    with pytest.raises(DataBlockedError, match=message):
        prepared(declaration, workspace, *store_days(workspace))


def test_blocked_data_trains_nothing_and_is_left_out_of_scoring(
    declaration: Declaration, workspace: Workspace
) -> None:
    days = store_days(workspace)
    snapshot = snapshot_of(*days, as_of=AS_OF)
    with pytest.raises(DataBlockedError, match="blocked by validation: 2026-01-02"):
        prepare(declaration, workspace, snapshot, validated(snapshot, blocked=(DAYS[1],)))
    snapshot = snapshot_of(*days, as_of=AS_OF, purpose="score")
    found = prepare(declaration, workspace, snapshot, validated(snapshot, blocked=(DAYS[1],)))
    assert [part.partition for part in found.parts] == [DAYS[0], DAYS[2]]
    first = read_rows(workspace.store, found, "all").query("partition == '2026-01-03'")
    assert first["temp"].isna().iloc[0], "nor do its rows feed the next day's features"
    with pytest.raises(DataBlockedError, match="blocked by validation: snapshot"):
        prepare(declaration, workspace, snapshot, validated(snapshot, blocked=("snapshot",)))


def test_a_report_about_another_snapshot_is_no_evidence(
    declaration: Declaration, workspace: Workspace
) -> None:
    snapshot = snapshot_of(*store_days(workspace))
    with pytest.raises(DataBlockedError, match="Validate this snapshot first"):
        prepare(
            declaration, workspace, snapshot, ValidationReport(model="example", snapshot="0" * 64)
        )


def test_quarantined_rows_are_in_no_part_and_no_feature(
    workspace: Workspace, tmp_path: Path
) -> None:
    count = "raw['flights'].assign(temp=raw['flights'].groupby('origin').cumcount(), sky=None)"
    module = MODULE.replace('return raw["weather"]', f"return {count}")
    declaration = declare_flights(tmp_path / "example", module)
    day, *_ = store_days(workspace)
    aside = workspace.store.put_table("aside.parquet", pd.DataFrame({"row_id": [0, 2]}))
    snapshot = snapshot_of(day, purpose="score")
    found = prepare(
        declaration, workspace, snapshot, validated(snapshot, quarantined={day.digest: aside})
    )
    rows = read_rows(workspace.store, found, "all")
    assert rows["row_id"].tolist() == [1, *range(3, 48)]
    assert rows.loc[rows["origin"] == "EWR", "temp"].tolist() == list(range(22))


def test_without_a_module_each_row_has_its_own_columns(
    workspace: Workspace, tmp_path: Path
) -> None:
    declaration = declare(tmp_path, evaluation={"slices": ["carrier", "origin"]})
    frame = flights(DAYS[0]).assign(cancelled=[None, True] * 24)
    frame["carrier"] = frame["carrier"].where(frame.index != 3)
    day = store_frame(workspace, frame, key=DAYS[0])
    found = prepared(declaration, workspace, day, purpose="score")
    assert [f"{f.name} {f.type}" for f in found.features] == [
        "carrier string",
        "distance number",
        "cancelled number",
    ]
    rows = read_rows(workspace.store, found, "all")
    assert rows["distance"].tolist() == list(range(48))
    assert rows["carrier"].tolist() == ["AA"] * 3 + [None] + ["AA"] * 44
    assert rows["cancelled"].isna().sum() == 24
    assert rows["cancelled"].max() == 1.0


def test_without_a_module_entities_must_tell_rows_apart(
    workspace: Workspace, tmp_path: Path
) -> None:
    twice = pd.concat([flights(DAYS[0]), flights(DAYS[0], 1)])
    day = store_frame(workspace, twice, key=DAYS[0])
    message = (
        r"1 rows of 2026-01-01 more than once.*allowed is one row for each event_timestamp, origin"
    )
    with pytest.raises(DeclarationError, match=message):
        prepared(declare(tmp_path), workspace, day, purpose="score")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'return raw["weather"]',
            "return []",
            "prepare_weather returned list; allowed is a pandas",
        ),
        (
            'return raw["weather"]',
            "return raw['weather'].drop(columns='sky')",
            "returned no column sky",
        ),
        (
            'return raw["weather"]',
            "return raw['weather'].drop(columns='origin')",
            "no column origin",
        ),
        ('return raw["weather"]', "return raw['weather'].assign(temp='warm')", "temp holds object"),
        (
            'return raw["weather"]',
            "w = raw['weather']; return w.assign(event_timestamp=w['event_timestamp'].dt.tz_localize(None))",
            r"event_timestamp as datetime64\[us\]; allowed is times with a zone",
        ),
        (
            'return raw["weather"]',
            "import pandas; return pandas.concat([raw['weather']] * 2)",
            r"6 rows of 2026-01-01 more than once, first \{'event_timestamp'",
        ),
        ('"distance"]]', '"distance"]].head(3)', "prepare_requests returned 3 rows for 48"),
        (
            '"distance"]]',
            '"distance"]].rename(columns={"distance": "temp"})',
            "returned temp; allowed",
        ),
        (
            'return raw["flights"][["origin", "distance"]]',
            "return 3",
            "prepare_requests returned int",
        ),
    ],
)
def test_a_function_that_returns_what_cannot_be_used_is_refused(
    workspace: Workspace, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MODULE
    declaration = declare_flights(tmp_path / "example", MODULE.replace(old, new))
    with pytest.raises(DeclarationError, match=message) as refusal:
        prepared(declaration, workspace, store_days(workspace)[0], purpose="score")
    assert "features.py" in str(refusal.value)


def test_a_request_feature_has_one_type(workspace: Workspace, tmp_path: Path) -> None:
    declaration = declare_flights(tmp_path / "example")
    days = store_days(workspace, DAYS[:1])
    text = flights(DAYS[1]).astype({"distance": str})
    days.append(store_frame(workspace, text, key=DAYS[1], sources={"weather": weather(DAYS[1])}))
    with pytest.raises(DeclarationError, match="distance as number in 2026-01-01 and string in"):
        prepared(declaration, workspace, *days, purpose="score")


def test_a_slice_that_is_no_column_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    declaration = declare_flights(tmp_path / "example", evaluation={"slices": ["gate"]})
    with pytest.raises(DeclarationError, match="names gate; allowed are features and columns"):
        prepared(declaration, workspace, store_days(workspace)[0], purpose="score")


def test_a_set_for_scoring_has_no_split(declaration: Declaration, workspace: Workspace) -> None:
    found = prepared(declaration, workspace, store_days(workspace)[0], purpose="score")
    assert found.holdout_start is None
    with pytest.raises(ValueError, match="prepared to score has no holdout rows"):
        read_rows(workspace.store, found, "holdout")


def test_a_day_with_every_row_set_aside_is_an_empty_part(
    declaration: Declaration, workspace: Workspace
) -> None:
    first, second, _ = store_days(workspace)
    aside = workspace.store.put_table("aside.parquet", pd.DataFrame({"row_id": range(48)}))
    snapshot = snapshot_of(first, second, purpose="score")
    report = validated(snapshot, quarantined={first.digest: aside})
    found = prepare(declaration, workspace, snapshot, report)
    assert [part.rows for part in found.parts] == [0, 48]
    assert len(read_rows(workspace.store, found, "all")) == 48


def test_the_newest_features_of_a_set_go_online(
    declaration: Declaration, workspace: Workspace
) -> None:
    found = prepared(declaration, workspace, *store_days(workspace))
    end = datetime(2026, 1, 4, tzinfo=UTC)
    for _ in range(2):
        done = features.materialize(declaration, workspace, found)
        assert done == {"weather": (end - timedelta(hours=3), end)}
        store = features.open_store(declaration, workspace)
        answer = store.get_online_features(["weather:temp"], [{"origin": "JFK"}]).to_dict()
        assert answer["temp"] == [322.0]


def test_without_a_module_the_newest_row_of_each_entity_goes_online(
    workspace: Workspace, tmp_path: Path
) -> None:
    declaration = declare(tmp_path)
    day = store_frame(workspace, flights(DAYS[0]), key=DAYS[0])
    found = prepared(declaration, workspace, day, purpose="score")
    features.materialize(declaration, workspace, found)
    store = features.open_store(declaration, workspace)
    asked = [{"origin": "JFK"}, {"origin": "EWR"}]
    answer = store.get_online_features(store.get_feature_service("example"), asked).to_dict()
    assert answer["distance"] == [47.0, 46.0]


def test_whole_number_keys_are_exact_and_a_missing_one_joins_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    data = {"entities": ["ticket"]}
    declaration = declare(tmp_path, data=data)
    frame = flights(DAYS[0]).assign(event_timestamp=pd.Timestamp(DAYS[0], tz="UTC"))
    tickets = pd.array([2**60 + n for n in range(48)], dtype="Int64")
    tickets[5] = pd.NA
    full = flights(DAYS[1]).assign(ticket=range(2**60, 2**60 + 48))
    first = store_frame(workspace, frame.assign(ticket=tickets), key=DAYS[0])
    found = prepared(declaration, workspace, first, purpose="score")
    rows = read_rows(workspace.store, found, "all")
    assert rows["distance"].dropna().tolist() == [n for n in range(48) if n != 5]
    second = store_frame(workspace, full, key=DAYS[1])
    found = prepared(declaration, workspace, second, purpose="score")
    assert read_rows(workspace.store, found, "all")["ticket"].tolist() == full["ticket"].tolist()
    features.materialize(declaration, workspace, found)
    store = features.open_store(declaration, workspace)
    asked = [{"ticket": 2**60 + 1}, {"ticket": 2**60 + 2}]
    assert store.get_online_features(["example:distance"], asked).to_dict()["distance"] == [1, 2]


def test_without_a_time_to_live_the_lookback_is_as_far_as_a_day_sees(
    workspace: Workspace, tmp_path: Path
) -> None:
    declaration = declare_flights(tmp_path / "example", MODULE.replace("hours=3", "0"))
    first, second, _ = store_days(workspace)
    assert features.lookback(declaration) == timedelta(hours=12)
    found = prepared(declaration, workspace, first, second, purpose="score")
    rows = read_rows(workspace.store, found, "all")
    assert rows["temp"].isna().sum() == 2, "only those before the first observation"
