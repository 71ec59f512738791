"""Nothing in the store is ever half-written, and the same content is kept once."""

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.errors import CorruptError, UnavailableError
from evergreen.store import Store, digest_of, s3_session

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


def test_the_same_bytes_are_kept_once(store: Store, tmp_path: Path) -> None:
    first = store.put_object(io.BytesIO(b"rows"))
    kept = next(p for p in (tmp_path / "store" / "objects").rglob("*") if p.is_file())
    before = kept.stat().st_mtime_ns
    assert store.put_object(io.BytesIO(b"rows")) == first
    assert kept.stat().st_mtime_ns == before
    assert store.read_bytes(first[0]) == b"rows"


def test_a_document_changed_behind_our_back_is_not_believed(store: Store) -> None:
    uri, digest = store.put_document("verdict", {"verdict": "reject"})
    assert store.get_document(uri, digest) == {"verdict": "reject"}
    store.path(uri).write_text('{"verdict": "promote"}')
    with pytest.raises(CorruptError, match="was changed"):
        store.get_document(uri, digest)


def test_a_failed_write_leaves_what_was_there(store: Store) -> None:
    store.put_bytes("reports/a.html", b"old")

    def fail(path: Path) -> None:
        path.write_bytes(b"ha")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.write("reports/a.html", fail)
    assert store.read_bytes("reports/a.html") == b"old"


def test_what_a_killed_writer_left_is_swept(store: Store, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    folder = tmp_path / "store" / "reports"
    folder.mkdir(parents=True)
    (folder / f".a.html.aside-1-{child}").write_bytes(b"half")
    store.put_bytes("reports/a.html", b"whole")
    assert [path.name for path in folder.iterdir()] == ["a.html"]


def test_threads_that_write_the_same_do_not_take_it_from_each_other(store: Store) -> None:
    both = threading.Barrier(2)

    def produce(path: Path) -> None:
        path.write_bytes(b"whole")
        both.wait(30)  # each has written and none has moved what it wrote

    with ThreadPoolExecutor(2) as threads:
        written = [threads.submit(store.write, "reports/a.html", produce) for _ in range(2)]
    assert {it.result() for it in written} == {store.uri("reports/a.html")}
    assert store.read_bytes("reports/a.html") == b"whole"


def test_tables_come_back_as_they_were(store: Store) -> None:
    table = pd.DataFrame({"a": [1.5, None], "b": ["x", None]})
    uri = store.put_table("tables/t.parquet", table)
    pd.testing.assert_frame_equal(store.get_table(uri), table)
    assert list(store.get_table(uri, ["b"]).columns) == ["b"]


def test_clients_of_s3_are_made_from_what_is_read_once() -> None:
    keys = {"key": "-", "secret": "-"}
    first, other = Store("s3://one/store", keys), Store("s3://two/store")
    for path in (first.path("objects/a"), other.path("objects/a"), other.path("s3://three/a")):
        assert path.fs.session is s3_session()
    assert (first.path("a").fs.key, other.path("a").fs.key) == ("-", None)


def test_an_unreachable_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UnavailableError, match=f"the store at file://{tmp_path}/file"):
        Store(f"file://{tmp_path}/file").put_bytes("a", b"b")
