"""The threat model names tests that exist, and variables that the code reads."""

import ast
import re
from pathlib import Path

import evergreen

UNIT = Path(__file__).parents[1]
PAGE = (UNIT.parents[1] / "docs" / "security.md").read_text()


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    rows = [line for line in PAGE.split("## Threat")[1].splitlines() if line.startswith("| ")]
    assert len(named) == len(rows) - 1, "each row but the head names one test"
    for file, test in named:
        there = {
            n.name
            for n in ast.walk(ast.parse((UNIT / file).read_text()))
            if isinstance(n, ast.FunctionDef)
        }
        assert test in there, f"docs/security.md names {file}::{test}, which doesn't exist"


def test_every_named_variable_is_read() -> None:
    code = "".join(file.read_text() for file in Path(evergreen.__file__).parent.rglob("*.py"))
    for variable in set(re.findall(r"EVERGREEN_\w+", PAGE)):
        assert f'"{variable}"' in code, f"docs/security.md names {variable}, which nothing reads"
