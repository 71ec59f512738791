"""What the README shows is true: its model file is usable, and its commands and files exist."""

import re
from pathlib import Path

import pytest

from evergreen.checking import check_model
from evergreen.cli import app
from evergreen.declaration import read_declaration

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
MAKEFILE = (PROJECT / "Makefile").read_text()
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def test_the_model_file_is_usable_and_short(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) < 30
    name = re.search(r"^name: (\w+)", block[1], re.MULTILINE)
    assert name is not None
    folder = tmp_path / name[1]
    folder.mkdir()
    (folder / "model.yaml").write_text(block[1])
    check_model(read_declaration(folder))


def test_the_commands_exist() -> None:
    known = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    assert set(re.findall(r"`evergreen (\w+)", README)) <= known
    for target in set(re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE)):
        assert f"\n{''.join(target)}:" in MAKEFILE


def test_every_linked_file_is_there() -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (PROJECT / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_file_of_ours_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:dags|plugins|tests)/[\w./-]+)[`:]", page.read_text())
    assert [name for name in named if not (PROJECT / name).exists()] == []
