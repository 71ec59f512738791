"""The Python in a model's folder: loaded by path, named by content, kept off ``sys.path``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.store import digest_of


def load_module(declaration: Declaration, name: str) -> ModuleType:
    """A module of a model's folder.

    Its full name holds a digest of the folder's Python, so changed code is read anew and two
    models can't meet. It may import its neighbours relatively (``from .windows import mean``).

    :raises DeclarationError: when the file is missing, isn't directly in the folder, or fails while
        it is loaded.
    """
    return load_from(declaration.folder, declaration.name, name)


def load_from(folder: Path, model: str, name: str) -> ModuleType:
    """A module of the folder of ``model``, as `load_module` gives it."""
    if not name.isidentifier():
        raise DeclarationError(
            f"{folder}: {name!r:.120} is no module's name; allowed are the names of the folder's own "
            "Python files, without dots and slashes"
        )
    file = folder / f"{name}.py"
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.py"))) or "no Python file"
        raise DeclarationError(
            f"{file}: no such file, though {model} declares it; the folder has {there}. "
            "Add the file, or correct the declaration."
        )
    full = f"evergreen_models.{model}.{name}.{_digest(folder, '.py')[:16]}"
    if full not in sys.modules:
        _execute(full, file)
    return sys.modules[full]


def load_function(folder: Path, spec: str) -> Callable[..., Any]:
    """The function ``module:name`` of a model's folder, which bears the model's name.

    It costs a digest of the folder's Python; the module is executed once for each content.

    :raises DeclarationError: when the module can't be loaded, or has no such function.
    """
    module, _, name = spec.partition(":")
    loaded = load_from(folder, folder.name, module)
    function = getattr(loaded, name, None)
    if not callable(function):
        own = sorted(
            key
            for key, value in vars(loaded).items()
            if isfunction(value) and value.__module__ == loaded.__name__
        )
        found = "nothing" if function is None else f"{type(function).__name__} {function!r:.80}"
        raise DeclarationError(
            f"{folder / module}.py: {name} is {found}, though {folder.name} declares {spec}; the "
            f"module has the functions {', '.join(own) or 'none'}. Define {name}, or correct the "
            "declaration."
        )
    return function  # type: ignore[no-any-return]  # a model's own function


def code_digest(declaration: Declaration) -> str:
    """The sha256 of everything a model's folder says: its Python, YAML and JSON files."""
    return _digest(declaration.folder, ".py", ".yaml", ".json")


def module_digest(module: ModuleType) -> str:
    """The sha256 of a loaded module's file and of the neighbours it imported."""
    own = module.__name__
    # A copy: other threads import at the same time.
    family = [
        m for name, m in sys.modules.copy().items() if name == own or name.startswith(f"{own}.")
    ]
    files = {str(Path(m.__file__).name): _sha256(Path(m.__file__)) for m in family if m.__file__}
    return digest_of(files)


class _Source(SourceFileLoader):
    """Reads the source as it is: bytecode beside it can be a second older, and the folder of a
    DAG bundle is not ours to write into."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(path)


def _execute(full: str, file: Path) -> None:
    spec = spec_from_file_location(
        full, file, loader=_Source(full, str(file)), submodule_search_locations=[str(file.parent)]
    )
    if spec is None or spec.loader is None:
        raise DeclarationError(f"{file}: not a Python module")
    module = sys.modules[full] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a model's own code raises, said with its place
        del sys.modules[full]
        raise DeclarationError(
            f"{file}: can't be loaded: {type(error).__name__}: {error}. Correct the file; "
            "`evergreen check` loads it too."
        ) from error


def _digest(folder: Path, *endings: str) -> str:
    files = sorted(path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    return digest_of({path.relative_to(folder).as_posix(): _sha256(path) for path in files})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_commit(declaration: Declaration) -> str | None:
    """The commit of a model's folder, with ``+changes`` when files differ from it; None outside Git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(declaration.folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - our own words
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--", ".") else commit
