"""Hints of arrival, as declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.builders import declare

S3 = "s3://landing/{partition}.parquet"


@pytest.mark.parametrize(
    "arrival", [{"sensor": "s3"}, {"queue": "https://sqs.eu-central-1.amazonaws.com/1/landed"}]
)
def test_one_hint_is_declared(tmp_path: Path, arrival: dict[str, Any]) -> None:
    declared = declare(tmp_path, data={"uri": S3, "arrival": arrival}).data.arrival
    assert declared is not None
    assert (declared.connection, declared.poke.total_seconds()) == ("aws_default", 60)


@pytest.mark.parametrize(
    ("uri", "arrival", "words"),
    [
        (S3, {}, "exactly one of sensor"),
        (S3, {"sensor": "s3", "queue": "https://x/q"}, "exactly one of sensor"),
        (S3, {"sensor": "s3", "poke": "2h"}, "poke lies between"),
        (S3, {"queue": "landed"}, "pattern"),
        ("landing/{partition}.parquet", {"sensor": "s3"}, "is not on s3://"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, uri: str, arrival: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        declare(tmp_path, data={"uri": uri, "arrival": arrival})
