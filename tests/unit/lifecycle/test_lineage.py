"""Every kind of result tells of data, under names that hold no secret."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration.schema import Stage
from evergreen.errors import CorruptError
from evergreen.lifecycle import contracts, lineage
from evergreen.lifecycle.contracts import (
    Feature,
    FeaturePart,
    FeatureSet,
    Partition,
    PartitionFile,
    Reference,
    Result,
    Snapshot,
    TrainedModel,
)
from evergreen.lifecycle.lineage import Data, naming, told
from evergreen.store import Store

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)
FILE = PartitionFile(
    uri="/landing/2024-01.parquet", sha256="landed", bytes=10, rows=5, stored="s3://b/objects/1",
    fingerprint="f", columns={"row": "int64"},
)  # fmt: skip
PARTITION = Partition(
    key="2024-01", revision=1, sequence=1, start=START, end=END, digest="p", rows=5,
    files={"data": FILE},
)  # fmt: skip
SNAPSHOT = Snapshot(
    model="example", purpose="train", as_of=END, start=START, end=END, partitions=(PARTITION,),
    rows=5, matured=5, immature=0, never=0, columns={},
)  # fmt: skip
FEATURES = FeatureSet(
    model="example", purpose="train", snapshot="s", as_of=END, rows=5,
    features=(Feature(name="signal", type="number"),),
    parts=(
        FeaturePart(
            partition="2024-01", start=START, end=END, digest="d", uri="s3://b/tables/1", rows=5
        ),
    ),
)  # fmt: skip
TRAINED = TrainedModel(
    model="example", mlflow_run="0a", model_uri="models:/m-1", experiment="evergreen/example",
    estimator="e", features=FEATURES.features, snapshot="s", predictions_digest="p",
    feature_set=Reference(kind="features", uri="s3://b/documents/1", digest="d"),
    code_digest="c", environment_digest="e", parameters={}, training_rows=4,
    holdout_start=END, trained_through=END,
)  # fmt: skip
KINDS = [
    kind for kind in lineage.kinds().values() if kind.__module__.startswith(contracts.__name__)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_has_an_entry(kind: type[Result]) -> None:
    assert told.dispatch(kind) is not told.dispatch(object)


def test_stages_and_kinds_are_called_what_they_are_called_elsewhere() -> None:
    assert set(lineage.READS) <= set(get_args(Stage))
    assert set().union(*lineage.READS.values()) <= set(lineage.kinds())


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/a/b.parquet", ("s3://bucket", "a/b.parquet")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("s3://key:secret@bucket/a", ("s3://bucket", "a")),
        ("gs://bucket/a", ("gs://bucket", "a")),
        ("abfss://container@account.dfs.core.windows.net/a",
         ("abfss://container@account.dfs.core.windows.net", "a")),
        ("http://user:secret@host:8080/a?token=secret#f", ("http://host:8080", "a")),
        ("file:///tmp/a b.json", ("file", "/tmp/a b.json")),
        ("/tmp/a:b.json", ("file", "/tmp/a:b.json")),
        ("models:/example/2", ("models", "example/2")),
        ("runs:/0a/model", ("runs", "0a/model")),
        ("x-evergreen://example/partitions", ("x-evergreen://example", "partitions")),
    ],
)  # fmt: skip
def test_names_follow_openlineages_rules(uri: str, name: tuple[str, str]) -> None:
    assert naming(uri) == name


@given(st.sampled_from(["s3", "http", "gs"]), st.from_regex(r"\A[a-z0-9]{1,9}:[A-Za-z0-9]{8,20}\Z"))
def test_no_credential_of_a_uri_is_in_its_name(scheme: str, secret: str) -> None:
    assert secret not in "".join(naming(f"{scheme}://{secret}@host/path"))


def test_what_a_stage_reads_by_what_it_was_given(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}")
    references = [SNAPSHOT.save(store), FEATURES.save(store), TRAINED.save(store)]
    documents = [Data(each.uri, each.digest) for each in references]

    def read(stage: str) -> list[Data]:
        return [data for data in lineage.given(store, stage, references) if data not in documents]

    (part,) = FEATURES.parts
    model = Data(TRAINED.model_uri, TRAINED.mlflow_run)
    assert read("evaluate") == [Data(part.uri, part.digest, part.rows), model]
    assert [data.digest for data in read("validate_data")] == ["landed"]
    assert read("promote") == []
    assert list(lineage.given(store, "promote", references)) == documents


def test_a_document_that_was_changed_is_no_lineage(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}")
    saved = FEATURES.save(store)
    other = Reference(kind=saved.kind, uri=saved.uri, digest="0" * 64)
    with pytest.raises(CorruptError, match="it was changed"):
        list(lineage.given(store, "train", [other]))


def test_a_stage_in_between_continues_the_line() -> None:
    """What features name as written is what training is told to have read."""
    assert told(FEATURES).written == told(FEATURES).named
    assert told(FEATURES).rows == 5
    assert told(TRAINED).rows == 4
