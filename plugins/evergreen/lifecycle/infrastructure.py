"""Check infrastructure: does the logged model work where it isn't at home?

A clean process, with nothing of the trainer's in its memory or environment, loads the model as a
server would, answers the holdout and is timed. What it measures is written down once for each
model, so that a repeated task reports the same numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import evergreen
from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.contracts import FeatureSet, InfrastructureReport, TrainedModel
from evergreen.lifecycle.estimators import trusted_types
from evergreen.lifecycle.fitted import input_frame
from evergreen.lifecycle.registry import logged_metadata, model_folder
from evergreen.lifecycle.sets import read_rows
from evergreen.store import digest_of
from evergreen.workspace import QUIET, Workspace

TIMEOUT = 180.0
#: What a process needs to start; credentials are not among it, the model is handed over as files.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "PATH",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
)


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
        done = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
            [sys.executable, "-m", "evergreen.lifecycle.infrastructure_probe", question, answer],
            env=_environment(),
            cwd=aside,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if not answer.exists():
            last = "; ".join(done.stderr.strip().splitlines()[-3:])
            raise subprocess.SubprocessError(f"the process ended with {done.returncode}: {last}")
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


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**QUIET, **kept, "PYTHONPATH": str(Path(evergreen.__file__).parents[1])}


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
