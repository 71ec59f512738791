"""One Airflow for the files of this folder; it ends with the last of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.together.shared import Shared, share


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """An Airflow for models of any file."""
    with share(tmp_path_factory.mktemp("shared")) as running:
        yield running
