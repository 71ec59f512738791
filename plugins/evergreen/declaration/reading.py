"""Find model files, read them, and explain what is wrong with one: file, line, key, fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from evergreen.declaration.bounds import check_yaml
from evergreen.declaration.schema import Declaration
from evergreen.errors import DeclarationError

FILE_NAME = "model.yaml"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BOOLEAN = "tag:yaml.org,2002:bool"


# The base is found at run time: the C loader where PyYAML has it.
class _Strict(_Loader):  # type: ignore[misc, valid-type]
    """YAML 1.2 where PyYAML is lax: a key may stand once; ``on``, ``off``, ``yes`` and ``no`` are
    words, not booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own configuration attribute
        first: [(tag, pattern) for tag, pattern in known if tag != _BOOLEAN or first in "tTfF"]
        for first, known in _Loader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]  # PyYAML is untyped


def read_declaration(path: Path) -> Declaration:
    """Read one ``model.yaml``.

    :param path: the file, or the folder that holds it.
    :raises DeclarationError: naming the file, line, key, what was found and what is allowed.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.load(text, Loader=_Strict)  # noqa: S506 - a safe loader's subclass
    except FileNotFoundError:
        raise DeclarationError(
            f"{file}: no such file. A model is a folder with a {FILE_NAME}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{file}: can't be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DeclarationError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except ValueError as error:
        raise DeclarationError(f"{file}: too large to be read: {error}") from error
    if not isinstance(content, dict):
        raise DeclarationError(f"{file}: expected keys and values, found {type(content).__name__}")
    try:
        declaration = Declaration.model_validate(content)
    except ValidationError as error:
        raise DeclarationError(_explain(file, text, error)) from error
    declaration._folder = file.parent.resolve()
    if declaration.name != declaration.folder.name:
        raise DeclarationError(
            f"{file}: name is {declaration.name!r} but the folder is {declaration.folder.name!r}; "
            "make them the same"
        )
    return declaration


def model_files(models: Path) -> list[Path]:
    """Every model file below ``models``, by name. Folders that start with ``_`` or ``.`` are not models."""
    return sorted(f for f in models.glob(f"*/{FILE_NAME}") if f.parent.name[0] not in "._")


def declared_models(models: Path, dag_id: str | None = None) -> Iterator[Declaration]:
    """Yield the declared models, or only the one whose DAG is being run.

    :param models: the folder with one folder a model.
    :param dag_id: a DAG id ``<model>.<family>``; the others' files aren't read then.
    :raises DeclarationError: once the others are yielded, for all model files that can't be used.
    """
    wanted = dag_id.split(".")[0] if dag_id else None
    problems = []
    for file in model_files(models):
        if wanted is None or file.parent.name == wanted:
            try:
                declaration = read_declaration(file)
            except DeclarationError as error:
                problems.append(str(error))
            else:
                yield declaration
    if problems:
        raise DeclarationError("\n".join(problems))


def _explain(file: Path, text: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
        key = ".".join(str(part) for part in where) or "the file as a whole"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(where)
        elif problem["type"] == "missing":
            message = "is required and missing"
        else:
            message = f"found {_shown(problem['input'])}: {message}"
        lines.append(f"{file}:{_line(text, where)}: {key}: {message}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "this combination" if isinstance(value, dict | BaseModel) else repr(value)[:80]


def _unknown_key(where: list[Any]) -> str:
    owner: Any = Declaration
    for part in where[:-1]:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = (
            next(
                (
                    a
                    for a in (field.annotation, *getattr(field.annotation, "__args__", ()))
                    if hasattr(a, "model_fields")
                ),
                None,
            )
            if field
            else None
        )
    allowed = sorted(getattr(owner, "model_fields", {}))
    close = difflib.get_close_matches(str(where[-1]), allowed, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"is not a key here.{hint} Allowed: {', '.join(allowed) or 'nothing'}"


def _line(text: str, where: list[Any]) -> int:
    """The line of the deepest key of ``where`` that the file holds, counted from 1."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
