"""SQL is written by us, values are parameters: no text is put together and run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import evergreen
from evergreen.lifecycle.definition_reading import load
from evergreen.lifecycle.features import join
from evergreen.store import Store
from tests.feature_models import MODULE, declare_flights

PACKAGE = Path(evergreen.__file__).parent
#: What runs its first argument as SQL.
RUNS = {
    "execute", "executemany", "executescript", "exec_driver_sql", "text", "literal_column",
    "raw_sql", "read_sql", "read_sql_query", "sql",
}  # fmt: skip
#: (file, the argument as it is written): why it may stand.
EXEMPT = {
    (
        "ledger/database.py",
        "f'PRAGMA {pragma}'",
    ): "PRAGMA takes no parameter; the names are constants there"
}
HOSTILE = 'temp"; DROP TABLE rows; --'


def _made(node: ast.expr, said: dict[str, ast.expr]) -> bool:
    """Whether a text is put together of parts that aren't all constants."""
    if isinstance(node, ast.Name):
        return node.id in said and _made(said[node.id], {})
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return not all(isinstance(side, ast.Constant) for side in (node.left, node.right))
    if isinstance(node, ast.IfExp):
        return _made(node.body, said) or _made(node.orelse, said)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"format", "join", "replace", "format_map"}
    )


def _runs(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every statement in ``tree`` that is put together and run."""
    said = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and _made(node.value, {})
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in RUNS and _made(node.args[0], said):
            yield node.lineno, ast.unparse(node.args[0])


def test_no_statement_is_put_together() -> None:
    found, used = [], set()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for line, text in _runs(ast.parse(file.read_text())):
            used.add((name, text))
            if (name, text) not in EXEMPT:
                found.append(f"{name}:{line}: {text}")
    assert found == []
    assert set(EXEMPT) <= used, "an exemption is no longer needed"


@pytest.mark.parametrize(
    "code",
    [
        'session.execute(text(f"SELECT {x}"))',
        'session.execute("SELECT " + x)',
        'session.execute("SELECT %s" % x)',
        'connection.exec_driver_sql("SELECT {}".format(x))',
        'duckdb.sql(" ".join(parts))',
        'query = f"SELECT {x}"\nsession.execute(query)',
    ],
)
def test_the_look_sees_what_it_looks_for(code: str) -> None:
    assert list(_runs(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ['session.execute(text("SELECT :x"), {"x": x})', "session.execute(select(Row))"]
)
def test_parameters_are_no_finding(code: str) -> None:
    assert not list(_runs(ast.parse(code)))


def test_hostile_column_names_and_values_are_only_names_and_values(tmp_path: Path) -> None:
    module = MODULE.replace('name="temp"', f"name={HOSTILE!r}")
    declaration = declare_flights(tmp_path / "example", module)
    definitions = load(declaration, {"origin": "string", "distance": "double"})
    store = Store(f"file://{tmp_path}/store")
    when = pd.to_datetime(["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]).as_unit("us")
    keys = ["x' OR '1'='1", 'y"); DROP TABLE rows; --']
    known = pd.DataFrame(
        {"event_timestamp": when, "origin": keys, HOSTILE: [1.0, 2.0], "sky": ["a", "b"]}
    )
    uri = store.put_table("tables/features/example/weather/1.parquet", known)
    asked = pd.DataFrame(
        {
            "row_id": [0, 1, 2],
            "event_timestamp": [when[1], when[1], when[1]],
            "origin": [*keys, "' OR TRUE --"],
        }
    )
    joined = join(definitions, "example", asked, {"weather": [uri]}, store)
    assert joined[HOSTILE].tolist()[:2] == [1.0, 2.0]
    assert joined[HOSTILE].isna().tolist() == [False, False, True]
