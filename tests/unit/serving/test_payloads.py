"""What a request says is what the model gets; what it can't mean is refused where it stands."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.lifecycle.contracts import Feature
from evergreen.serving.columns import values_of
from evergreen.serving.payloads import Asked, Expected, read_invocations, read_predict
from evergreen.serving.refusals import RequestError

EXPECTED = Expected(
    entities=("origin", "flight"), timestamp="event_timestamp", slices=("carrier",), rows=50
)
FEATURES = (
    Feature(name="temp", type="number"),
    Feature(name="sky", type="string"),
    Feature(name="distance", type="number"),
)
NAMES = [feature.name for feature in FEATURES]
KEYS = (Feature(name="origin", type="string"), Feature(name="flight", type="number"))
ROW = {"temp": 1.5, "sky": "clear", "distance": 3}


def values(asked: Asked) -> dict[str, list[Any]]:
    return values_of(asked.table.named(FEATURES), FEATURES)


def invoked(content: Any) -> Asked:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_invocations(body, EXPECTED)


def refused(content: Any, *, text: bool = False) -> tuple[int, str, str | None, int | None, str]:
    """What is said of a request to /invocations whose features are read as well."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(RequestError) as caught:
        values(read_invocations(body, EXPECTED, csv_text=text))
    error = caught.value
    assert error.to_dict()["error"]["reason"] == str(error)
    return error.status, error.code, error.column, error.row, error.reason


numbers = (
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
)
texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=8)
tables = st.lists(
    st.fixed_dictionaries({"temp": numbers, "sky": texts, "distance": numbers}),
    min_size=1,
    max_size=8,
)


@given(tables)
def test_every_form_says_the_same(rows: list[dict[str, Any]]) -> None:
    meant = {
        "temp": [None if row["temp"] is None else float(row["temp"]) for row in rows],
        "sky": [row["sky"] for row in rows],
        "distance": [None if row["distance"] is None else float(row["distance"]) for row in rows],
    }
    lists = [[row[name] for name in NAMES] for row in rows]
    backwards = {"columns": NAMES[::-1], "data": [row[::-1] for row in lists], "index": []}
    forms: list[dict[str, Any]] = [
        {"dataframe_split": {"columns": NAMES, "data": lists}},
        {"dataframe_split": backwards},
        {"dataframe_records": rows},
        {"instances": rows},
        {"instances": lists},
        {"inputs": rows},
        {"inputs": {name: [row[name] for row in rows] for name in NAMES}},
    ]
    for form in forms:
        assert values(invoked(form)) == meant
        assert invoked(form).rows == len(rows)


@given(tables.filter(lambda rows: all("\x00" not in (row["sky"] or "") for row in rows)))
def test_csv_says_the_same_as_json(rows: list[dict[str, Any]]) -> None:
    """But for empty text, which is a missing value there."""
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, NAMES, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    found = values(read_invocations(written.getvalue().encode(), EXPECTED, csv_text=True))
    said = values(invoked({"dataframe_records": rows}))
    assert found == {**said, "sky": [text or None for text in said["sky"]]}


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["rows", "inputs", "instances", "dataframe_split", "columns", "data",
                         "dataframe_records", *NAMES]) | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
).map(lambda content: json.dumps(content).encode()))  # fmt: skip
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    refusals: list[RequestError] = []
    for read in (
        lambda: read_invocations(body, EXPECTED),
        lambda: read_invocations(body, EXPECTED, csv_text=True),
        lambda: read_predict(body, EXPECTED, KEYS),
    ):
        try:
            asked = read()
            values(asked)
        except RequestError as error:
            refusals.append(error)
        else:
            assert 1 <= asked.rows <= EXPECTED.rows
    assert all(400 <= error.status < 500 for error in refusals)
    assert all(msgspec.json.encode(error.to_dict()) for error in refusals)


@pytest.mark.parametrize(
    ("value", "column", "code"),
    [
        (True, "temp", "wrong_type"),
        ("1.5", "temp", "wrong_type"),
        ([], "temp", "wrong_type"),
        (10**400, "temp", "not_finite"),
        (5, "sky", "wrong_type"),
        (False, "sky", "wrong_type"),
        ({}, "sky", "wrong_type"),
    ],
)
def test_a_value_of_another_type_is_named(value: Any, column: str, code: str) -> None:
    rows = [ROW, {**ROW, column: value}]
    assert refused({"dataframe_records": rows})[:4] == (400, code, column, 1)


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("nan", "wrong_type"),
        ("1_000", "wrong_type"),
        ("inf", "wrong_type"),
        ("1e999", "not_finite"),
    ],
)
def test_a_csv_field_that_is_no_number_is_named(field: str, code: str) -> None:
    body = f"temp,sky,distance\n1,a,2\n{field},b,3\n".encode()
    assert refused(body, text=True)[:4] == (400, code, "temp", 1)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_json_has_no_literals_for_what_is_not_finite(literal: bytes) -> None:
    body = b'{"dataframe_records": [{"temp": ' + literal + b', "sky": null, "distance": 1}]}'
    status, code, *_ = refused(body)
    assert (status, code) == (400, "malformed")


def test_where_a_body_is_broken_is_told() -> None:
    assert (
        "byte 25" in refused(b'{"dataframe_records": [{]}')[4]
        or "byte 24" in refused(b'{"dataframe_records": [{]}')[4]
    )
    assert "nested too deeply" in refused(b"[" * 200_000)[4]
    assert "position 2" in refused(b"a,\xff\n1,2\n", text=True)[4]
    assert refused(b'{"inputs": [{"temp": ' + b"1" * 5000 + b"}]}")[:2] == (400, "malformed")


@pytest.mark.parametrize(
    ("content", "code", "column", "row", "said"),
    [
        ([], "malformed", None, None, "the body is a list"),
        ({}, "malformed", None, None, "exactly one"),
        ({"rows": []}, "unknown_key", None, None, "'rows' is no key"),
        ({"inputs": [ROW], "instances": [ROW]}, "malformed", None, None, "exactly one"),
        ({"inputs": [ROW], "params": {}}, "unknown_key", None, None, "'params'"),
        ({"inputs": []}, "no_rows", None, None, "no row"),
        ({"inputs": None}, "malformed", None, None, "inputs is null"),
        ({"inputs": [ROW, 3]}, "malformed", None, 1, "the row is a number"),
        ({"inputs": {"temp": 3}}, "malformed", "temp", None, "the column is a number"),
        ({"inputs": {"temp": [1], "sky": []}}, "malformed", "sky", None, "holds 0 values"),
        ({"instances": [[1, "a", 2], [1, "a"]]}, "malformed", None, 1, "holds 2 values"),
        ({"instances": [[1, "a", 2], ROW]}, "malformed", None, 1, "the row is an object"),
        ({"inputs": [{"temp": 1, "sky": "a"}]}, "missing_column", "distance", None, "absent"),
        ({"inputs": [ROW, {"temp": 1, "sky": "a"}]}, "missing_column", "distance", 1, "no such"),
        ({"dataframe_split": {"columns": ["temp"], "data": [[1]], "x": 1}}, "unknown_key", None,
         None, "'x' is no key of dataframe_split"),
        ({"dataframe_split": {"columns": ["temp"]}}, "malformed", None, None, "a list of data"),
        ({"dataframe_split": {"columns": ["temp", "temp"], "data": [[1, 2]]}}, "malformed", "temp",
         None, "named twice"),
        ({"dataframe_split": {"columns": [1], "data": [[1]]}}, "malformed", None, None, "is text"),
        ({"inputs": [{**ROW, "origin": True}]}, "wrong_type", "origin", 0, "true is no key"),
        ({"inputs": [{**ROW, "carrier": [1]}]}, "wrong_type", "carrier", 0, "a list is no key"),
        ({"inputs": [{**ROW, "flight": 2**63}]}, "wrong_type", "flight", 0, "of 64 bits"),
        ({"inputs": [{**ROW, "event_timestamp": "2026-01-01T00:00:00"}]}, "wrong_type",
         "event_timestamp", 0, "with a zone"),
        ({"inputs": [{**ROW, "event_timestamp": "0001-01-01T00:00:00+23:59"}]}, "wrong_type",
         "event_timestamp", 0, "with a zone"),
        ({"inputs": [{**ROW, "event_timestamp": 17}]}, "wrong_type", "event_timestamp", 0, "17"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    content: Any, code: str, column: str | None, row: int | None, said: str
) -> None:
    found = refused(content)
    assert found[:4] == (400, code, column, row)
    assert said in found[4]


def test_what_the_model_does_not_need_is_kept_or_ignored() -> None:
    said = {"origin": "JFK", "carrier": "AA", "event_timestamp": "2026-01-01T01:00:00+01:00"}
    asked = invoked({"inputs": [{**ROW, **said, "other": {"a": []}}, ROW]})
    assert asked.entities == {"origin": ["JFK", None]}
    assert asked.slices == {"carrier": ["AA", None]}
    assert asked.moments == [datetime(2026, 1, 1, tzinfo=UTC), None]
    assert values(asked)["distance"] == [3.0, 3.0]


def test_too_many_rows_are_too_large() -> None:
    with pytest.raises(RequestError, match="51 rows; at most 50") as caught:
        invoked({"inputs": [ROW] * 51})
    assert (caught.value.status, caught.value.code) == (413, "too_many_rows")


@pytest.mark.parametrize(
    ("row", "column", "code"),
    [
        ({"origin": "JFK"}, "flight", "missing_column"),
        ({"origin": 5, "flight": 1}, "origin", "wrong_type"),
        ({"origin": "JFK", "flight": 1.5}, "flight", "wrong_type"),
        ({"origin": "JFK", "flight": 2**63}, "flight", "wrong_type"),
        ({"origin": "JFK", "flight": True}, "flight", "wrong_type"),
    ],
)
def test_a_key_that_nothing_can_be_looked_up_by_is_named(
    row: dict[str, Any], column: str, code: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_predict(json.dumps({"rows": [row]}).encode(), EXPECTED, KEYS)
    assert (caught.value.code, caught.value.column) == (code, column)
    assert read_predict(b'{"rows": [{"origin": null, "flight": 7}]}', EXPECTED, KEYS).rows == 1


def test_a_long_value_is_not_repeated() -> None:
    assert len(refused({"inputs": [{**ROW, "temp": "x" * 10_000}]})[4]) < 200
