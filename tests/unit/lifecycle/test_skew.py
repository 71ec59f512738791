"""What replicas answered with is what a training set would hold, or it is said which feature isn't."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd
import pytest
from airflow.sdk.exceptions import AirflowSkipException
from sqlalchemy import select

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import PartitionRow, SkewRow
from evergreen.lifecycle import features
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import FeatureSet, Partition, PartitionSkew, SkewReport
from evergreen.lifecycle.gating import served_skew
from evergreen.lifecycle.preparation import prepare
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.skew import detect_skew, record_skew
from evergreen.lifecycle.validation import validate
from evergreen.operators.preparation import MaterializeFeaturesOperator
from evergreen.operators.skew import DetectSkewOperator
from evergreen.workspace import Workspace
from tests.builders import snapshot_of, store_frame, workspace_in
from tests.feature_models import declare_flights, flights, weather

FIRST, SECOND, THIRD = "2026-01-01", "2026-01-02", "2026-01-03"
VALUES = ["temp", "gust", "seats"]
MODULE = dedent("""
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64
    from feast.value_type import ValueType

    LOOKBACK = timedelta(hours=6)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    weather = FeatureView(
        name="weather", entities=[origin], ttl=timedelta(hours=3),
        schema=[Field(name="temp", dtype=Float64), Field(name="gust", dtype=Float64)],
        source=FileSource(path="weather.parquet", timestamp_field="event_timestamp"),
    )
    noon = FeatureView(
        name="noon", entities=[origin], ttl=timedelta(days=1),
        schema=[Field(name="seats", dtype=Float64)],
        source=FileSource(path="noon.parquet", timestamp_field="event_timestamp"),
    )
    example = FeatureService(name="example", features=[weather, noon])

    def prepare_weather(raw):
        return raw["weather"].assign(gust=raw["weather"]["gust"].fillna(0.0))

    def prepare_noon(raw):
        flights = raw["flights"]
        return flights[flights["event_timestamp"].dt.hour == 12].rename(columns={"distance": "seats"})

    def prepare_requests(raw):
        return raw["flights"][["distance"]]
""")
UNFILLED = MODULE.replace(".fillna(0.0)", "")


class World:
    """A model of two views, its landed days, its online store and its prediction log."""

    def __init__(self, folder: Path, **skew: Any) -> None:
        self.folder = folder
        self.workspace: Workspace = workspace_in(folder)
        self.skew = {"min_rows": 40, **skew}
        self.code(MODULE)
        self.landed: dict[str, Partition] = {}
        self.logged = 0

    def code(self, module: str) -> None:
        """Write the feature module; no other test's, for modules are kept by what they say."""
        self.declaration: Declaration = declare_flights(
            self.folder / "example",
            f"{module}# {self.folder}\n",
            serving={"replicas": ["http://127.0.0.1:9"], "skew": self.skew},
            validation={"quarantine_at_most": 0.1},
        )

    def land(
        self, day: str, *, warmer: float = 0.0, doubled: bool = False, numbered: bool = False
    ) -> Partition:
        """Register a day: weather at 1, 5 and 22 o'clock, no gust in EWR; seats change at noon."""
        rows = flights(day)
        if doubled:  # the same key with other values: validation sets the second one aside
            rows = pd.concat([rows, rows.iloc[[24]].assign(distance=9)], ignore_index=True)
        rows["distance"] += pd.Timestamp(day).day * 100
        seen = weather(day)
        seen["temp"] += warmer
        seen["gust"] = [3.0 if origin == "JFK" else None for origin in seen["origin"]]
        if numbered:
            rows["origin"], seen["origin"] = (
                frame["origin"].map({"EWR": 1, "JFK": 2}) for frame in (rows, seen)
            )
        revision = self.landed[day].revision + 1 if day in self.landed else 1
        made = store_frame(
            self.workspace, rows, key=day, sources={"weather": seen}, revision=revision
        )
        with self.workspace.ledger.write() as session:
            row = PartitionRow(
                model="example",
                key=day,
                revision=revision,
                start=made.start,
                end=made.end,
                digest=made.digest,
                rows=made.rows,
                late=False,
                files={name: file.to_dict() for name, file in made.files.items()},
                maturity={},
            )
            session.add(row)
            session.flush()
            self.landed[day] = Partition.from_row(row)
        return self.landed[day]

    def prepare(self, day: str, *before: str) -> FeatureSet:
        """A day's feature set, as scoring has it made."""
        context = tuple(self.landed[each] for each in before)
        snapshot = snapshot_of(self.landed[day], context=context, purpose="score")
        report = validate(self.declaration, self.workspace, snapshot)
        return prepare(self.declaration, self.workspace, snapshot, report)

    def go_online(self, day: str, *before: str) -> None:
        """Put a day's newest features online."""
        features.materialize(self.declaration, self.workspace, self.prepare(day, *before))

    def answer(self, day: str, minutes: Sequence[int], **changes: Any) -> pd.DataFrame:
        """Ask for both origins at minutes of a day; log what the online store gives now."""
        start = pd.Timestamp(day, tz="UTC")
        asked = [(origin, start + pd.Timedelta(minutes=m)) for m in minutes for origin in ORIGINS]
        store = features.open_store(self.declaration, self.workspace)
        refs = ["weather:temp", "weather:gust", "noon:seats"]
        keys = [{"origin": origin} for origin, _ in asked]
        found = store.get_online_features(refs, keys).to_dict()
        self.logged += 1
        rows = pd.DataFrame(
            {
                "event_timestamp": [moment for _, moment in asked],
                "origin": [origin for origin, _ in asked],
                **{name: pd.Series(found[name], dtype="float64") for name in VALUES},
                "route": "predict",
                "role": "champion",
                "fallback": None,
                "online": ",".join(VALUES),
            }
        ).assign(**changes)
        self.log(rows)
        return rows

    def log(self, rows: pd.DataFrame) -> None:
        """Ship answers as a replica does, and compact them."""
        plain = rows.astype(object).where(rows.notna(), None)
        lines = [json.dumps(self.line(n, row)) for n, row in enumerate(plain.to_dict("records"))]
        name = segment_name("example", f"20260101T000000-one-{self.logged}")
        self.workspace.store.put_bytes(name, "".join(f"{line}\n" for line in lines).encode())
        compact(self.declaration, self.workspace)

    def line(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """An answered row as a replica writes it."""
        moment = row["event_timestamp"].isoformat()
        return {
            "request_id": f"{self.logged}-{number // 4}",
            "request_row": number % 4,
            "served_at": moment,
            "replica": "one",
            "route": row["route"],
            "role": row["role"],
            "model_version": "1",
            "event_timestamp": moment,
            "entities": {"origin": row["origin"]},
            "features": {**{name: row[name] for name in VALUES}, "distance": 1.0},
            "online": row["online"].split(",") if row["online"] else [],
            "slices": {"carrier": "AA"},
            "prediction": 0.5,
            "fallback": row["fallback"],
            "feature_age": 60.0,
        }

    def look(self, **given_: Any) -> SkewReport:
        """Detect and record, with data that is checked as for scoring."""
        check = partial(validate, self.declaration, self.workspace)
        report = detect_skew(self.declaration, self.workspace, check=check, **given_)
        record_skew(self.declaration, self.workspace, report)
        return report

    def one(self) -> PartitionSkew:
        """What a look finds in the only partition there is to compare."""
        (found,) = self.look().partitions
        return found

    def rows(self) -> list[SkewRow]:
        with self.workspace.ledger.read() as session:
            return list(session.scalars(select(SkewRow).order_by(SkewRow.id)))

    def signals(self) -> list[tuple[str, dict[str, Any]]]:
        with self.workspace.ledger.read() as session:
            found = records.open_signals(session, "example")
        return [(signal.key, signal.evidence) for signal in found if signal.cause == "skew"]

    def tables(self) -> set[str]:
        return {str(p) for p in (self.folder / "store" / "tables" / "features").rglob("*.parquet")}


ORIGINS = ("EWR", "JFK")
HOUR = range(60)  # the first hour of a day: what was last seen the day before still holds


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.land(FIRST)
    made.go_online(FIRST)
    return made


def by_feature(found: PartitionSkew) -> dict[str, tuple[int, int]]:
    return {each.feature: (each.mismatches, each.missing) for each in found.features}


def test_what_the_online_store_gave_is_what_the_join_gives(world: World) -> None:
    rows = world.answer(SECOND, HOUR)
    assert rows["temp"].eq(122.0).all()
    assert set(rows["seats"]) == {124.0, 125.0}
    world.land(SECOND)
    world.prepare(SECOND, FIRST)
    tables = world.tables()
    found = world.one()
    assert world.tables() == tables, "scoring's tables are joined, none is made anew"
    assert by_feature(found) == dict.fromkeys(VALUES, (0, 0)), "request features aren't compared"
    assert (found.rows, found.compared, found.skipped, found.violates) == (120, 120, None, ())
    assert world.signals() == []


def test_a_stale_online_store_differs_in_the_rows_that_changed(world: World) -> None:
    world.answer(SECOND, range(30, 90))
    world.land(SECOND)
    found = world.one()
    assert by_feature(found) == {"temp": (60, 0), "gust": (0, 0), "seats": (0, 0)}
    assert found.violates == ("temp",)
    ((key, evidence),) = world.signals()
    said = "temp as served in 2026-01-02 differs from the join offline in 50.00% of the answers, "
    said += "allowed are 1.00%"
    assert key == f"{SECOND}/{found.digest[:12]}"
    assert evidence == {
        "partition": SECOND,
        "features": ["temp"],
        "share": {"temp": 0.5},
        "reasons": [said],
    }


def test_a_feature_made_in_two_ways_is_the_one_that_violates(world: World) -> None:
    world.code(UNFILLED)
    world.go_online(FIRST)
    world.answer(SECOND, HOUR)
    world.code(MODULE)
    world.land(SECOND)
    found = world.one()
    assert by_feature(found) == {"temp": (0, 0), "gust": (60, 60), "seats": (0, 0)}
    assert found.violates == ("gust",)
    said = "\n".join(SkewReport.model_validate(world.rows()[0].evidence).describe())
    assert "FAIL  gust: 50.00% differ, of which 60 are there on one side only" in said


def test_a_fallback_is_the_value_that_was_served(world: World) -> None:
    world.answer(SECOND, HOUR, seats=np.nan, temp=-1.0, fallback="defaults")
    world.land(SECOND)
    assert by_feature(world.one()) == {"temp": (120, 0), "gust": (0, 0), "seats": (120, 120)}


def test_only_what_came_from_the_online_store_is_compared(world: World) -> None:
    world.answer(SECOND, range(30), temp=-1.0, online="gust,seats")
    world.answer(SECOND, range(30, 50), gust=-1.0, online="temp")
    world.answer(SECOND, HOUR, temp=-1.0, route="invocations")
    world.answer(SECOND, HOUR, temp=-1.0, role="shadow")
    world.land(SECOND)
    found = world.one()
    assert (found.rows, found.compared) == (220, 100)
    assert by_feature(found) == dict.fromkeys(VALUES, (0, 0))


def test_a_feature_compared_too_seldom_does_not_violate(world: World) -> None:
    world.answer(SECOND, range(30), online="gust,seats")
    world.answer(SECOND, range(30, 40), temp=-1.0, role="canary")
    world.land(SECOND)
    found = world.one()
    assert by_feature(found)["temp"] == (20, 0)
    assert found.violates == ()


def test_a_repeat_writes_nothing_and_raises_nothing(world: World) -> None:
    world.answer(SECOND, range(30, 90))
    world.land(SECOND)
    report = detect_skew(world.declaration, world.workspace)
    assert detect_skew(world.declaration, world.workspace) == report, "a killed task's second try"
    for _ in range(2):
        record_skew(world.declaration, world.workspace, report)
    assert world.look().partitions == ()
    (row,) = world.rows()
    assert (row.digest, row.judged, row.violates) == (report.partitions[0].digest, True, ["temp"])
    assert SkewReport.model_validate(row.evidence) == report
    assert len(world.signals()) == 1


def test_more_answers_and_corrected_data_are_compared_again(world: World) -> None:
    world.answer(SECOND, HOUR)
    world.land(SECOND)
    assert world.one().violates == ()
    world.answer(SECOND, range(60, 90))
    late = world.one()
    assert (late.compared, late.violates) == (180, ("temp",))
    world.land(FIRST, warmer=7.0)
    corrected = world.one()
    assert by_feature(corrected)["temp"] == (180, 0), "the day before feeds this one's features"
    assert [row.partition for row in world.rows()] == [SECOND] * 3
    assert len(world.signals()) == 2


def test_a_change_that_is_taken_back_is_compared_anew(world: World) -> None:
    world.answer(SECOND, HOUR)
    world.land(SECOND)
    assert world.one().violates == ()
    for _ in range(2):
        world.code(UNFILLED)
        assert world.one().violates == ("gust",)
        assert world.look().partitions == ()
        world.code(MODULE)
        assert world.one().violates == ()
        assert world.look().partitions == ()
    assert len({row.digest for row in world.rows()}) == 5


def test_other_bounds_judge_anew(world: World) -> None:
    world.answer(SECOND, range(30, 90))
    world.land(SECOND)
    assert world.one().violates == ("temp",)
    world.skew |= {"mismatch_at_most": 0.6}
    world.code(MODULE)
    assert world.one().violates == ()


def test_too_few_answers_are_not_judged(world: World) -> None:
    world.answer(SECOND, range(10), temp=-1.0)
    world.land(SECOND)
    found = world.one()
    assert (found.rows, found.compared, found.features, found.violates) == (20, 0, (), ())
    assert found.skipped == (
        "20 answers with features of the online store are fewer than serving.skew.min_rows: 40"
    )
    assert not world.rows()[0].judged
    assert world.look().partitions == ()


def test_rows_set_aside_are_not_joined(world: World) -> None:
    world.land(FIRST, doubled=True)
    world.go_online(FIRST)
    world.answer(SECOND, HOUR)
    world.land(SECOND)
    assert by_feature(world.one())["seats"] == (0, 0)


def test_blocked_data_is_not_compared(world: World) -> None:
    world.answer(SECOND, HOUR)
    world.land(SECOND)
    world.declaration = world.declaration.model_copy(
        update={
            "validation": world.declaration.validation.model_copy(
                update={"quarantine_at_most": -1.0}
            )
        }
    )
    assert world.one().skipped == "its data is blocked; land corrected files"


def test_nothing_is_compared_before_it_has_landed(world: World) -> None:
    assert detect_skew(world.declaration, workspace_in(world.folder / "empty")).as_of is None
    world.answer(SECOND, HOUR)
    assert world.look().partitions == ()
    world.land(SECOND)
    assert world.look(as_of=datetime(2026, 1, 2, 12, tzinfo=UTC)).partitions == ()
    assert world.one().compared == 120


def test_a_large_partition_is_sampled_by_the_seed(tmp_path: Path) -> None:
    world = World(tmp_path, sample=50)
    world.land(FIRST)
    world.go_online(FIRST)
    world.answer(SECOND, range(30, 90))
    world.land(SECOND)
    found = world.one()
    assert (found.rows, found.compared) == (120, 50)
    (mismatches, _) = by_feature(found)["temp"]
    assert 0 < mismatches < 50
    (kept,) = world.rows()
    with world.workspace.ledger.write() as session:
        session.delete(session.merge(kept))
    assert world.one() == found


def test_a_key_that_a_client_made_up_finds_nothing(world: World) -> None:
    """Its text made text of the log's whole column; the others find what they found online."""
    made_up = world.answer(SECOND, HOUR, origin=["1", "JFK", "1.0", None] * 30)
    world.land(FIRST, numbered=True)
    world.land(SECOND, numbered=True)
    world.code(MODULE.replace("ValueType.STRING", "ValueType.INT64"))
    assert made_up["temp"].notna().all()
    assert by_feature(world.one())["temp"] == (60, 60)


def test_the_newest_judged_partition_speaks_at_the_gate(world: World) -> None:
    def violating() -> tuple[str, ...] | None:
        found = served_skew(world.declaration, world.workspace)
        return found.partitions[-1].violates if found and found.partitions else None

    assert served_skew(world.declaration, world.workspace) is None
    world.answer(SECOND, range(3))
    world.land(SECOND)
    world.look()
    unjudged = served_skew(world.declaration, world.workspace)
    assert unjudged is not None
    assert unjudged.partitions == ()
    world.answer(SECOND, range(30, 90))
    world.look()
    assert violating() == ("temp",)
    world.go_online(SECOND, FIRST)
    world.answer(THIRD, HOUR)
    world.land(THIRD)
    world.look()
    assert violating() == ()


def test_the_operator_detects_and_is_skipped_when_there_is_nothing(world: World) -> None:
    operator = DetectSkewOperator(task_id="detect_skew", model=world.declaration)
    with pytest.raises(AirflowSkipException, match="nothing was served in time that has landed"):
        operator.run_stage(world.workspace, {})  # type: ignore[arg-type]  # it reads no context
    world.answer(SECOND, range(30, 90))
    world.land(SECOND)
    report = operator.run_stage(world.workspace, {})  # type: ignore[arg-type]  # as above
    assert report.partitions[0].violates == ("temp",)
    assert len(world.rows()) == len(world.signals()) == 1


def test_the_operator_puts_the_newest_features_online(world: World) -> None:
    world.land(SECOND)
    reference = world.prepare(SECOND, FIRST).save(world.workspace.store).to_dict()
    operator = MaterializeFeaturesOperator(
        task_id="materialize", model=world.declaration, features=reference
    )
    for _ in range(2):
        found = operator.run_stage(world.workspace, {})  # type: ignore[arg-type]  # as above
    end = datetime(2026, 1, 3, tzinfo=UTC)
    assert found.views == {
        "weather": (end - timedelta(hours=3), end),
        "noon": (end - timedelta(days=1), end),
    }
    rows = world.answer(THIRD, [0])
    assert rows["temp"].tolist() == [222.0, 222.0]
    alone = world.declaration.model_copy(
        update={"serving": world.declaration.serving.model_copy(update={"replicas": ()})}
    )
    operator = MaterializeFeaturesOperator(task_id="other", model=alone, features=reference)
    with pytest.raises(AirflowSkipException, match="no server is declared"):
        operator.run_stage(world.workspace, {})  # type: ignore[arg-type]  # as above
