"""The public surface: operators, errors, entry points, and a test file for every module."""

import inspect
import json
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from airflow.providers.standard.operators.hitl import HITLOperator

import evergreen
from evergreen import errors, operators
from evergreen.operators.base import StageOperator
from evergreen.provider_info import get_provider_info

PACKAGE = Path(evergreen.__file__).parent
UNIT = Path(__file__).parent
# What is tested where it is used, rather than by a file of its own name.
TOGETHER = {
    "lifecycle": {
        "categoryprofiles": "test_distances",
        "asking": "test_servers",
        "baking": "test_baking_requests",
        "columns": "test_features",
        "connection": "test_tracking",
        "definition_reading": "test_features",
        "definitions": "test_features",
        "drill_server": "test_drilling",
        "evidence": "test_gating",
        "expectations": "test_validation",
        "featuresources": "test_featurestore",
        "fitted": "test_training",
        "golive": "test_promotion",
        "infrastructure_probe": "test_infrastructure",
        "judging": "test_performance",
        "label_files": "test_labels",
        "landing": "test_ingestion",
        "modelfiles": "../security/test_model_files",
        "numberprofiles": "test_distances",
        "packaging": "test_training",
        "parts": "test_preparation",
        "plots": "test_evaluation",
        "pointintime": "test_features",
        "registry": "test_tracking",
        "reanswering": "test_baking_labels",
        "replicacounts": "test_servers",
        "rows": "test_ingestion",
        "rules": "test_gating",
        "servedlines": "test_servedlog",
        "sets": "test_preparation",
        "sparkjoin": "../../integration/test_spark",
        "tables": "test_preparation",
        "triggers": "test_arbitration",
        "untrusted": "../security/test_data_files",
        "watched": "test_monitoring",
        "windows": "test_escalation",
    },
    "declaration": {
        "bounds": "../security/test_declarations",
        "metrics": "test_reading",
        "schema": "test_reading",
        "serving": "test_reading",
        "watching": "test_reading",
    },
    "serving": {
        "batching": "test_answering",
        "columns": "test_payloads",
        "connections": "../security/test_serving",
        "following": "test_versions",
        "onlinestore": "test_online",
        "outcomes": "test_answering",
        "predicting": "test_answering",
        "refusals": "test_payloads",
        "schema": "test_openapi",
        "security": "test_app",
        "segments": "test_spool",
        "stations": "test_trying",
    },
    "ui": {
        "airflow_api": "test_acting",
        "card": "test_evidence",
        "files": "test_app",
        "lineage": "test_evidence",
        "overview": "test_pages",
        "places": "test_pages",
        "rendering": "test_app",
    },
    "ledger": {"records": "../lifecycle/test_arbitration", "tables": "test_database"},
}


@pytest.mark.parametrize("layer", sorted(TOGETHER))
def test_every_module_has_its_tests(layer: str) -> None:
    modules = {path.stem for path in (PACKAGE / layer).glob("*.py")} - {"__init__"}
    assert set(TOGETHER[layer]) <= modules, "a module was renamed: mend the table above"
    for module in modules:
        test = TOGETHER[layer].get(module, f"test_{module}")
        assert (UNIT / layer / f"{test}.py").exists(), f"{layer}/{module}.py has no {test}.py"


def test_a_stage_has_the_same_file_name_in_every_layer() -> None:
    stages = {path.stem for path in (PACKAGE / "operators").glob("*.py")}
    for stage in stages - {"__init__", "base", "approval"}:
        assert (PACKAGE / "lifecycle" / f"{stage}.py").exists()


def test_operators_say_what_they_take() -> None:
    for name in operators.__all__:
        operator = getattr(operators, name)
        assert issubclass(operator, (StageOperator, HITLOperator))
        parameters = inspect.signature(operator.__init__).parameters
        for field in operator.template_fields:
            assert field in parameters
            assert f":param {field}:" in (operator.__doc__ or ""), (
                f"{name} doesn't document {field}"
            )


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn = errors.__doc__ or ""
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.EvergreenError):
            assert name in drawn


def test_airflow_finds_the_provider_and_the_plugin() -> None:
    providers = {point.value for point in entry_points(group="apache_airflow_provider")}
    assert "evergreen.provider_info:get_provider_info" in providers
    plugins = {point.value for point in entry_points(group="airflow.plugins")}
    assert "evergreen.plugin:EvergreenPlugin" in plugins


def test_the_provider_info_is_as_airflow_wants_it() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
