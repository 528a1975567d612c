"""Shared by all tests: the real `khub serve` in a process of its own, and environments of the stock client.

Tests may run in several processes (pytest-xdist). Each has registries of its own; environments, which take
half a minute to make, are made once for all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from browsing import chromium
from clean_install import build_wheel
from environments import make_environment
from filelock import FileLock
from hypothesis import settings
from khub_process import Hub, StartHub, khub_command, khub_environment
from playwright.sync_api import Browser

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that runs this in the background has it ignore Ctrl-C, and what it starts, too: tests that interrupt need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def trust_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trust file of this run, not that of whoever runs it."""
    path = tmp_path_factory.mktemp("trust") / "trust.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KHUB_TRUST_FILE", str(path))
        yield path


@pytest.fixture(scope="session")
def start_hub() -> Iterator[StartHub]:
    """Start registries on free ports; those still running are killed at the end."""
    started: list[Hub] = []

    def start(data: Path, *arguments: str) -> Hub:
        process = subprocess.Popen(
            khub_command("serve", "--data", data, "--port", "0", "--json", *arguments),
            env=khub_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"khub serve ended with {process.wait()}"
        started.append(Hub(json.loads(line)["url"], data, process))
        return started[-1]

    yield start
    for hub in started:
        if hub.process.poll() is None:
            hub.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def hub(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """One registry for the whole run: take an organization or repository name of your own."""
    return start_hub(tmp_path_factory.mktemp("hub") / "data")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def _shared_folder(folders: pytest.TempPathFactory, name: str) -> Path:
    """A folder of that name for all processes of this run."""
    base = folders.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built once."""
    folder = _shared_folder(tmp_path_factory, "wheel")
    with FileLock(folder.with_suffix(".lock")):
        return next(folder.glob("kernel_hub-*.whl"), None) or build_wheel(folder)


def _stock_client(folders: pytest.TempPathFactory, name: str, *packages: str) -> Path:
    """The interpreter of an environment of its own that has the Hub's client and `packages`."""
    folder = _shared_folder(folders, name)
    python, ready = folder / "bin" / "python", folder / "ready"
    with FileLock(folder.with_suffix(".lock")):
        if ready.exists():
            return python
        # Torch first, from wherever this environment has it; clients as docs/defects.md was measured with.
        make_environment(
            folder, *((each,) for each in packages), ("kernels==0.17.2", "huggingface_hub==2.4.0")
        )
        ready.touch()
    return python


@pytest.fixture(scope="session")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the stock `kernels`, without torch."""
    return _stock_client(tmp_path_factory, "stock")


@pytest.fixture(scope="session")
def stock_torch_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the stock `kernels`, and this environment's torch and tvm-ffi."""
    torch = f"torch=={version('torch').split('+')[0]}"
    return _stock_client(tmp_path_factory, "stock-torch", torch, "apache-tvm-ffi", "numpy")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is heavy is slow as well, so that `-m "not slow"` leaves both out."""
    for item in items:
        if item.get_closest_marker("heavy"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(specname="pytest_collection_modifyitems", trylast=True)
def _files_with_slow_tests_first(items: list[pytest.Item]) -> None:
    """What is long begins early, so that no process ends minutes after the others (with --no-loadscope-reorder)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: not slow[item.path])
