"""No name leads out of where it belongs: the store, the landing folder, a partition's key."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evergreen.declaration import Period
from evergreen.errors import DeclarationError, PathError
from evergreen.lifecycle.ingestion import ingest
from evergreen.lifecycle.landing import ROOTS, list_landed
from evergreen.lifecycle.rows import MAIN
from evergreen.store import Store
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.unit.lifecycle.test_ingestion import land, rows

CLIMBING = [
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "a/%2e%2e/x",
    "a\\..\\..\\x",
    "%2E%2E/x",
    "a\nb",
    "a\0",
]
ELSEWHERE = ["/etc/x", "file:///etc/x", "s3://other/x", ""]
LATER = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_in(tmp_path)


@pytest.mark.parametrize("name", CLIMBING + ELSEWHERE)
def test_nothing_is_written_out_of_the_store(name: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(PathError):
        store.put_bytes(name, b"evil")
    with pytest.raises(PathError):
        store.uri(name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", CLIMBING)
def test_nothing_is_read_by_climbing(name: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("secret")
    for uri in (name, f"file://{tmp_path}/store/{name}", f"{tmp_path}/store/{name}"):
        with pytest.raises(PathError):
            store.read_bytes(uri)
        with pytest.raises(PathError):
            store.get_document(uri, "0" * 64)


@given(st.text(max_size=30))
@example("a/../b")
@example("%2e%2e/%2e%2e/etc/passwd")
def test_a_name_is_below_the_root_or_refused(name: str) -> None:
    try:
        uri = Store("file:///srv/store").uri(name)
    except PathError:
        return
    assert os.path.normpath(uri.removeprefix("file://")).startswith("/srv/store")


@given(
    st.sampled_from(Period),
    st.text(max_size=16) | st.from_regex(r"\d{4}-\d\d(-\d\d)?", fullmatch=True),
)
@example(Period.MONTH, "2013-1 ")
@example(Period.MONTH, "../2013-01")
def test_a_partitions_key_holds_digits_alone(period: Period, key: str) -> None:
    try:
        period.start(key)
    except ValueError:
        return
    assert key.isascii()
    assert set(key) <= set("0123456789-T")


def test_a_link_out_of_the_landing_folder_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    good = land(workspace, "2026-01-01", rows("2026-01-01"))
    secret = tmp_path / "secret.parquet"
    rows("2026-01-02").to_parquet(secret)
    (good.parent / "2026-01-02.parquet").symlink_to(secret)
    (good.parent / "2026-01-03.parquet").symlink_to(good)
    report = ingest(declare(tmp_path), workspace, LATER)
    assert [partition.key for partition in report.registered] == ["2026-01-01"]
    reasons = {refused.key: refused.reason for refused in report.refused}
    assert "is a link that leads out of" in reasons["2026-01-02"]
    assert "leads out" not in reasons["2026-01-03"], "a link within the folder is read, and judged"


def test_a_landing_folder_that_is_a_link_itself_is_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (workspace.home / "landing").symlink_to(tmp_path / "disk")
    land(workspace, "2026-01-01", rows("2026-01-01"))
    assert len(ingest(declare(tmp_path), workspace, LATER).registered) == 1


def test_a_deployment_says_where_data_may_land(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "landing-of-others"
    away.mkdir()
    rows("2026-01-01").to_parquet(away / "2026-01-01.parquet")
    for uri in (f"{away}/{{partition}}.parquet", f"file://{away}/{{partition}}.parquet"):
        declaration = declare(tmp_path, data={"uri": uri})
        monkeypatch.delenv(ROOTS, raising=False)
        assert list(list_landed(declaration, workspace, MAIN)["data"]) == ["2026-01-01"]
        monkeypatch.setenv(ROOTS, f"s3://bucket/x, {away}")
        assert list(list_landed(declaration, workspace, MAIN)["data"]) == ["2026-01-01"]
        for roots in (str(tmp_path / "landing"), f"{tmp_path}/landing-of", "s3://bucket"):
            monkeypatch.setenv(ROOTS, roots)
            with pytest.raises(DeclarationError, match=f"this deployment allows.*{ROOTS}"):
                list_landed(declaration, workspace, MAIN)


def test_a_link_within_a_root_leads_to_no_other_place(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lands files may make a folder in the root a link, and a root may be one itself."""
    disk, others = tmp_path / "disk", tmp_path / "others"
    for folder in (disk / "mine", others):
        folder.mkdir(parents=True)
        rows("2026-01-01").to_parquet(folder / "2026-01-01.parquet")
    (disk / "out").symlink_to(others)
    (tmp_path / "root").symlink_to(disk)
    monkeypatch.setenv(ROOTS, str(tmp_path / "root"))
    for folder in ("root/mine", "disk/mine"):
        mine = declare(tmp_path, data={"uri": f"{tmp_path}/{folder}/{{partition}}.parquet"})
        assert list(list_landed(mine, workspace, MAIN)["data"]) == ["2026-01-01"]
    out = declare(tmp_path, data={"uri": f"{tmp_path}/root/out/{{partition}}.parquet"})
    with pytest.raises(DeclarationError, match="this deployment allows"):
        list_landed(out, workspace, MAIN)
