"""A page made for a browser with a network, as it reads without one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evergreen.ui.offline import OUT, VOID_OUT, links, offline
from tests.unit.ui.lives import HOSTILE, look

PIECES = (
    *HOSTILE, "<p>", "</p>", "<a href='x.html'>", "<a HREF=javascript:run()>", "</a>", "<script>",
    "</script>", "<style>", "</style>", "<form>", "</form>", "<footer>", "</footer>", "<img src=x>",
    "<svg onload=run()>", "<meta http-equiv=refresh content=0>", "<!-- a -->", "&lt;b&gt;", "said",
    "<iframe src=x>", "</iframe>", "<a href='#part'>", "<link rel=x href=y />", "<b title='<'>",
)  # fmt: skip


def test_what_is_kept_reads_as_before() -> None:
    page = "<!DOCTYPE html><html><body><p title='a &amp; \"b\"'>1 &lt; 2 &#38; 3</p><br/></body></html>"
    assert offline(page.encode()).decode().startswith(
        "<!DOCTYPE html><html><body><p title=\"a &amp; &quot;b&quot;\">1 &lt; 2 &#38; 3</p><br>"
    )  # fmt: skip


def test_what_is_taken_out_goes_with_all_in_it_and_no_more() -> None:
    page = "a<footer><p>b</p><script>c</footer></script>d</footer>e<button>f</button>g"
    assert look(offline(page.encode()).decode()).text.startswith("aeg")


def test_links_are_those_to_pages_beside_it_once() -> None:
    page = "<a href='v/a.html'>x</a><a href='v/a.html'>y</a><a href='#z'>z</a><a href='https://e/'>"
    assert links(page.encode()) == ["v/a.html"]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
def test_nothing_runs_loads_or_leads_away(pieces: list[str]) -> None:
    kept = look(offline("".join(pieces).encode()).decode().rpartition("<meta")[0])
    for tag, attributes in kept.tags:
        assert tag not in OUT | VOID_OUT
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "action"}
            assert name != "href" or str(value).startswith("#")


@given(page=st.binary(max_size=300))
def test_any_bytes_are_a_page(page: bytes) -> None:
    offline(page)
    links(page)
