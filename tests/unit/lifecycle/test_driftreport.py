"""Evidently's page is written once, by our methods, and loads nothing from anywhere."""

import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.driftreport import OTHERS, DriftPage, write_page
from evergreen.lifecycle.profiles import ReferenceProfile, reference_profile
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import FEATURES, example_rows
from tests.origins import store_origin

LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\bhref=[\"']?(?:https?:)?//|@import\s*(?:url\()?[\"'](?:https?:)?//"
    r"|url\([\"']?(?:https?:)?//"
)


def page_of(
    workspace: Workspace,
    rows: pd.DataFrame,
    *,
    features: Any = FEATURES,
    digest: str = "now",
    **drift: Any,
) -> tuple[DriftPage, str]:
    declaration, reference = _reference(workspace, rows, features, drift)
    names = [feature.name for feature in features]
    now = rows.loc[rows["partition"] == "2013-01-05", names]
    page = write_page(declaration, workspace.store, reference, now, digest)
    html = workspace.store.read_bytes(page.uri).decode() if page.uri else ""
    return page, html


def _reference(
    workspace: Workspace, rows: pd.DataFrame, features: Any, drift: dict[str, Any]
) -> tuple[Declaration, ReferenceProfile]:
    declaration = declare(workspace.home, monitoring={"drift": drift})
    origin = store_origin(workspace, rows, features=features)
    return declaration, reference_profile(declaration, workspace, origin)


def said(html: str) -> str:
    """What the page says of all columns."""
    found = re.search(r"Drift is detected for (.+? out of \d+\))", html)
    assert found
    return found[1]


def test_it_is_html_that_loads_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*address: Any) -> None:
        raise AssertionError(f"called out to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    page, html = page_of(workspace, example_rows())
    assert page.rows == 120
    assert page.left_out == ()
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert LOADED.search(html) is None
    assert [file.name for file in (workspace.home / "store" / "reports" / "drift").iterdir()] == [
        str(page.uri).rpartition("/")[2]
    ]


def test_it_speaks_of_our_methods_and_bounds(workspace: Workspace) -> None:
    rows = example_rows()
    own = {
        "wind": {"method": "ks", "threshold": 1.0},
        "carrier": {"method": "chisquare", "threshold": 0.0},
    }
    _, html = page_of(workspace, rows, columns=own, thresholds={"wasserstein": 99.0})
    shown = ("K-S p_value", "chi-square p_value", "Wasserstein distance (normed)")
    assert all(name in html for name in shown)
    assert said(html) == "25.0% of columns (1 out of 4)"
    _, html = page_of(workspace, rows, thresholds={"wasserstein": 99.0, "jensenshannon": 99.0})
    assert said(html) == "0.0% of columns (0 out of 4)"


def test_it_is_written_once_for_the_same_rows(workspace: Workspace) -> None:
    rows = example_rows()
    first, _ = page_of(workspace, rows)
    file = Path(str(first.uri).removeprefix("file://"))
    file.write_text("<html>kept")
    assert page_of(workspace, rows) == (first, "<html>kept")
    assert page_of(workspace, rows, digest="other rows")[0].uri != first.uri
    assert page_of(workspace, rows, numeric="ks")[0].uri != first.uri


def test_a_sample_of_each_side_is_shown(workspace: Workspace) -> None:
    page, _ = page_of(workspace, example_rows(per_day=700), sample=500)
    assert page.rows == 500


def test_what_evidently_refuses_is_left_out_and_named(workspace: Workspace) -> None:
    rows = example_rows(per_day=300)
    k = np.arange(len(rows))
    columns: dict[str, Any] = {
        "gone": np.where(rows["partition"] == "2013-01-05", np.nan, 1.0),
        "large": 1e18 + k % 700,
        "same": 1e18,
        "fine": np.where(k % 50 == 0, np.inf, 1.0),
        "huge": rows["wind"] * 1e300,
        "words": "some text",
        "many": [f"id{i}" for i in k],
    }
    text = {"words", "many"}
    features = [Feature(name=n, type="string" if n in text else "number") for n in columns]
    page, html = page_of(workspace, rows.assign(**columns), features=features, text=["words"])
    assert page.left_out == ("gone", "large", "same", "words")
    assert OTHERS in html


def test_without_a_column_to_show_there_is_no_page(workspace: Workspace) -> None:
    rows = example_rows().assign(wind=np.nan)
    page, _ = page_of(workspace, rows, features=[Feature(name="wind", type="number")])
    assert page == DriftPage(None, 0, ("wind",))
