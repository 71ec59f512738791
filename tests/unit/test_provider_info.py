"""The forms of our Connections, as Airflow reads them, and the hooks that they name."""

import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from evergreen.provider_info import get_provider_info

KINDS = {it["connection-type"]: it for it in get_provider_info()["connection-types"]}


def test_they_are_as_a_provider_writes_them() -> None:
    schema = json.loads(files("airflow").joinpath("provider.yaml.schema.json").read_text())
    jsonschema.validate(list(KINDS.values()), schema["properties"]["connection-types"])


@pytest.mark.parametrize("kind", KINDS)
def test_airflow_finds_each_and_can_test_it(kind: str) -> None:
    manager = ProvidersManager()
    hook = manager.hooks[kind]
    assert hook is not None
    assert hook.connection_testable
    assert hook.connection_id_attribute_name == "conn_id"
    assert hook.hook_name == KINDS[kind]["hook-name"]
    assert hook.package_name == "airflow-provider-evergreen"


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_has_only_the_field_that_airflow_encrypts_and_masks(kind: str) -> None:
    fields: dict[str, Any] = KINDS[kind].get("conn-fields", {})
    for name in fields:
        assert not any(word in name for word in ("password", "secret", "token", "api_key"))
