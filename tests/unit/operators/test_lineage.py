"""Every operator tells what it read and wrote, however it ended; and only where it is asked."""

from __future__ import annotations

import inspect
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from evergreen import operators
from evergreen.errors import RefusalError
from evergreen.lifecycle.contracts import IngestReport, Refused
from evergreen.operators import (
    ConcludeRunOperator,
    ExtractSnapshotOperator,
    IngestPartitionsOperator,
)
from evergreen.operators import lineage as told
from evergreen.operators.base import Observed, StageOperator
from tests.scenarios.project import Project, month

LATER = datetime(2030, 1, 1, tzinfo=UTC)
# `ConcludeRunOperator` is about a run, not about data: it tells its stage alone.
STAGES = [
    operator
    for name in operators.__all__
    if issubclass(operator := getattr(operators, name), StageOperator)
    and operator is not ConcludeRunOperator
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project.create(tmp_path)
    monkeypatch.setenv("EVERGREEN_HOME", str(project.home))
    return project


def context() -> Any:
    """What Airflow gives to a task."""
    run = SimpleNamespace(run_after=LATER, run_id="once", dag_id="example.ingest")
    ti = SimpleNamespace(xcom_push=lambda **given: None, task_id="ingest")
    return {"params": {}, "dag_run": run, "ti": ti, "task": None}


def ingest(project: Project) -> IngestPartitionsOperator:
    outlets = [Asset("x-evergreen://example/partitions"), AssetAlias("example/escalations")]
    return IngestPartitionsOperator(task_id="ingest", model=project.declaration, outlets=outlets)


def names(datasets: list[Any]) -> list[str]:
    return [f"{data.namespace}|{data.name}" for data in datasets]


def made(operator: type[StageOperator], project: Project) -> StageOperator:
    """One of its tasks; each of its inputs is the same small document."""
    given = IngestReport(model="example").save(project.workspace.store).to_dict()
    kinds = inspect.signature(operator).parameters.values()
    needed = [k.name for k in kinds if k.default is k.empty and k.kind is k.KEYWORD_ONLY]
    inputs = {name: given for name in needed if name in operator.template_fields}
    inputs |= dict.fromkeys({*needed} - {*inputs, "model", "task_id"})
    return operator(task_id="task", model=project.declaration, **inputs)


@pytest.mark.parametrize("operator", STAGES, ids=lambda operator: operator.__name__)
@pytest.mark.parametrize("ending", ["result", "refused", "broken", "skipped"])
def test_every_stage_tells_how_it_ended(
    operator: type[StageOperator], ending: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = IngestReport(model="example")
    raised: dict[str, Exception] = {
        "refused": RefusalError("not like this"),
        "broken": OSError("away"),
        "skipped": AirflowSkipException("nothing to do"),
    }

    def run_stage(*_given: Any) -> IngestReport:
        if ending in raised:
            raise raised[ending]
        return result

    monkeypatch.setattr(operator, "run_stage", run_stage)
    monkeypatch.setattr(operator, "finish", lambda *_given: None)
    task = made(operator, project)
    with suppress(AirflowFailException, AirflowSkipException, OSError):
        task.execute(context())
    for tell in (task.get_openlineage_facets_on_complete, task.get_openlineage_facets_on_failure):
        found = tell(None)
        facet = found.run_facets["evergreen"]
        assert (facet.model, facet.stage) == ("example", operator.stage)
        assert facet.refused == ("not like this" if ending == "refused" else None)
        assert facet.kind == ("ingest" if ending == "result" else None)
        documents = [data.name for data in found.outputs if "/documents/" in data.name]
        assert len(documents) == (ending == "result")
        asked = [
            value for value in vars(task).values() if isinstance(value, dict) and "digest" in value
        ]
        assert any("/documents/" in data.name for data in found.inputs) == bool(asked)


def test_files_documents_and_assets_are_told_with_digests_rows_and_columns(
    project: Project,
) -> None:
    project.land(m2024_01=month("2024-01"))
    operator = ingest(project)
    reference = operator.execute(context())
    assert reference is not None
    found = operator.get_openlineage_facets_on_complete(None)
    document, asset, stored = found.outputs
    assert document.name == reference["uri"].removeprefix("file://")
    assert document.facets["version"].datasetVersion == reference["digest"]
    assert names([asset]) == ["x-evergreen://example|partitions"]
    (landed,) = found.inputs
    assert landed.name.endswith("/landing/2024-01.parquet")
    assert landed.facets["version"] == stored.facets["version"]
    assert landed.inputFacets["inputStatistics"].rowCount == 800
    assert stored.outputFacets["outputStatistics"].rowCount == 800
    assert "signal" in {field.name for field in landed.facets["schema"].fields}
    facet = found.run_facets["evergreen"]
    assert (facet.model, facet.stage, facet.kind) == ("example", "ingest", "ingest")
    assert (facet.conclusion, facet.refused) == ("1 registered, 0 refused", None)


def test_a_task_that_was_skipped_has_told_its_document_and_no_asset(project: Project) -> None:
    operator = ingest(project)
    with pytest.raises(AirflowSkipException):
        operator.execute(context())
    found = operator.get_openlineage_facets_on_complete(None)
    assert [name.rpartition("/")[0].rpartition("/")[2] for name in names(found.outputs)] == [
        "ingest"
    ]


def test_a_refusal_is_told_with_its_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = ingest(project)
    wrong = context() | {"params": {"as_of": "yesterday"}}
    with pytest.raises(AirflowFailException):
        operator.execute(wrong)
    found = operator.get_openlineage_facets_on_failure(None)
    assert "as_of needs a zone" in found.run_facets["evergreen"].refused
    assert (found.inputs, found.outputs) == ([], [])


def test_a_task_that_failed_after_its_result_tells_the_result(project: Project) -> None:
    project.land(m2024_01=month("2024-01").drop(columns=["label_timestamp"]))
    operator = ingest(project)
    with pytest.raises(AirflowFailException):
        operator.execute(context())
    found = operator.get_openlineage_facets_on_failure(None)
    assert found.run_facets["evergreen"].conclusion == "0 registered, 1 refused"
    assert len(found.outputs) == 1


def test_a_task_that_never_began_tells_its_stage(project: Project) -> None:
    operator = ExtractSnapshotOperator(task_id="extract", model=project.declaration)
    found = operator.get_openlineage_facets_on_failure(None)
    assert found.run_facets["evergreen"].stage == "extract"
    assert (found.inputs, found.outputs) == ([], [])


def test_an_event_is_bounded(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.land(m2024_01=month("2024-01"), m2024_02=month("2024-02"), m2024_03=month("2024-03"))
    operator = ingest(project)
    operator.execute(context())
    monkeypatch.setattr(told, "MOST", 2)
    found = operator.get_openlineage_facets_on_complete(None)
    assert (len(found.inputs), len(found.outputs)) == (2, 2)
    assert found.run_facets["evergreen"].left_out == 4
    assert "/documents/" in found.outputs[0].name, "the document tells of all the others"


def test_a_dataset_is_named_once(project: Project) -> None:
    refused = Refused(key="a", uri="b", reason="c")
    report = IngestReport(model="example", refused=(refused,))
    store = project.workspace.store
    reference = report.save(store).to_dict()
    seen = Observed(store, [reference, reference], report, reference)
    assert len(told.lineage("example", "ingest", seen).inputs) == 1


def test_parsing_needs_no_openlineage() -> None:
    """It is an extra: without it DAG files parse and tasks run."""
    code = """
import sys
sys.modules["openlineage"] = None
import evergreen.operators
assert "evergreen.operators.lineage" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
