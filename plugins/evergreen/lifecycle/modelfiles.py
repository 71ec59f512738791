"""A model's files, looked at before anything opens them: known names, plain words, bounded sizes.

What MLflow does with a folder stands in the folder itself: which module loads it, which code is
put on the path, whether it is unpickled. So whoever can write a file there could run code where it
is loaded. Here the folder is read as plain data and has to say exactly what Evergreen logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import yaml

from evergreen.declaration.bounds import check_yaml
from evergreen.errors import TrainingError

MODEL = "model.skops"
#: All that Evergreen logs, and what MLflow adds to a download.
NAMES = frozenset(
    {"MLmodel", MODEL, "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta"}
)
#: A skops file is a zip: its entries, and its bytes once it is unpacked.
ENTRIES, EXPANDED = 200_000, 8 << 30
#: The keys of each flavor, and what some of them must hold. ``code``, ``model_code_path``,
#: ``data`` and ``config`` are not among them: MLflow would run or follow what they name.
_FLAVORS: dict[str, dict[str, tuple[Any, ...]]] = {
    "python_function": {
        "env": (),
        "loader_module": ("mlflow.sklearn",),
        "model_path": (MODEL,),
        "predict_fn": ("predict", "predict_proba"),
        "python_version": (),
    },
    "sklearn": {
        "code": (None,),
        "pickled_model": (MODEL,),
        "serialization_format": ("skops",),
        "sklearn_version": (),
        "skops_trusted_types": (),
    },
}
_WHAT = "a scikit-learn model in the skops format, as Evergreen logs it"


def check_files(folder: Path) -> None:
    """Look whether a folder holds a model that can be given to a loader.

    :raises TrainingError: for another file than Evergreen logs, a link, a flavor or key that would
        make MLflow load it otherwise, or a file that grows beyond `EXPANDED`.
    """
    if not (folder / "MLmodel").is_file():
        raise TrainingError(f"{folder.name} holds no model: MLflow has lost its files")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name not in NAMES or not path.is_file():
            kind = "the link" if path.is_symlink() else "the file"
            raise _refused(folder, f"{kind} {name!r:.120}", f"only {', '.join(sorted(NAMES))}")
    _check_flavors(folder)
    _check_size(folder / MODEL)


def _check_flavors(folder: Path) -> None:
    """The flavors, read as plain data: `mlflow.models.Model` would be built from them."""
    try:
        text = (folder / "MLmodel").read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise TrainingError(f"{folder.name}/MLmodel can't be read: {error}") from error
    flavors = content.get("flavors") if isinstance(content, dict) else None
    if not isinstance(flavors, dict) or "sklearn" not in flavors:
        raise _refused(folder, f"no flavor sklearn in {flavors!r:.120}", "sklearn")
    for name, said in flavors.items():
        if name not in _FLAVORS or not isinstance(said, dict):
            raise _refused(folder, f"the flavor {name!r:.120}", " and ".join(_FLAVORS))
        _check_keys(folder, name, said)


def _check_keys(folder: Path, flavor: str, said: Mapping[Any, Any]) -> None:
    known = _FLAVORS[flavor]
    for key, value in said.items():
        if key not in known and value is not None:
            raise _refused(folder, f"{flavor}.{key!s:.120}", f"only {', '.join(known)}")
    for key, allowed in known.items():
        if allowed and said.get(key) not in allowed:
            raise _refused(
                folder,
                f"{flavor}.{key} {said.get(key)!r:.120}",
                " or ".join(str(value) for value in allowed),
            )


def _check_size(file: Path) -> None:
    """What the zip's directory says, which is also all that Python's reader gives out."""
    try:
        with ZipFile(file) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
    except (BadZipFile, FileNotFoundError):
        return  # who loads it, or compares its digest, says so
    if len(sizes) > ENTRIES or sum(sizes) > EXPANDED:
        raise TrainingError(
            f"{file.parent.name}/{file.name} holds {len(sizes):,} entries that unpack to "
            f"{sum(sizes):,} bytes; allowed are {ENTRIES:,} entries and {EXPANDED:,} bytes. It was "
            "not opened; register a smaller model."
        )


def _refused(folder: Path, found: str, allowed: str) -> TrainingError:
    return TrainingError(
        f"{folder.name} is not {_WHAT}: it holds {found}; allowed is {allowed}. It was not loaded; "
        "find out who wrote it, and promote another version."
    )
