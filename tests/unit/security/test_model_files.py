"""A model's files run no code that Evergreen doesn't bring, whatever they say of themselves."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.linear_model import LinearRegression

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError, EvergreenError, TrainingError
from evergreen.lifecycle import fitted, modelfiles, registry, tracking
from evergreen.lifecycle.modelfiles import check_files
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

Spoil = Callable[[Path], None]


class _Bomb:
    """Unpickled, it makes a file: the sign that a model's code ran."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sign,))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Declaration, str, str]:
    """One logged model: its workspace, declaration, URI and run."""
    folder = tmp_path_factory.mktemp("logged")
    workspace, declaration = workspace_in(folder), declare(folder / "model")
    run = tracking.find_or_create_run(workspace, declaration, "train/1", {})
    estimator = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
    uri = registry.log_model(
        workspace, run, "model", estimator, tags={}, metadata={},
        pip_requirements=["scikit-learn"], serialization_format="skops",
    )  # fmt: skip
    return workspace, declaration, uri, run


@pytest.fixture
def folder(logged: tuple[Workspace, Declaration, str, str], tmp_path: Path) -> Path:
    """A copy of its files."""
    copy = tmp_path / "model"
    copy.mkdir()
    with registry.model_folder(logged[0], logged[2]) as files:
        for file in files.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def _flavor(flavor: str, **said: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        content = yaml.safe_load((folder / "MLmodel").read_text())
        content["flavors"].setdefault(flavor, {}).update(said)
        (folder / "MLmodel").write_text(yaml.safe_dump(content))

    return spoil


def _file(name: str, content: bytes = b"import os\n") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return spoil


def _link(folder: Path) -> None:
    (folder / "requirements.txt").unlink()
    (folder / "requirements.txt").symlink_to("/etc/passwd")


HOSTILE = {
    "loader module": (_flavor("python_function", loader_module="evil"), "loader_module 'evil'"),
    "code path": (_flavor("python_function", code="code"), "python_function.code"),
    "model from code": (_flavor("python_function", model_code_path="m.py"), "model_code_path"),
    "data elsewhere": (_flavor("python_function", data="../.."), "python_function.data"),
    "model elsewhere": (_flavor("python_function", model_path="../x"), "model_path '../x'"),
    "configuration": (_flavor("python_function", config={"a": 1}), "python_function.config"),
    "other answers": (_flavor("python_function", predict_fn="__init__"), "predict_fn '__init__'"),
    "sklearn's code": (_flavor("sklearn", code="code"), "sklearn.code 'code'"),
    "a pickle, it says": (_flavor("sklearn", serialization_format="pickle"), "'pickle'"),
    "a file elsewhere": (_flavor("sklearn", pickled_model="/tmp/m.pkl"), "pickled_model"),
    "another flavor": (_flavor("pytorch", pickle_module_name="pickle"), "the flavor 'pytorch'"),
    "code beside it": (_file("code/evil.py"), "code"),
    "a pickle beside it": (_file("model.pkl"), "the file 'model.pkl'"),
    "a name that climbs": (_file("..model.skops"), "the file '..model.skops'"),
    "a link": (_link, "the link 'requirements.txt'"),
    "no mapping": (_file("MLmodel", b"- 1\n"), "no flavor sklearn"),
    "no YAML": (_file("MLmodel", b"a: [\n"), "can't be read"),
    "nested YAML": (_file("MLmodel", b"[" * 300_000), "levels deep"),
    "a Python object": (_file("MLmodel", b"!!python/object/apply:os.getcwd []"), "can't be read"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_evergreen_does_not_log_is_not_loaded(name: str, folder: Path) -> None:
    check_files(folder)
    spoil, message = HOSTILE[name]
    spoil(folder)
    for load in (check_files, registry.read_estimator):
        with pytest.raises(TrainingError, match=message):
            load(folder)


def test_a_pickle_inside_is_never_unpickled(folder: Path, tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    hostile = pickle.dumps(_Bomb(sign))
    (folder / "model.skops").write_bytes(hostile)
    with pytest.raises(TrainingError, match="BadZipFile"):
        registry.read_estimator(folder)
    with zipfile.ZipFile(folder / "model.skops", "w") as archive:
        archive.writestr("schema.json", hostile)
    with pytest.raises(TrainingError, match="can't be read as skops"):
        registry.read_estimator(folder)
    assert not sign.exists()
    pickle.loads(hostile)  # it would have run
    assert sign.exists()


def test_a_type_nobody_reviewed_is_not_built(folder: Path) -> None:
    import skops.io

    skops.io.dump({"a": zipfile.ZipFile}, folder / "model.skops")
    with pytest.raises(TrainingError, match="Review them"):
        registry.read_estimator(folder)


def test_a_file_that_unpacks_without_end_is_not_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(folder / "model.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.npy", bytes(1 << 20))
    assert (folder / "model.skops").stat().st_size < 20_000
    check_files(folder)
    monkeypatch.setattr(modelfiles, "EXPANDED", (4 << 20) - 1)
    with pytest.raises(TrainingError, match="unpack to 4,194,304 bytes"):
        registry.read_estimator(folder)
    monkeypatch.setattr(modelfiles, "EXPANDED", 4 << 20)
    monkeypatch.setattr(modelfiles, "ENTRIES", 3)
    with pytest.raises(TrainingError, match="holds 4 entries"):
        check_files(folder)


def test_changed_files_are_loaded_by_no_one(
    logged: tuple[Workspace, Declaration, str, str],
) -> None:
    workspace, declaration, uri, run = logged
    number = registry.register_version(workspace, declaration, run, uri, {})
    registry.set_champion(workspace, declaration, number)
    name = declaration.name
    known = tracking.client(workspace).get_logged_model(uri.removeprefix("models:/"))
    assert known.tags[registry.ARTIFACT] == registry.registered_digest(workspace, name, number)
    file = Path(known.artifact_location.removeprefix("file://")) / "requirements.txt"
    before = file.read_bytes()
    file.write_text("evil\n")
    try:
        for address in (uri, f"models:/{name}/{number}", f"models:/{name}@champion"):
            for load in (
                lambda at: registry.load_model(workspace, at),
                lambda at: fitted.load_fitted(workspace, declaration, at),
            ):
                with pytest.raises(CorruptError, match="was logged: they were changed"):
                    load(address)
        with pytest.raises(CorruptError):
            registry.register_version(
                workspace, declare(workspace.home / "b", name="b"), run, uri, {}
            )
    finally:
        file.write_bytes(before)
    assert registry.load_model(workspace, uri).predict([[3.0]]) == pytest.approx([6.0])


@pytest.mark.parametrize(
    "uri",
    ["/tmp/model", "file:///tmp/model", "https://evil.example/m", "runs:/1/model", "s3://b/m",
     "../model", "mlflow-artifacts:/1"],
)  # fmt: skip
def test_only_the_projects_own_registry_is_loaded_from(
    uri: str, logged: tuple[Workspace, Declaration, str, str]
) -> None:
    with pytest.raises(EvergreenError, match="not a model of this deployment"):
        registry.load_model(logged[0], uri)
