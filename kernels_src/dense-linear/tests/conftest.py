"""This package has no CUDA backend: torch has the dense product there."""

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="module", params=["cpu", pytest.param("cpu-baseline", marks=pytest.mark.slow)])
def kernel(request: pytest.FixtureRequest, builds) -> Iterator[ModuleType]:
    yield builds(request.path.parent.parent, request.param)
