"""my-kernel against torch. Build first: `khub build .` writes the package that is tested here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from hub_loader import get_local_kernel

PACKAGE = Path(__file__).parents[1] / "dist" / "my-kernel"
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kernel(device: str) -> ModuleType:
    return get_local_kernel(PACKAGE, backend=device)


@pytest.mark.parametrize("shape", [(0,), (1,), (1000,), (33, 65)])
def test_scale_add_gives_what_torch_gives(kernel: ModuleType, device: str, shape: tuple[int, ...]) -> None:
    x, y = torch.randn(2, *shape, device=device)
    torch.testing.assert_close(kernel.scale_add(x, y, 0.5), 0.5 * x + y)


def test_scale_add_of_another_size_names_both(kernel: ModuleType, device: str) -> None:
    with pytest.raises(RuntimeError, match="x has 3 elements, out has 4"):
        kernel.scale_add(torch.ones(3, device=device), torch.ones(4, device=device), 1.0)
