"""Check infrastructure: does the logged model work where it isn't at home?

A clean process, with nothing of the trainer's in its memory or environment, loads the model as a
server would, answers the holdout and is timed. What it measures is written down once for each
model, so that a repeated task reports the same numbers.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.contracts import FeatureSet, InfrastructureReport, TrainedModel
from evergreen.lifecycle.estimators import trusted_types
from evergreen.lifecycle.fitted import input_frame
from evergreen.lifecycle.infrastructure_process import run
from evergreen.lifecycle.registry import logged_metadata, model_folder
from evergreen.lifecycle.sets import read_rows
from evergreen.store import digest_of
from evergreen.workspace import Workspace

TIMEOUT = 180.0


def check_infrastructure(
    declaration: Declaration,
    workspace: Workspace,
    trained: TrainedModel,
    feature_set: FeatureSet,
    *,
    timeout: float = TIMEOUT,
) -> InfrastructureReport:
    """Load and time the logged model in a clean process.

    :param timeout: seconds for the whole process.
    :returns: a report, also when the model doesn't load, hangs, or answers NaN: with the problem.
    """
    key = digest_of({"model": trained.model_uri, "features": trained.feature_set.digest})
    name = f"documents/infrastructure-of/{key}.json"
    if workspace.store.exists(name):
        return InfrastructureReport.model_validate(json.loads(workspace.store.read_bytes(name)))
    try:
        found = _probe(declaration, workspace, trained, feature_set, timeout)
    except (TrainingError, subprocess.SubprocessError) as error:
        found = {"problem": _short(error), "lasting": isinstance(error, TrainingError)}
    report = _report(trained, found)
    if report.loads:  # a hang or a kill may be the machine's fault: clearing the task tries again
        workspace.store.put_bytes(
            name, json.dumps(report.to_dict(), sort_keys=True, indent=1).encode()
        )
    return report


def _probe(
    declaration: Declaration,
    workspace: Workspace,
    trained: TrainedModel,
    feature_set: FeatureSet,
    timeout: float,
) -> dict[str, Any]:
    """Ask the clean process.

    :raises TrainingError: when the model's file asks for a type nobody reviewed.
    :raises subprocess.SubprocessError: when the process hangs or dies.
    """
    rows = input_frame(read_rows(workspace.store, feature_set, "holdout"), trained.features)
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-") as aside,
        model_folder(workspace, trained.model_uri) as model,
    ):
        _check_types(declaration, model)
        question, answer, data = (Path(aside) / n for n in ("in.json", "out.json", "rows.parquet"))
        rows.to_parquet(data, index=False)
        question.write_text(
            json.dumps({"model": str(model), "rows": str(data), "task": str(declaration.task)})
        )
        code, said = run(question, answer, timeout=timeout)
        if not answer.exists():
            last = "; ".join(said.strip().splitlines()[-3:])
            raise subprocess.SubprocessError(f"the process ended with {code}: {last}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def _check_types(declaration: Declaration, model: Path) -> None:
    """MLflow loads whatever types a model's own file trusts; so that file is read first."""
    flavor = logged_metadata(model).flavors.get("sklearn", {})
    asked = set(flavor.get("skops_trusted_types") or ()) - set(trusted_types(declaration))
    if flavor.get("serialization_format") != "skops" or asked:
        raise TrainingError(
            f"the logged model asks for {', '.join(sorted(asked)) or 'a format that is not skops'}, "
            "which nobody has reviewed; see training.trusted_types"
        )


def _report(trained: TrainedModel, found: dict[str, Any]) -> InfrastructureReport:
    expected = [[feature.name, feature.type] for feature in trained.features]
    return InfrastructureReport(
        model=trained.model,
        mlflow_run=trained.mlflow_run,
        loads=bool(found.get("loads")),
        problem=found.get("problem"),
        signature_matches=found.get("signature") == expected,
        same_predictions=found.get("predictions_digest") == trained.predictions_digest,
        latency_ms=found.get("latency_ms", {}),
        memory_mb=found.get("memory_mb"),
        load_seconds=found.get("load_seconds"),
    )


def _short(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:g} s; clear the task to try again"
    return str(error)
