"""What a task read and wrote, as OpenLineage's datasets and facets.

Only the openlineage provider, an extra, calls for this: its package is imported here, and this
module only by the methods that the provider calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.sdk import Asset
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    dataset_version_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
)

from evergreen.lifecycle.contracts import Reference
from evergreen.lifecycle.lineage import Data, given, told

if TYPE_CHECKING:
    from evergreen.operators.base import Observed

#: An event names at most so many datasets a side; what has more is told by its document.
MOST = 400


@attrs.define
class StageRunFacet(RunFacet):
    """What a stage did, under the key ``evergreen`` of the run's facets.

    :ivar kind: of the result; None when there is none.
    :ivar digest: of the result's document.
    :ivar conclusion: the word it ends with: the decision, the verdict, what is live.
    :ivar refused: why the stage refused to work.
    :ivar left_out: how many datasets are only named by the documents.
    """

    model: str
    stage: str
    kind: str | None = None
    digest: str | None = None
    conclusion: str | None = None
    refused: str | None = None
    left_out: int = 0


def lineage(
    model: str, stage: str, observed: Observed | None, *, inlets: Any = (), outlets: Any = ()
) -> OperatorLineage[Any, Any]:
    """What a task read and wrote, and how it ended.

    :param observed: what its operator kept; None when it did not get that far.
    :param inlets: the task's assets, of which an event with datasets would not tell otherwise.
    """
    facet = StageRunFacet(model=model, stage=stage)
    read, written = [*_assets(inlets)], [*_assets(outlets)]
    if observed is not None:
        references = map(Reference.model_validate, observed.given)
        read += given(observed.store, stage, references)
        facet.refused, facet.conclusion = observed.refused, observed.conclusion
    if observed is not None and observed.result is not None:
        knows = told(observed.result)
        read += knows.read
        written += knows.written
        facet.kind, facet.conclusion = observed.result.kind, knows.conclusion
    if observed is not None and observed.reference is not None:
        facet.digest = observed.reference["digest"]
        document = Data(observed.reference["uri"], facet.digest)
        written.insert(0, document)
    inputs, outputs = _once(read), _once(written)
    facet.left_out = max(0, len(inputs) - MOST) + max(0, len(outputs) - MOST)
    return OperatorLineage(
        inputs=[_input(data) for data in inputs[:MOST]],
        outputs=[_output(data) for data in outputs[:MOST]],
        run_facets={"evergreen": facet},
    )


def _assets(assets: Iterable[Any]) -> Iterator[Data]:
    """Assets by name. An alias is none: what it resolves to is in the run's asset events."""
    return (Data(asset.uri) for asset in assets if isinstance(asset, Asset))


def _once(found: Iterable[Data]) -> list[Data]:
    """Each dataset once, as it was named first."""
    by_name: dict[tuple[str, str], Data] = {}
    for data in found:
        by_name.setdefault(data.name, data)
    return list(by_name.values())


def _input(data: Data) -> InputDataset:
    namespace, name = data.name
    facets: dict[str, InputDatasetFacet] = {}
    if data.rows is not None or data.bytes is not None:
        facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=data.rows, size=data.bytes
        )
    return InputDataset(namespace=namespace, name=name, facets=_facets(data), inputFacets=facets)


def _output(data: Data) -> OutputDataset:
    namespace, name = data.name
    facets: dict[str, OutputDatasetFacet] = {}
    if data.rows is not None or data.bytes is not None:
        facets["outputStatistics"] = (
            output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=data.rows, size=data.bytes
            )
        )
    return OutputDataset(namespace=namespace, name=name, facets=_facets(data), outputFacets=facets)


def _facets(data: Data) -> dict[str, DatasetFacet]:
    facets: dict[str, DatasetFacet] = {}
    if data.digest is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(data.digest)
    if data.columns:
        fields = [
            schema_dataset.SchemaDatasetFacetFields(name=name, type=kind)
            for name, kind in data.columns.items()
        ]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
    return facets
