"""Logged and registered models: logged once, read under reviewed types, one version a run.

The other half of what is said to MLflow; `evergreen.lifecycle.tracking` is about runs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.connection import session
from evergreen.lifecycle.estimators import trusted_types
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import Model

CHAMPION = "champion"


def find_logged_model(workspace: Workspace, run_id: str, name: str = "model") -> LoggedModel | None:
    """The run's finished logged model; what a killed attempt left half-made is deleted."""
    with session(workspace) as mlflow:
        run: Run = mlflow.get_run(run_id)
        found = mlflow.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'"
        )
        ready = sorted(
            (m for m in found if m.status == "READY"), key=lambda m: m.creation_timestamp
        )
        for leftover in [m for m in found if m not in ready] + ready[1:]:
            _discard(mlflow, leftover)
        if ready:
            _link(mlflow, run_id, ready[0].model_id)
        return ready[0] if ready else None


def delete_logged_model(workspace: Workspace, model_id: str) -> None:
    """Delete a logged model that isn't the one its run should hold."""
    with session(workspace) as mlflow:
        _discard(mlflow, mlflow.get_logged_model(model_id))


def _link(mlflow: MlflowClient, run_id: str, model_id: str) -> None:
    """Show a logged model at its run; only once it is READY, for a link can't be taken back."""
    from mlflow.entities import LoggedModelOutput

    outputs = mlflow.get_run(run_id).outputs
    if model_id not in {o.model_id for o in (outputs.model_outputs if outputs else ())}:
        mlflow.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _discard(mlflow: MlflowClient, model: LoggedModel) -> None:
    """Delete a logged model's files, then the model: MLflow alone would only mark it as deleted."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(model.artifact_location).delete_artifacts()
    mlflow.delete_logged_model(model.model_id)


def log_model(
    workspace: Workspace,
    run_id: str,
    name: str,
    estimator: Any,
    *,
    tags: Mapping[str, str],
    metadata: Mapping[str, Any],
    **save: Any,
) -> str:
    """Log a fitted scikit-learn estimator below a run.

    The logged model is PENDING until every file is there, then READY.

    :param save: arguments of `mlflow.sklearn.save_model`.
    :returns: its URI, ``models:/m-…``.
    """
    import mlflow.sklearn
    from mlflow.models import Model

    with warnings.catch_warnings():  # MLflow warns of its own type hints when it is first loaded
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    with session(workspace) as there, tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        experiment = there.get_run(run_id).info.experiment_id
        logged = there.create_logged_model(experiment, name, run_id, dict(tags))
        model = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            metadata=dict(metadata),
        )
        folder = f"{aside}/model"
        mlflow.sklearn.save_model(estimator, folder, mlflow_model=model, **save)
        there.log_model_artifacts(logged.model_id, folder)
        there.finalize_logged_model(logged.model_id, "READY")
        _link(there, run_id, logged.model_id)
    return f"models:/{logged.model_id}"


@contextmanager
def model_folder(workspace: Workspace, uri: str) -> Iterator[Path]:
    """The files of a logged or registered model, for the length of a block.

    :param uri: ``models:/…`` or ``runs:/…``: a tree's file can crash its reader, so only what
        this deployment has logged is ever opened.
    :raises TrainingError: for any other URI, and for one that MLflow doesn't hold.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    if not uri.startswith(("models:/", "runs:/")):
        raise TrainingError(f"{uri} is not a model of this deployment: models:/… or runs:/… is")
    with tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        try:
            with session(workspace):
                folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=aside)
        except (MlflowException, FileNotFoundError) as error:
            raise TrainingError(f"{uri} can't be read from MLflow: {error}") from error
        yield Path(folder)


def load_model(workspace: Workspace, uri: str, declaration: Declaration | None = None) -> Any:
    """The fitted estimator that was logged at ``uri``.

    :param declaration: whose ``training.trusted_types`` may be built besides the reviewed ones.
    :raises TrainingError: when it isn't there, isn't skops, or holds an untrusted type.
    """
    with model_folder(workspace, uri) as folder:
        return read_estimator(folder, declaration)


def logged_metadata(folder: Path) -> Model:
    """What MLflow knows of the model in ``folder``: signature, flavors, metadata."""
    from mlflow.models import Model

    return Model.load(folder)


def read_estimator(folder: Path, declaration: Declaration | None = None) -> Any:
    """Build the estimator in ``folder`` from reviewed types only.

    `mlflow.sklearn.load_model` would trust the types that the model's own file asks for, and
    unpickle one that says it is a pickle.

    :raises TrainingError: when it isn't skops, or holds an untrusted type.
    """
    from skops.io import load
    from skops.io.exceptions import UntrustedTypesFoundException

    flavor = logged_metadata(folder).flavors.get("sklearn", {})
    if flavor.get("serialization_format") != "skops":
        raise TrainingError(f"{folder.name} was not logged as scikit-learn in the skops format")
    try:
        return load(folder / "model.skops", trusted=trusted_types(declaration))
    except UntrustedTypesFoundException as error:
        raise TrainingError(
            f"{error} Review them, then name them in training.trusted_types."
        ) from error


def register_version(
    workspace: Workspace,
    declaration: Declaration,
    mlflow_run: str,
    model_uri: str,
    tags: Mapping[str, str],
) -> str:
    """The registered version of a run's model, made when missing.

    :returns: the version's number, as text.
    """
    from mlflow.exceptions import MlflowException

    name = declaration.name
    with session(workspace) as mlflow:
        try:
            mlflow.create_registered_model(name, description=declaration.description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = mlflow.search_model_versions(f"name = '{name}' AND run_id = '{mlflow_run}'")
        versions = [int(v.version) for v in found if v.current_stage != "Deleted_Internal"]
        if versions:
            return str(min(versions))
        model_id = (
            model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None
        )
        made = mlflow.create_model_version(
            name, model_uri, mlflow_run, tags=dict(tags), model_id=model_id
        )
        return str(made.version)


def set_champion(workspace: Workspace, declaration: Declaration, version: str) -> None:
    """Point the alias ``champion`` at a version."""
    with session(workspace) as mlflow:
        mlflow.set_registered_model_alias(declaration.name, CHAMPION, version)


def champion_version(workspace: Workspace, declaration: Declaration) -> str | None:
    """The version that the alias ``champion`` points at, or None."""
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            found = mlflow.get_model_version_by_alias(declaration.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise
        return str(found.version)
