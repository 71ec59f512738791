"""Labels that land by themselves: late, out of order, corrected, never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evergreen.ledger import records
from tests.scenarios.project import Project
from tests.scenarios.world import WATCHING, month, parted

pytestmark = pytest.mark.dags

APART: dict[str, Any] = {
    **WATCHING,
    "data": {
        "label": {
            "column": "late",
            "timestamp": "label_timestamp",
            "uri": "landing/labels/{partition}.parquet",
            "key": ["row"],
        }
    },
    "monitoring": {
        **WATCHING["monitoring"],
        "performance": {"matured_at_least": 0.2},
        "patience": "120d",
    },
}


def land_labels(project: Project, key: str, labels: pd.DataFrame) -> None:
    """Labels that became known in a month."""
    target = project.home / "landing" / "labels" / f"{key}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    labels.to_parquet(target, index=False)


def known_in(key: str, labels: pd.DataFrame) -> pd.DataFrame:
    """The same labels, known only in that month."""
    start = pd.Timestamp(key, tz="UTC")
    spread = pd.to_timedelta(range(len(labels)), unit="min")
    return labels.assign(label_timestamp=(start + spread).as_unit("us"))


def measured(project: Project, window: str) -> dict[str, Any]:
    """The latest measurement of a window's performance."""
    with project.workspace.ledger.read() as session:
        rows = records.measurements(session, project.name, "performance")
        return dict(next(row.evidence for row in rows if row.window == window))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Version 1 has learned January; its last six hours of labels are known in February."""
    project = Project.create(tmp_path / "project", **APART)
    rows, labels = parted(month("2024-01"))
    january = labels["label_timestamp"] < pd.Timestamp("2024-02-01", tz="UTC")
    land_labels(project, "2024-01", labels[january])
    project.live(m2024_01=rows)
    assert project.champion() == "1"
    return project


def test_late_out_of_order_corrected_and_never(project: Project) -> None:
    """One month is answered; its labels come over the next two, and each row counts once."""
    rows, labels = parted(month("2024-02"), first=1000)
    runs = project.live(m2024_02=rows)
    assert (
        "0 of 600 answers of version 1 have a label"
        in (runs["monitor"].logs["measure_performance"])
    )
    before = measured(project, "2024-02")
    assert (before["matured"], before["realised"], before["basis"]) == (0, {}, "estimated")

    third, rest = labels[400:], labels[:300]  # the newest first; a hundred never come
    march, _ = parted(month("2024-03"), first=2000)
    land_labels(project, "2024-03", known_in("2024-03", third))
    project.live(m2024_03=march)
    late = measured(project, "2024-02")
    assert (late["matured"], late["basis"]) == (200, "realised")

    wrong = rest.assign(late=1 - rest["late"])
    land_labels(project, "2024-04", known_in("2024-04", wrong))
    april, _ = parted(month("2024-04"), first=3000)
    project.live(m2024_04=april)
    misled = measured(project, "2024-02")
    assert misled["matured"] == 500

    land_labels(project, "2024-05", known_in("2024-05", rest))  # the same keys, corrected
    may, _ = parted(month("2024-05"), first=4000)
    project.live(m2024_05=may)
    corrected = measured(project, "2024-02")
    assert corrected["matured"] == 500
    assert (
        corrected["realised"]["log_loss"]["value"] < misled["realised"]["log_loss"]["value"] - 0.2
    )
    assert "log_loss" in corrected["estimated"]
    with project.workspace.ledger.read() as session:
        latest = records.labels_known(session, project.name)
        assert (latest["2024-02", "1"].rows, latest["2024-02", "1"].matured) == (600, 500)
