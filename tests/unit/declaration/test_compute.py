"""Where things run, as declared: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evergreen.declaration import Declaration, DeclarationError, read_declaration
from evergreen.declaration.compute import Placement, SageMakerTraining
from tests.builders import declare

TRAIN = {
    "engine": "sagemaker", "instance": "ml.m5.xlarge", "image": "example.com/evergreen:1",
    "role": "arn:aws:iam::123456789012:role/evergreen",
}  # fmt: skip
DEPLOY = {"image": "example.com/evergreen:1", "role": "evergreen"}


def said(folder: Path, **sections: Any) -> str:
    """What reading a model file with these sections complains of."""
    content = declare(folder).model_dump(mode="json", exclude_unset=True)
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    file = folder / "example" / "model.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(DeclarationError) as error:
        read_declaration(file)
    return str(error.value)


def test_an_engine_is_airflow_unless_it_is_said(tmp_path: Path) -> None:
    declared = declare(tmp_path, compute={"train": TRAIN, "gate": {"pool": "big"}})
    assert type(declared.compute["gate"]) is Placement
    place = declared.compute["train"]
    assert isinstance(place, SageMakerTraining)
    assert place.connection == "aws_default"
    written = declared.model_dump_json()
    assert Declaration.model_validate_json(written).model_dump_json() == written


def test_stages_run_on_airflow_with_the_words_that_operators_take(tmp_path: Path) -> None:
    given = {"executor": "batch", "queue": "big", "pool": "train"}
    declared = declare(tmp_path, compute={"train": {**TRAIN, **given}, "gate": given})
    assert declared.compute["train"].arguments == declared.compute["gate"].arguments == given


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        ({"train": {"engine": "sagemaker"}}, "compute.train.instance: is required and missing"),
        ({"train": {"engine": "sagemaker"}}, "compute.train.image: is required and missing"),
        ({"train": {"engine": "sagemaker"}}, "compute.train.role: is required and missing"),
        ({"train": {"engine": "spark"}}, "its engine airflow or sagemaker"),
        ({"train": {**TRAIN, "instance": "m5.xlarge"}}, "compute.train.instance: found 'm5.xlarge'"),
        ({"train": {**TRAIN, "instnce": "x"}}, "compute.train.instnce: is not a key here"),
        ({"train": {**TRAIN, "longest": "30d"}}, "longest lies between 1m and 28d"),
        ({"train": {**TRAIN, "poke": "0s"}}, "poke lies between 1s and 1h"),
        ({"train": {**TRAIN, "subnets": ["a"]}}, "subnets and security_groups go together"),
        ({"train": {**TRAIN, "environment": {"DB_PASSWORD": "x"}}}, "DB_PASSWORD looks like a secret"),
        ({"gate": TRAIN}, "engine sagemaker is for train, not for gate"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, compute: dict[str, Any], words: str) -> None:
    assert words in said(tmp_path, compute=compute)


def test_a_refit_is_on_airflows_worker(tmp_path: Path) -> None:
    assert "training.refit fits again while promoting" in said(
        tmp_path, compute={"train": TRAIN}, training={"refit": True}
    )


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (DEPLOY, "name an endpoint, a package_group, or both"),
        ({**DEPLOY, "endpoint": "flights"}, "an endpoint needs an instance"),
        ({**DEPLOY, "package_group": "a", "instance": "ml.m5.large"}, "only it does"),
        ({**DEPLOY, "endpoint": "no_underscores", "instance": "ml.m5.large"}, "sagemaker.endpoint"),
    ],
)
def test_what_is_wrong_with_a_deployment_is_said(
    tmp_path: Path, section: dict[str, Any], words: str
) -> None:
    assert words in said(tmp_path, sagemaker=section)
