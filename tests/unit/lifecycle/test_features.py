"""Feature definitions are read and refused plainly; Feast joins, registers and serves them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from evergreen.declaration import Declaration, DeclarationError
from evergreen.lifecycle import features
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.sets import put_table
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_models import MODULE, declare_flights

COLUMNS = {
    "event_timestamp": "timestamp[us, tz=UTC]",
    "origin": "string",
    "late": "double",
    "label_timestamp": "timestamp[us, tz=UTC]",
    "distance": "int64",
    "cancelled": "bool",
    "carrier": "string",
}
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare_flights(tmp_path / "example")


def table(*rows: tuple[str, int, float | None, str | None]) -> pd.DataFrame:
    """A feature table of (origin, hour, temp, sky)."""
    frame = pd.DataFrame(rows, columns=["origin", "hour", "temp", "sky"])
    times = pd.Timestamp(START) + pd.to_timedelta(frame.pop("hour"), unit="h")
    return frame.assign(event_timestamp=times.dt.as_unit("us"), temp=frame["temp"].astype(float))


def put(workspace: Workspace, frame: pd.DataFrame, name: str = "weather") -> str:
    return put_table(workspace.store, f"tables/{name}.parquet", frame, {})


def online(declaration: Declaration, workspace: Workspace) -> dict[str, list[object]]:
    asked = [{"origin": "EWR"}, {"origin": "JFK"}]
    refs = ["weather:temp", "weather:sky"]
    store = features.open_store(declaration, workspace)
    found: dict[str, list[object]] = store.get_online_features(refs, asked).to_dict()
    return found


def test_a_module_is_read_as_it_is_and_leaves_no_trace_on_the_path(tmp_path: Path) -> None:
    module = MODULE.replace("hours=6", "hours=HOURS") + "\nfrom .hours import HOURS\n"
    module = "from .hours import HOURS\n" + MODULE.replace("hours=6", "hours=HOURS")
    declaration = declare_flights(tmp_path / "example", module + "\n")
    (tmp_path / "example" / "hours.py").write_text("HOURS = 5\n")
    before = list(sys.path)
    first = features.load(declaration, {})
    assert first.lookback == timedelta(hours=5)
    assert features.lookback(declaration) == timedelta(hours=8)
    assert first.features == (
        Feature(name="temp", type="number"),
        Feature(name="sky", type="string"),
    )
    (tmp_path / "example" / "hours.py").write_text("HOURS = 7\n")
    assert features.load(declaration, {}).lookback == timedelta(hours=7)
    assert features.load(declaration, {}).digest != first.digest
    assert sys.path == before
    assert "hours" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'name="example", features',
            'name="other", features',
            "no FeatureService named example; found other",
        ),
        (
            "def prepare_weather",
            "def prepare_wether",
            r"no function prepare_weather.*found prepare_wether",
        ),
        ("LOOKBACK = timedelta(hours=6)", "", "LOOKBACK is None; allowed is a timedelta"),
        (
            "value_type=ValueType.STRING",
            "value_type=ValueType.FLOAT",
            "value_type FLOAT; allowed are",
        ),
        (
            "dtype=Float64)",
            "dtype=__import__('feast').types.Int64)",
            "temp is Int64; allowed are Float64",
        ),
        (
            'field="event_timestamp"',
            'field="at"',
            "timestamp_field 'at'; allowed is event_timestamp",
        ),
        ('name="temp"', 'name="label"', "a feature is named label; allowed are all names but"),
        (
            "features=[weather])",
            "features=[weather])\ndel weather",
            "takes weather; a module-level FeatureView",
        ),
        ("LOOKBACK =", "1 / 0 #", "ZeroDivisionError: division by zero"),
        (
            'name="origin", join_keys=["origin"]',
            'name="origin", join_keys=["dest"]',
            "joined by dest; data.entities declares origin",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MODULE
    declaration = declare_flights(tmp_path / "example", MODULE.replace(old, new, 1))
    with pytest.raises(DeclarationError, match=message) as refusal:
        features.load(declaration, {})
    assert str(tmp_path / "example" / "features.py") in str(refusal.value)


def test_a_missing_module_is_refused_with_what_is_there(tmp_path: Path) -> None:
    declaration = declare_flights(tmp_path / "example")
    (tmp_path / "example" / "features.py").rename(tmp_path / "example" / "feature.py")
    with pytest.raises(DeclarationError, match=r"no such file.*the folder has feature\.py"):
        features.load(declaration, {})


def test_without_a_module_every_other_column_is_a_feature_of_its_own_row(tmp_path: Path) -> None:
    definitions = features.load(declare(tmp_path), COLUMNS)
    assert definitions.features == (
        Feature(name="distance", type="number"),
        Feature(name="cancelled", type="number"),
        Feature(name="carrier", type="string"),
    )
    assert definitions.history == timedelta(0)
    assert list(definitions.views) == ["example"]
    assert definitions.requests is None


def test_without_a_module_nor_a_column_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    bare = {name: COLUMNS[name] for name in list(COLUMNS)[:4]}
    with pytest.raises(DeclarationError, match="no column is left to be a feature"):
        features.load(declare(tmp_path), bare)


def test_the_code_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    declaration = declare_flights(tmp_path / "example")
    first = features.code_digest(declaration)
    (tmp_path / "example" / "notes.txt").write_text("not code")
    assert features.code_digest(declaration) == first
    (tmp_path / "example" / "features.py").rename(tmp_path / "example" / "renamed.py")
    assert features.code_digest(declaration) != first


def test_the_join_is_point_in_time_and_keeps_every_row(
    declaration: Declaration, workspace: Workspace
) -> None:
    uri = put(workspace, table(("JFK", 1, 1.0, "a"), ("JFK", 2, None, None), ("EWR", 1, 7.0, "e")))
    asked = [
        ("JFK", 59),
        ("JFK", 60),
        ("JFK", 119),
        ("JFK", 120),
        ("JFK", 300),
        ("JFK", 301),
        ("EWR", 240),
        ("LGA", 60),
        ("JFK", 60),
        (None, 60),
    ]
    rows = pd.DataFrame(
        {
            "row_id": range(len(asked), 0, -1),
            "event_timestamp": [
                pd.Timestamp(START) + pd.Timedelta(minutes=minute) for _, minute in asked
            ],
            "origin": pd.Series([origin for origin, _ in asked], dtype="string"),
        }
    )
    definitions = features.load(declaration, {})
    joined = features.join(definitions, "example", rows, {"weather": [uri]}, workspace.store)
    assert joined["row_id"].tolist() == list(range(1, 11))
    by_row = joined.set_index("row_id").loc[rows["row_id"]]
    assert [None if pd.isna(t) else t for t in by_row["temp"]] == [
        None,
        1.0,
        1.0,
        None,
        None,
        None,
        7.0,
        None,
        1.0,
        None,
    ]
    assert by_row["sky"].tolist() == [None, "a", "a", None, None, None, "e", None, "a", None]
    assert joined["temp"].dtype == "float64"


def test_the_join_answers_as_feasts_own_store_does(
    declaration: Declaration, workspace: Workspace, tmp_path: Path
) -> None:
    known = [("JFK" if n % 3 else "EWR", n, float(n), f"s{n}") for n in range(0, 24, 2)]
    uri = put(workspace, table(*known))
    times = pd.date_range(START, periods=200, freq="11min", tz="UTC").as_unit("us")
    origins = pd.Series(["JFK", "EWR"] * 100, dtype="string")
    rows = pd.DataFrame({"row_id": range(200), "event_timestamp": times, "origin": origins})
    definitions, tables = features.load(declaration, {}), {"weather": [uri]}
    ours = features.join(definitions, "example", rows, tables, workspace.store)
    profile = tmp_path / "duckdb.yaml"
    profile.write_text("offline_store: {type: duckdb}\n")
    feasts = features.join(
        definitions, "example", rows, tables, workspace.store, feature_store=profile
    )
    pd.testing.assert_frame_equal(ours, feasts)
    assert 0 < ours["temp"].isna().sum() < 200


def test_a_lost_row_is_an_error(
    declaration: Declaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evergreen.lifecycle import pointintime

    join = pointintime._join
    monkeypatch.setattr(pointintime, "_join", lambda rows, *rest: join(rows.limit(1), *rest))
    rows = pd.DataFrame(
        {"row_id": [0, 1], "event_timestamp": [pd.Timestamp(START)] * 2, "origin": "JFK"}
    )
    uri = put(workspace, table(("JFK", 1, 1.0, "a")))
    with pytest.raises(features.JoinError, match=r"joining 1 views gave 1 rows.*for 2 that asked"):
        features.join(
            features.load(declaration, {}), "example", rows, {"weather": [uri]}, workspace.store
        )


def test_definitions_are_registered_once_and_again_when_they_change(
    declaration: Declaration, workspace: Workspace
) -> None:
    registry = workspace.home / "feast" / "example" / "registry.db"
    assert features.apply_definitions(declaration, workspace, {})
    written = registry.stat()
    assert not features.apply_definitions(declaration, workspace, {})
    assert registry.stat() == written
    declare_flights(declaration.folder, MODULE.replace('name="sky"', 'name="clouds"'))
    assert features.apply_definitions(declaration, workspace, {})
    view = features.open_store(declaration, workspace).get_feature_view("weather")
    assert [field.name for field in view.features] == ["temp", "clouds"]


def test_a_broken_registry_is_written_anew(declaration: Declaration, workspace: Workspace) -> None:
    features.apply_definitions(declaration, workspace, {})
    (workspace.home / "feast" / "example" / "registry.db").write_bytes(b"\xff torn")
    assert features.apply_definitions(declaration, workspace, {})
    assert features.open_store(declaration, workspace).get_feature_service("example")


def test_materializing_twice_changes_nothing(
    declaration: Declaration, workspace: Workspace
) -> None:
    uri = put(workspace, table(("JFK", 1, 1.0, "a"), ("JFK", 5, 5.0, None), ("EWR", 3, 3.0, "e")))
    done = features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, END)
    assert done == {"weather": (START, END)}
    first = online(declaration, workspace)
    assert first == {"origin": ["EWR", "JFK"], "temp": [3.0, 5.0], "sky": ["e", None]}
    features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, END)
    assert online(declaration, workspace) == first


def test_an_older_window_never_moves_an_online_row_back(
    declaration: Declaration, workspace: Workspace
) -> None:
    uri = put(workspace, table(("JFK", 1, 1.0, "a"), ("JFK", 5, 5.0, "b"), ("EWR", 5, 9.0, "e")))
    noon, five = START + timedelta(hours=12), START + timedelta(hours=5)
    features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, five)
    assert online(declaration, workspace)["temp"] == [None, 1.0], (
        "the end is not part of the window"
    )
    features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, noon)
    features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, five)
    assert online(declaration, workspace)["temp"] == [9.0, 5.0]


def test_a_row_of_missing_values_and_a_corrected_one_reach_the_online_store(
    declaration: Declaration, workspace: Workspace
) -> None:
    before = put(workspace, table(("JFK", 1, 1.0, "a"), ("EWR", 1, 1.0, "a")), "before")
    after = put(workspace, table(("JFK", 1, None, None), ("EWR", 2, None, None)), "after")
    for uri in (before, after):
        features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, END)
    assert online(declaration, workspace) == {
        "origin": ["EWR", "JFK"],
        "temp": [None, None],
        "sky": [None, None],
    }


def test_two_that_materialize_at_once_end_with_the_newest(
    declaration: Declaration, workspace: Workspace
) -> None:
    uris = [put(workspace, table(("JFK", h, float(h), "a")), f"hour{h}") for h in (3, 8, 5)]
    with ThreadPoolExecutor(3) as pool:
        list(
            pool.map(
                lambda uri: features.materialize_tables(
                    declaration, workspace, {"weather": [uri]}, START, END
                ),
                uris,
            )
        )
    assert online(declaration, workspace)["temp"] == [None, 8.0]
