"""What these tests hide stays hidden only for them: Airflow's masker is the process's."""

from collections.abc import Iterator

import pytest
from airflow.sdk._shared.secrets_masker import reset_secrets_masker


@pytest.fixture(autouse=True)
def _masker() -> Iterator[None]:
    yield
    reset_secrets_masker()
