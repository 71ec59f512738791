"""A model's own Python is loaded by path and content, never twice and never stale."""

from pathlib import Path

import pytest

from evergreen.errors import DeclarationError
from evergreen.lifecycle.modules import load_function, load_module
from tests.builders import declare


def test_a_function_is_loaded_once_for_each_content(tmp_path: Path) -> None:
    file = tmp_path / "kpi.py"
    file.write_text("from .rates import RATE\n\ndef cost(a, b):\n    return RATE\n")
    (tmp_path / "rates.py").write_text("RATE = 1\n")
    first = load_function(tmp_path, "kpi:cost")
    assert load_function(tmp_path, "kpi:cost") is first
    (tmp_path / "rates.py").write_text("RATE = 2\n")
    assert (first(0, 0), load_function(tmp_path, "kpi:cost")(0, 0)) == (1, 2)


def test_a_module_of_the_model_and_one_of_its_kpi_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / "own.py").write_text("def cost(a, b):\n    return a\n")
    module = load_module(declare(folder), "own")
    assert load_function(folder, "own:cost") is module.cost
    assert "example" in module.__name__


def test_what_is_no_function_is_named(tmp_path: Path) -> None:
    (tmp_path / "kpi.py").write_text("from math import sqrt\ncost = 3\n\ndef price(): ...\n")
    with pytest.raises(DeclarationError, match=r"cost is int 3.*functions price\. Define"):
        load_function(tmp_path, "kpi:cost")
    with pytest.raises(DeclarationError, match=r"absent\.py: no such file"):
        load_function(tmp_path, "absent:cost")
