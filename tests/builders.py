"""Small real things for tests: a workspace, a declaration, partitions and snapshots of frames."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.declaration import Declaration, Period
from evergreen.ledger import Ledger
from evergreen.lifecycle.contracts import Partition, PartitionFile, Snapshot
from evergreen.lifecycle.rows import LABELS, MAIN
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace
from tests.homes import furnish

if TYPE_CHECKING:
    import pandas as pd


def workspace_in(folder: Path) -> Workspace:
    """A workspace whose every place lies below ``folder``."""
    return Workspace(
        home=furnish(folder),
        ledger=Ledger(f"sqlite:///{folder}/ledger.db"),
        store=Store(f"file://{folder}/store"),
        tracking=lambda: f"sqlite:///{folder}/mlflow.db",
    )


def declare(folder: Path, **sections: Any) -> Declaration:
    """A binary model of ``flights``-like rows; ``sections`` are merged over it, one level deep."""
    content: dict[str, Any] = {
        "name": "example",
        "task": "binary_classification",
        "owner": {"team": "ops", "contact": "ops@example.com"},
        "data": {
            "uri": "landing/{partition}.parquet",
            "partition": "day",
            "entities": ["origin"],
            "label": {"column": "late", "timestamp": "label_timestamp"},
        },
        "training": {"estimator": "sklearn.linear_model.LogisticRegression"},
        "evaluation": {"primary": "log_loss"},
    }
    for name, section in sections.items():
        merged = {**content.get(name, {}), **section} if isinstance(section, dict) else section
        content[name] = merged
    declaration = Declaration.model_validate(content)
    declaration._folder = folder
    return declaration


def store_frame(
    workspace: Workspace,
    frame: pd.DataFrame,
    *,
    key: str,
    sources: Mapping[str, pd.DataFrame] | None = None,
    period: Period = Period.DAY,
    ending: Literal["parquet", "csv"] = "parquet",
    revision: int = 1,
    sequence: int = 1,
) -> Partition:
    """Keep a frame, and those of further sources, as a registered partition is kept."""
    frames = {MAIN: frame, **(sources or {})}
    files = {
        name: _store_file(workspace, f"{name}/{key}.{ending}", each)
        for name, each in frames.items()
    }
    return Partition(
        key=key,
        revision=revision,
        sequence=sequence,
        start=period.start(key),
        end=period.end(key),
        digest=digest_of({name: file.sha256 for name, file in files.items()}),
        rows=len(frame),
        files=files,
    )


def store_labels(
    workspace: Workspace,
    frame: pd.DataFrame,
    *,
    key: str,
    period: Period = Period.DAY,
    ending: Literal["parquet", "csv"] = "parquet",
    revision: int = 1,
    sequence: int = 1,
) -> Partition:
    """Keep a frame as a registered partition of the labels' own table is kept."""
    file = _store_file(workspace, f"{LABELS}/{key}.{ending}", frame)
    return Partition(
        key=key,
        revision=revision,
        sequence=sequence,
        start=period.start(key),
        end=period.end(key),
        digest=digest_of({LABELS: file.sha256}),
        rows=len(frame),
        files={LABELS: file},
        source=LABELS,
    )


def snapshot_of(
    *partitions: Partition,
    context: tuple[Partition, ...] = (),
    labels: tuple[Partition, ...] = (),
    as_of: datetime = datetime(2099, 1, 1, tzinfo=UTC),
    purpose: Literal["train", "score"] = "train",
    immature: int = 0,
    never: int = 0,
) -> Snapshot:
    """A snapshot of partitions, oldest first; whatever isn't immature or never labelled matured."""
    rows = sum(partition.rows for partition in partitions)
    return Snapshot(
        model="example",
        purpose=purpose,
        as_of=as_of,
        start=partitions[0].start,
        end=partitions[-1].end,
        partitions=partitions,
        context=context,
        rows=rows,
        matured=rows - immature - never,
        immature=immature,
        never=never,
        columns={name: file.columns for name, file in partitions[-1].files.items()},
        labels=labels,
    )


def _store_file(workspace: Workspace, uri: str, frame: pd.DataFrame) -> PartitionFile:
    import pandas as pd
    import pyarrow as pa

    content = BytesIO()
    if uri.endswith(".csv"):
        frame.to_csv(content, index=False)
        frame = pd.read_csv(BytesIO(content.getvalue()))
    else:
        frame.to_parquet(content, index=False)
    content.seek(0)
    stored, sha, size = workspace.store.put_object(content)
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    return PartitionFile(
        uri=uri,
        sha256=sha,
        bytes=size,
        rows=len(frame),
        stored=stored,
        fingerprint=sha,
        columns={field.name: str(field.type) for field in schema},
    )
