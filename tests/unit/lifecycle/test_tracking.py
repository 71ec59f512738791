"""MLflow holds one of each: experiment, run, metric, logged model, version, whoever asks twice."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
from matplotlib.figure import Figure

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError, UnavailableError
from evergreen.lifecycle import registry, tracking
from evergreen.lifecycle.connection import address
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import AS_OF


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path / "model")


def test_a_run_is_found_again_by_its_key(workspace: Workspace, declaration: Declaration) -> None:
    first = tracking.find_or_create_run(
        workspace, declaration, "train/1", {"evergreen.model": "example"}
    )
    assert tracking.find_or_create_run(workspace, declaration, "train/1", {}) == first
    assert tracking.find_or_create_run(workspace, declaration, "train/2", {}) != first
    assert tracking.tags_of(workspace, first)["evergreen.model"] == "example"


def test_two_who_come_at_once_share_experiment_and_run(
    workspace: Workspace, declaration: Declaration
) -> None:
    tracking.client(workspace)
    with ThreadPoolExecutor(4) as pool:
        runs = list(
            pool.map(
                lambda _: tracking.find_or_create_run(workspace, declaration, "same", {}), range(4)
            )
        )
    assert tracking.find_or_create_run(workspace, declaration, "same", {}) in runs
    experiment = tracking.experiment_id(workspace, declaration)
    assert len(tracking.client(workspace).search_runs([experiment])) == 1


def test_children_are_known_by_key(workspace: Workspace, declaration: Declaration) -> None:
    parent = tracking.find_or_create_run(workspace, declaration, "parent", {})
    child = tracking.find_or_create_run(workspace, declaration, "child", {}, parent=parent)
    assert tracking.children(workspace, declaration, parent) == {"child": child}


def test_logging_twice_changes_nothing(workspace: Workspace, declaration: Declaration) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    for _ in range(2):
        tracking.log_metrics(workspace, run, {"candidate.log_loss": 0.25}, AS_OF)
        tracking.log_params(workspace, run, {"max_iter": 3})
        tracking.log_artifact(workspace, run, "evaluation/note.txt", b"hello")
        tracking.log_figure(workspace, run, "evaluation/plot.png", Figure())
        tracking.finish_run(workspace, run)
    client = tracking.client(workspace)
    (point,) = client.get_metric_history(run, "candidate.log_loss")
    assert (point.value, point.step, point.timestamp) == (0.25, 0, AS_OF.timestamp() * 1000)
    names = [found.path for found in client.list_artifacts(run, "evaluation")]
    assert names == ["evaluation/note.txt", "evaluation/plot.png"]
    assert client.get_run(run).info.status == "FINISHED"


def test_artifacts_lie_in_the_store(workspace: Workspace, declaration: Declaration) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    assert (
        tracking.client(workspace).get_run(run).info.artifact_uri.startswith(workspace.store.root)
    )


def test_a_half_made_logged_model_is_deleted(
    workspace: Workspace, declaration: Declaration
) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    client, experiment = tracking.client(workspace), tracking.experiment_id(workspace, declaration)
    client.create_logged_model(experiment, "model", run)
    assert tracking.find_logged_model(workspace, run) is None
    assert client.search_logged_models([experiment]) == []


def test_a_run_has_one_version_and_the_alias_follows(
    workspace: Workspace, declaration: Declaration
) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    uri = _log_line(workspace, run)
    assert tracking.champion_version(workspace, declaration) is None
    versions = {
        tracking.register_version(workspace, declaration, run, uri, {"evergreen.cause": "drift"})
        for _ in range(2)
    }
    assert versions == {"1"}
    tracking.set_champion(workspace, declaration, "1")
    assert tracking.champion_version(workspace, declaration) == "1"
    for name in (uri, "models:/example/1", "models:/example@champion"):
        assert tracking.load_model(workspace, name).predict([[3.0]]) == pytest.approx([6.0])


def _log_line(workspace: Workspace, run: str) -> str:
    from sklearn.linear_model import LinearRegression

    return tracking.log_model(
        workspace,
        run,
        "model",
        LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]),
        tags={},
        metadata={},
        pip_requirements=["scikit-learn"],
        serialization_format="skops",
    )


def test_a_version_is_tagged_with_the_digest_of_what_will_be_downloaded(
    workspace: Workspace, declaration: Declaration
) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    uri = _log_line(workspace, run)
    number = registry.register_version(workspace, declaration, run, uri, {"evergreen.cause": "x"})
    registry.set_alias(workspace, "example", "champion", number)
    digest = registry.registered_digest(workspace, "example", number)
    names = (uri, registry.version_uri("example", number), "models:/example@champion")
    for name in names:
        with registry.model_folder(workspace, name) as folder:
            assert registry.files_digest(folder) == digest
            (folder / "registered_model_meta").write_text("rewritten")
            assert registry.files_digest(folder) == digest
            (folder / "model.skops").rename(folder / "other.skops")
            assert registry.files_digest(folder) != digest
            (folder / "MLmodel").unlink()
            with pytest.raises(TrainingError, match="MLflow has lost its files"):
                registry.files_digest(folder)
    tags = tracking.client(workspace).get_model_version("example", number).tags
    assert tags == {"evergreen.cause": "x", "evergreen.artifact": digest}
    with pytest.raises(TrainingError, match="MLflow has no version 7 of example"):
        registry.registered_digest(workspace, "example", "7")


def test_a_model_that_lost_its_files_is_not_registered(
    workspace: Workspace, declaration: Declaration
) -> None:
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    uri = _log_line(workspace, run)
    logged = tracking.client(workspace).get_logged_model(uri.removeprefix("models:/"))
    shutil.rmtree(logged.artifact_location.removeprefix("file://"))
    with pytest.raises(TrainingError, match="MLflow has lost its files"):
        registry.register_version(workspace, declaration, run, uri, {})
    assert registry.alias_version(workspace, "example", "champion") is None


def test_aliases_are_set_moved_and_deleted(workspace: Workspace, declaration: Declaration) -> None:
    assert registry.alias_version(workspace, "example", "candidate") is None, "no such model"
    numbers = []
    for key in ("train/1", "train/2"):
        run = tracking.find_or_create_run(workspace, declaration, key, {})
        uri = _log_line(workspace, run)
        numbers.append(registry.register_version(workspace, declaration, run, uri, {}))
    for number in numbers:
        registry.set_alias(workspace, "example", "candidate", number)
        assert registry.alias_version(workspace, "example", "candidate") == number
    for _ in range(2):
        registry.delete_alias(workspace, "example", "candidate")
        assert registry.alias_version(workspace, "example", "candidate") is None


def test_only_own_models_are_opened(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not a model of this deployment"):
        tracking.load_model(workspace, str(tmp_path))
    with pytest.raises(TrainingError, match="can't be read from MLflow"):
        tracking.load_model(workspace, "models:/example/7")


@pytest.mark.parametrize(
    "uri", ["http://u:secret@127.0.0.1:9", "postgresql+psycopg2://u:secret@127.0.0.1:9/mlflow"]
)
def test_an_unreachable_address_is_named_without_its_secret_and_soon(
    uri: str, workspace: Workspace, declaration: Declaration
) -> None:
    if uri.startswith("postgresql"):
        pytest.importorskip("psycopg2")
    began = perf_counter()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9") as raised:
        tracking.experiment_id(replace(workspace, tracking=lambda: uri), declaration)
    assert "secret" not in str(raised.value)
    assert perf_counter() - began < 20


def test_an_address_hides_its_credentials() -> None:
    assert address("postgresql://me:pw@db:5432/mlflow?password=pw") == "postgresql://db:5432/mlflow"
    assert address("sqlite:////home/mlflow.db") == "sqlite:////home/mlflow.db"
