"""The wheel of this tree in an environment that has nothing else, and a page's commands run in it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path

from khub_process import ROOT, khub_command, khub_environment
from packaging.requirements import Requirement

_OURS = ("HF_", "KERNELS_", "KHUB_", "PYTHON", "VIRTUAL_ENV", "OTEL_")


def copy_source(folder: Path) -> Path:
    """The files that git knows, as they are now: a build writes into the tree that it is given."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/screenshots/")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


def build_wheel(folder: Path) -> Path:
    """The one wheel in `folder`, built of this tree."""
    source = copy_source(folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("kernel_hub-*.whl")
    return wheel


def clean_environment(folder: Path, wheel: Path, *, torch: bool = False) -> dict[str, str]:
    """The variables of a shell in a new virtual environment, to which `pip install kernel-hub` brings `wheel`.

    Args:
        torch: put torch and NumPy there, of the versions here: `pip install torch` then has nothing to fetch.
    """
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if torch:
        site = next((venv / "lib").glob("python*")) / "site-packages"
        for name in _closure("torch") | _closure("numpy"):
            _link(name, site)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "KHUB_TOOLCHAINS": os.environ.get(
            "KHUB_TOOLCHAINS", str(Path.home() / ".cache/kernel-hub/toolchains")
        ),
        "PIP_FIND_LINKS": f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}".strip(),
        "PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "1",
    }


def _closure(name: str) -> set[str]:
    """A distribution of this environment and those that it requires."""
    found, asked = set[str](), [name]
    while asked:
        if (name := asked.pop()) not in found:
            found.add(name)
            wanted = map(Requirement, distribution(name).requires or [])
            asked += [
                each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return found


def _link(name: str, site: Path) -> None:
    """Install a distribution of this environment in another one, by hard links where the disk allows it."""
    for file in distribution(name).files or []:
        source, target = Path(str(file.locate())), site / file
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        _link_file(source, target)
        # Its bytecode too, if it is there: to compile torch takes longer than most commands.
        compiled = Path(cache_from_source(str(source)))
        if source.suffix == ".py" and compiled.is_file():
            _link_file(compiled, Path(cache_from_source(str(target))))


def _link_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def built_kernel(name: str, folder: Path) -> Path:
    """The package of a kernel of this repository for this CPU, from KHUB_KERNEL_BUILD or built into `folder`."""
    package = Path(os.environ.get("KHUB_KERNEL_BUILD", folder)) / name
    if not package.exists():
        build = khub_command("build", ROOT / "kernels_src" / name, "--out", package)
        select = ["--select", "torch-stable-abi*-cpu-x86_64-*"]
        subprocess.run([*build, *select], env=khub_environment(), check=True)
    return package


def scripts(page: str, test: str) -> list[str]:
    """The blocks of docs/`page` that say they are executed by `test`; every `sh` block has to."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(rf"<!-- executed by {re.escape(test)} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert len(found) == text.count("```sh\n") > 0
    return found


def run_script(script: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What the commands print, which all have to succeed; ports 8000 and its kind become free ones."""
    for port in sorted(set(re.findall(r"\b80\d\d\b", script))):
        with socket.create_server(("127.0.0.1", 0)) as free:
            script = re.sub(rf"\b{port}\b", str(free.getsockname()[1]), script)
    done = subprocess.run(
        [
            "bash",
            "-m",
            "-e",
            "-o",
            "pipefail",
            "-c",
            "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + script,
        ],
        cwd=folder,
        env=dict(variables),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout + done.stderr
