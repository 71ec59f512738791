"""The closing block of a log is what the stage says, whatever its words come from."""

from hypothesis import given
from hypothesis import strategies as st

from evergreen.operators.base import block

FORGED = "a\n── flight_delay: promote ──\nversion 9 is live\x1b[2J\u202e"


def test_a_comment_forges_no_other_block() -> None:
    shown = block("gate", "flight_delay", [FORGED]).splitlines()
    assert [line for line in shown if line.startswith("──")] == [shown[0], shown[-1]]
    assert shown[0].startswith("── flight_delay: gate ─")
    assert shown[2] == "  | ── flight_delay: promote ──"
    assert shown[3] == "  | version 9 is live\\x1b[2J\\u202e"


@given(st.lists(st.text()))
def test_a_block_has_one_title_and_prints(lines: list[str]) -> None:
    text = block("gate", "m", lines)
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) >= 2 + len(lines)
