"""What JSON can't say is kept all the same."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evergreen.ledger.numbers import dumps, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_every_value_comes_back_from_text_that_every_database_takes(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(dumps(value), parse_constant=refuse)
    assert loads(dumps(value)) == value


def test_not_a_number_comes_back() -> None:
    found = loads(dumps({"interval": [math.nan, 1.0], "tuple": (math.inf, -math.inf)}))
    assert math.isnan(found["interval"][0])
    assert found["tuple"] == [math.inf, -math.inf]


def test_what_was_written_before_is_read() -> None:
    assert loads('{"high": Infinity}') == {"high": math.inf}
