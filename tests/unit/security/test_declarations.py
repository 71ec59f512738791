"""A declaration is data: it imports nothing that isn't allowed, and is small enough to read."""

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evergreen.checking import check_model
from evergreen.declaration import Declaration
from evergreen.declaration.bounds import CHARACTERS, LEVELS, VALUES, check_yaml
from evergreen.declaration.types import FileName, Name
from evergreen.errors import DeclarationError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.estimators import MORE_PACKAGES, build_estimator, trusted_types
from evergreen.lifecycle.modules import load_from
from tests.builders import declare

FEATURES = (Feature(name="x", type="number"),)
LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)


def _declare(folder: Path, estimator: str, **training: Any) -> Declaration:
    return declare(folder, training={"estimator": estimator, **training})


@pytest.mark.parametrize(
    "path", ["evil_package.Model", "os.system", "subprocess.Popen", "sklearn_evil.Model", "evil"]
)
def test_an_estimator_is_of_an_allowed_package_or_the_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    for name in ("evil_package", "sklearn_evil", "evil"):
        (tmp_path / "packages" / f"{name}.py").write_text(f"raise SystemExit('{name} ran')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for refuse in (check_model, lambda d: build_estimator(d, FEATURES)):
        with pytest.raises(DeclarationError, match=f"lightgbm, sklearn, xgboost.*{MORE_PACKAGES}"):
            refuse(_declare(tmp_path / "model", path))
    assert not {"evil_package", "sklearn_evil", "evil"} & set(sys.modules)


def test_what_a_package_imported_from_elsewhere_is_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"No module named 'sklearn\.utils\.os'"):
        build_estimator(_declare(tmp_path, "sklearn.utils.os.system"), FEATURES)
    with pytest.raises(DeclarationError, match="holds no estimator class partial"):
        build_estimator(_declare(tmp_path, "sklearn.pipeline.partial"), FEATURES)


def test_a_deployment_may_allow_a_package_a_declaration_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "own_estimators.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "class Own(LogisticRegression):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    own = _declare(tmp_path / "model", "own_estimators.Own", trusted_types=["own_estimators.Own"])
    with pytest.raises(DeclarationError, match="own_estimators"):
        build_estimator(own, FEATURES)
    monkeypatch.setenv(MORE_PACKAGES, "other, own_estimators")
    assert type(build_estimator(own, FEATURES)[-1]).__name__ == "Own"
    assert "own_estimators.Own" in trusted_types(own)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "subprocess.Popen"])
def test_a_declaration_does_not_trust_any_type(name: str, tmp_path: Path) -> None:
    declaration = _declare(
        tmp_path, "sklearn.linear_model.LogisticRegression", trusted_types=[name]
    )
    for refuse in (trusted_types, check_model):
        with pytest.raises(DeclarationError, match=f"trusted_types: {name} is of the package"):
            refuse(declaration)


def test_parameters_name_no_classes(tmp_path: Path) -> None:
    """A text among them stays a text: scikit-learn looks nothing up by a dotted path."""
    before = set(sys.modules)
    nested = _declare(
        tmp_path, "sklearn.ensemble.BaggingClassifier", parameters={"estimator": "antigravity.x"}
    )
    with pytest.raises((DeclarationError, AttributeError, TypeError)):
        build_estimator(nested, FEATURES).fit([[0.0], [1.0]], [0, 1])
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/x", "..", "a.b", "", "a\n", "a\0"])
def test_a_module_is_directly_in_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "model").mkdir()
    with pytest.raises(DeclarationError, match="no module's name"):
        load_from(tmp_path / "model", "model", name)


def test_laughs_and_depth_are_refused_at_once() -> None:
    began = perf_counter()
    with pytest.raises(ValueError, match=f"more than {VALUES:,} values with its aliases"):
        check_yaml(LAUGHS)
    with pytest.raises(ValueError, match=f"more than {LEVELS} levels"):
        check_yaml("[" * 500_000)
    with pytest.raises(ValueError, match=f"more than {LEVELS} levels"):
        check_yaml("{a: " * 1_000 + "}" * 1_000)
    with pytest.raises(ValueError, match="characters"):
        check_yaml("x" * (CHARACTERS + 1))
    assert perf_counter() - began < 5


def test_what_people_write_is_read() -> None:
    check_yaml("a: &a {b: [1, 2, 3]}\nc: *a\nd: {<<: *a, e: 1}\n")
    check_yaml("[" * LEVELS + "]" * LEVELS)
    check_yaml("not: [valid")
    check_yaml("&a [*a]")  # PyYAML's matter: a cycle stands for no tree
    for file in Path("include/models").glob("*/model.yaml"):
        check_yaml(file.read_text())


_plain = st.recursive(
    st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


@given(_plain)
def test_whatever_is_small_passes(value: Any) -> None:
    check_yaml(yaml.safe_dump(value))


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "", "a\n", "a b", "a" * 64, "é", "a\0", "a."])
def test_a_name_is_fit_for_a_path(name: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(Name)
    with pytest.raises(ValidationError):
        adapter.validate_python(name)


@given(st.text(max_size=20))
def test_a_file_name_stays_in_its_folder(value: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(FileName)
    try:
        name = adapter.validate_python(value)
    except ValidationError:
        return
    folder = Path("/models/x")
    assert (folder / name).parent == folder
    assert ".." not in (folder / name).parts
