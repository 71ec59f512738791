"""Feast is imported quickly, and what people write for it is checked as before."""

import json
import subprocess
import sys
from typing import Any

import pytest

from evergreen.lifecycle.feast_import import CHECKED

#: A mistake in a feature module → the argument that is named.
MISTAKES = {
    "Entity(name='o', join_keys='o', value_type=ValueType.STRING)": "join_keys",
    "Entity(name='o', join_keys=['o'], value_type='string')": "value_type",
    "Field(name='a', dtype=float)": "dtype",
    "view(ttl=30)": "ttl",
    "view(entities=['origin'])": "entities",
    "view(schema=['a'])": "schema",
    "view(source='flights.parquet')": "source",
    "FeatureService(name='s', features=view())": "features",
    "FileSource(path=1, timestamp_field='event_timestamp')": "path",
}
LOOK = """
import json, sys
from datetime import timedelta

import typeguard

from evergreen.lifecycle.feast_import import import_feast

theirs, compiled = typeguard.typechecked, []
typeguard.typechecked = mine = lambda it: compiled.append(it.__name__) or theirs(it)
import_feast()
import_feast()
restored = typeguard.typechecked is mine

from feast import *
from feast.types import Float64

def view(**other):
    key = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    source = FileSource(path="flights.parquet", timestamp_field="event_timestamp")
    given = {"name": "v", "entities": [key], "ttl": timedelta(days=1), "source": source,
             "schema": [Field(name="a", dtype=Float64)]}
    return FeatureView(**{**given, **other})

right, said = view().name, {}
for mistake in json.loads(sys.argv[1]):
    try:
        said[mistake] = repr(eval(mistake))
    except typeguard.TypeCheckError as error:
        said[mistake] = str(error)
print(json.dumps({"compiled": compiled, "restored": restored, "right": right, "said": said}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a process finds that imports Feast this way."""
    command = [sys.executable, "-c", LOOK, json.dumps(list(MISTAKES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_only_what_people_write_is_compiled_anew(found: dict[str, Any]) -> None:
    assert found["compiled"] == list(CHECKED)
    assert found["restored"]


def test_a_mistake_is_named(found: dict[str, Any]) -> None:
    assert found["right"] == "v"
    for mistake, argument in MISTAKES.items():
        assert f'argument "{argument}"' in found["said"][mistake], mistake
