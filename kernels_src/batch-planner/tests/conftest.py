"""The `kernel` fixture for a package without torch: the variant of this interpreter alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hub_loader import get_local_kernel

SOURCE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if given := os.environ.get("KHUB_KERNEL_BUILD"):
        return get_local_kernel(Path(given) / SOURCE.name)
    out = tmp_path_factory.mktemp("package")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    command = [sys.executable, "-m", "hub_loader", "build", str(SOURCE)]
    subprocess.run([*command, "--select", f"{tag}-*", "--out", str(out)], check=True)
    return get_local_kernel(out)
