"""Logged and registered models: logged once, read under reviewed types, one version a run.

The other half of what is said to MLflow; `evergreen.lifecycle.tracking` is about runs. Longer than
most: everything that writes or reads a model's files is here, so that no way past the checks is.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError, RefusalError, TrainingError
from evergreen.lifecycle.connection import session
from evergreen.lifecycle.estimators import trusted_types
from evergreen.lifecycle.modelfiles import MODEL, check_files
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import Model

CHAMPION = "champion"
CANDIDATE = "candidate"
"""Aliases: the version that answers, and the one that is tried beside it."""
ARTIFACT = "evergreen.artifact"
"""The tag of a logged model and of a version that holds `files_digest` of what was logged."""
ORIGIN = ("evergreen.bundle_version", "evergreen.code_digest", "evergreen.git_commit")
"""Tags of a run that its version gets too: which code it comes from."""
#: MLflow adds it to what it downloads: the name of what was asked for, no file of the model.
_ADDED = frozenset({"registered_model_meta"})
_NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


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
        there.set_logged_model_tags(logged.model_id, {ARTIFACT: files_digest(Path(folder))})
        there.finalize_logged_model(logged.model_id, "READY")
        _link(there, run_id, logged.model_id)
    return f"models:/{logged.model_id}"


@contextmanager
def model_folder(workspace: Workspace, uri: str) -> Iterator[Path]:
    """The files of a logged or registered model, for the length of a block.

    They are looked at by `check_files`, so that what a loader is given is what Evergreen logs.

    :param uri: ``models:/…``: a tree's file can crash its reader, so only what this deployment has
        logged is ever opened.
    :raises TrainingError: for any other URI, for one that MLflow doesn't hold, and for files that
        no loader should be given.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    if not uri.startswith("models:/"):
        raise TrainingError(f"{uri} is not a model of this deployment: models:/… is")
    with tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        try:
            with session(workspace):
                folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=aside)
        except (MlflowException, FileNotFoundError) as error:
            raise TrainingError(f"{uri} can't be read from MLflow: {error}") from error
        check_files(Path(folder))
        yield Path(folder)


@contextmanager
def checked_folder(workspace: Workspace, uri: str) -> Iterator[Path]:
    """A model's files as `model_folder` gives them, when they are still those that were logged.

    :raises CorruptError: when their digest is another than MLflow's database holds.
    :raises TrainingError: as `model_folder`.
    """
    with model_folder(workspace, uri) as folder:
        logged, found = _logged_digest(workspace, uri), files_digest(folder)
        if logged is not None and found != logged:
            raise CorruptError(
                f"the files of {uri} hash to {found[:12]} where {logged[:12]} was logged: they were "
                "changed. Restore them from a backup, or train or promote another version."
            )
        yield folder


def _logged_digest(workspace: Workspace, uri: str) -> str | None:
    """What MLflow's database holds of a model's files; None for one of before that tag."""
    from mlflow.exceptions import MlflowException

    name, _, version = uri.removeprefix("models:/").partition("/")
    with session(workspace) as mlflow:
        try:
            if version:
                return registered_digest(workspace, name, version)
            if "@" in name:
                found: Mapping[str, str] = mlflow.get_model_version_by_alias(*name.split("@")).tags
            else:
                found = mlflow.get_logged_model(name).tags
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                raise TrainingError(f"{uri} is gone from MLflow: {error}") from error
            raise
        return found.get(ARTIFACT)


def load_model(workspace: Workspace, uri: str, declaration: Declaration | None = None) -> Any:
    """The fitted estimator that was logged at ``uri``.

    :param declaration: whose ``training.trusted_types`` may be built besides the reviewed ones.
    :raises CorruptError: when its files are others than were logged.
    :raises TrainingError: when it isn't there, isn't skops, or holds an untrusted type.
    """
    with checked_folder(workspace, uri) as folder:
        return read_estimator(folder, declaration)


def logged_metadata(folder: Path) -> Model:
    """What MLflow knows of the model in ``folder``: signature, flavors, metadata."""
    from mlflow.models import Model

    return Model.load(folder)


def read_estimator(folder: Path, declaration: Declaration | None = None) -> Any:
    """Build the estimator in ``folder`` from reviewed types only.

    `mlflow.sklearn.load_model` would trust the types that the model's own file asks for, and
    unpickle one that says it is a pickle.

    :raises TrainingError: when it isn't what Evergreen logs, or holds an untrusted type.
    """
    from skops.io import load
    from skops.io.exceptions import UntrustedTypesFoundException

    check_files(folder)
    try:
        return load(folder / MODEL, trusted=trusted_types(declaration))
    except UntrustedTypesFoundException as error:
        raise TrainingError(
            f"{error} Review them, then name them in training.trusted_types."
        ) from error
    except Exception as error:  # whatever a broken or hostile file makes its reader raise
        raise TrainingError(
            f"{folder.name}/{MODEL} can't be read as skops: {type(error).__name__}: {error}. "
            "Promote another version, or train anew."
        ) from error


def register_version(
    workspace: Workspace,
    declaration: Declaration,
    mlflow_run: str,
    model_uri: str,
    tags: Mapping[str, str],
) -> str:
    """The registered version of a run's model, made when missing.

    It is tagged `ARTIFACT`, so that who downloads it can tell that these are its files, with what
    `ORIGIN` names of its run, and with ``tags``, which one that was registered before gets too.

    :returns: the version's number, as text.
    :raises CorruptError: when its files are others than were logged.
    :raises TrainingError: when the model can't be read from MLflow.
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
        there = [v for v in found if v.current_stage != "Deleted_Internal"]
        if versions := [int(v.version) for v in there if v.source == model_uri]:
            for tag, value in tags.items():
                mlflow.set_model_version_tag(name, str(min(versions)), tag, value)
            return str(min(versions))
        model_id = (
            model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None
        )
        with checked_folder(workspace, model_uri) as folder:
            digest = files_digest(folder)
        known = mlflow.get_run(mlflow_run).data.tags
        origin = {name: known[name] for name in ORIGIN if name in known}
        made = mlflow.create_model_version(
            name,
            model_uri,
            mlflow_run,
            tags={**origin, **tags, ARTIFACT: digest},
            model_id=model_id,
        )
        return str(made.version)


def verdict_tags(verdict: str, reason: str, cause: str | None, run_id: str) -> dict[str, str]:
    """What a version is tagged with of the run that judged it."""
    return {
        "evergreen.verdict": verdict,
        "evergreen.reason": reason[:5000],
        "evergreen.cause": cause or "",
        "evergreen.dag_run": run_id,
    }


def version_run(workspace: Workspace, name: str, version: str) -> str:
    """The MLflow run that a registered version comes from.

    :raises RefusalError: when there is no such version.
    """
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            return str(mlflow.get_model_version(name, version).run_id)
        except MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise
            known = [int(v.version) for v in mlflow.search_model_versions(f"name = '{name}'")]
    there = ", ".join(str(number) for number in sorted(known)) or "none"
    raise RefusalError(f"{name}: version {version} isn't registered; there are: {there}")


def files_digest(folder: Path) -> str:
    """The sha256 over a model's files: their relative names and contents, in the names' order.

    All but what MLflow adds to a download: ``registered_model_meta``, which names the URI that
    was asked for. MLflow 3 rewrites none of the others, ``MLmodel`` neither, when a logged model
    is registered, given an alias or downloaded by another name, so that the files of
    ``models:/m-…`` and of ``models:/<name>/<version>`` have one digest.

    :raises TrainingError: when there is no model. MLflow downloads nothing without a word.
    """
    if not (folder / "MLmodel").is_file():
        raise TrainingError(f"{folder.name} holds no model: MLflow has lost its files")
    sha = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(set(files) - _ADDED):
        if files[name].is_file():
            content = hashlib.sha256(files[name].read_bytes()).hexdigest()
            sha.update(f"{content} {name}\n".encode())
    return sha.hexdigest()


def version_uri(name: str, version: str) -> str:
    """Where a registered version is downloaded from."""
    return f"models:/{name}/{version}"


def registered_digest(workspace: Workspace, name: str, version: str) -> str | None:
    """`files_digest` as it was when a version was registered; None for one of before that tag.

    :raises TrainingError: when there is no such version.
    """
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            tags: Mapping[str, str] = mlflow.get_model_version(name, version).tags
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                raise TrainingError(
                    f"MLflow has no version {version} of {name}: {error}"
                ) from error
            raise
        return tags.get(ARTIFACT)


def set_alias(workspace: Workspace, name: str, alias: str, version: str) -> None:
    """Point an alias of a registered model at a version."""
    with session(workspace) as mlflow:
        mlflow.set_registered_model_alias(name, alias, version)


def delete_alias(workspace: Workspace, name: str, alias: str) -> None:
    """Let an alias of a registered model point at nothing; also when it does already."""
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            mlflow.delete_registered_model_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise


def alias_version(workspace: Workspace, name: str, alias: str) -> str | None:
    """The version that an alias of a registered model points at, or None."""
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            found = mlflow.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                return None
            raise
        return str(found.version)


def set_champion(workspace: Workspace, declaration: Declaration, version: str) -> None:
    """Point the alias ``champion`` at a version."""
    set_alias(workspace, declaration.name, CHAMPION, version)


def champion_version(workspace: Workspace, declaration: Declaration) -> str | None:
    """The version that the alias ``champion`` points at, or None."""
    return alias_version(workspace, declaration.name, CHAMPION)
