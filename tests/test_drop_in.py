"""Beside the stock `kernels` 0.17.2: the same calls, the same packages, the same lock file, on one real hub."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from khub_process import ROOT, Hub

import hub_loader

sys.path.insert(0, str(Path(__file__).parent / "hub_loader"))
from packages import native_package, python_package, unique_id, write_package

FUNCTIONS = (
    "get_kernel",
    "get_local_kernel",
    "load_kernel",
    "get_locked_kernel",
    "has_kernel",
    "install_kernel",
    "get_kernel_variants",
    "get_loaded_kernels",
    "get_kernel_dep",
)
SIGNATURES = f"""
import inspect, json, kernels
def kinds(function):
    return [(p.name, p.kind.name) for p in inspect.signature(function).parameters.values()]
print(json.dumps({{name: kinds(getattr(kernels, name)) for name in {FUNCTIONS!r}}}))
"""
# One program for both: only the first line differs.
PROGRAM = """
from pathlib import Path
out = {"trust": dict(trust_remote_code=True)}
trust = out.pop("trust")
out["value"] = get_kernel("org/top", version=1, **trust).value()
out["has"] = [has_kernel("org/plain", version=1, **trust), has_kernel("org/rocm", version=1, **trust)]
out["variants"] = [
    (type(d).__name__, d.variant.variant_str) for d in get_kernel_variants("org/plain", version=1)
]
out["installed"] = sorted(
    p.name for p in install_kernel("org/plain", version=1, **trust).iterdir() if p.suffix == ".py"
)
out["locked"] = get_locked_kernel("org/plain", lockfile=Path("kernels.lock"), **trust).value()
out["loaded"] = sorted((str(k.metadata.name), k.metadata.version, k.metadata.id, k.module.__name__,
    k.repo_info.repo_id, k.repo_info.revision) for k in get_loaded_kernels())
out["local"] = get_local_kernel(Path(LOCAL)).value()
import json
print(json.dumps(out))
"""
# Nobody has signed what the stock client uploads.
ALLOW = "'--trust-remote-code', 'org/top', '--trust-remote-code', 'org/plain'"
NAMES = ", ".join(FUNCTIONS[:-1])
NEEDS = b"import kernels\nplain = kernels.get_kernel_dep('org/plain')\ndef value():\n    return plain.value() + 1\n"


@dataclass(frozen=True)
class World:
    """The hub with its packages; `python` runs the stock client, `folder` is a project, `local` a package."""

    url: str
    python: Path
    folder: Path
    local: Path

    def run(self, python: str | Path, code: str, home: str) -> subprocess.CompletedProcess[str]:
        """Run `code` as a client with a cache of its own, in the project."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_", "PYTHON"))}
        cache = self.folder.parent / home
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "KERNELS_CACHE": str(cache / "cache")}
        if python == sys.executable:
            own["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            [python, "-c", code], env=kept | own, cwd=self.folder, capture_output=True, text=True, timeout=300
        )

    def stock(self, code: str) -> str:
        """What the stock client prints."""
        done = self.run(self.python, code, "stock")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ours(self, code: str) -> str:
        """What this loader prints."""
        done = self.run(sys.executable, code, "ours")
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def world(hub: Hub, stock_python: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    from huggingface_hub import HfApi

    folder = tmp_path_factory.mktemp("drop-in")
    needed = ({"repo-id": "org/plain", "version": 1},)
    both = ("torch-universal", "torch-rocm")  # a machine with CUDA's runtime is no other for either client
    python_package(folder / "plain", value=20, name="plain", variants=both, has_index=False)
    python_package(folder / "rocm", name="rocm", variants=("torch-rocm",), has_index=False)
    write_package(
        folder / "top",
        {"__init__.py": NEEDS},
        kernel_id=unique_id("top"),
        name="top",
        kernel_depends=needed,
        variants=("torch-universal",),
    )
    api = HfApi(endpoint=hub.url, token=hub.token("org"))
    for name in ("plain", "rocm", "top"):
        api.create_repo(f"org/{name}", repo_type="kernel")
        api.create_branch(f"org/{name}", branch="v1", repo_type="kernel")
        api.upload_folder(repo_id=f"org/{name}", repo_type="kernel", folder_path=folder / name, revision="v1")
    python_package(folder / "local", value=7, name="local", variants=("torch-universal",))
    (folder / "project").mkdir()
    (folder / "project/pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/top" = 1\n')
    return World(hub.url, stock_python, folder / "project", folder / "local")


@pytest.mark.slow
def test_every_function_takes_the_arguments_of_the_stock_client(world: World) -> None:
    for name, parameters in json.loads(world.stock(SIGNATURES)).items():
        own = inspect.signature(getattr(hub_loader, name)).parameters
        assert [(p, own[p].kind.name) for p, _ in parameters if p in own] == [tuple(p) for p in parameters], (
            name
        )


@pytest.mark.slow
def test_one_program_gives_the_same_with_either_import(world: World) -> None:
    lock = f"from hub_loader.cli import main; import sys; sys.exit(main(['lock', {ALLOW}, '--stock']))"
    world.ours(lock)
    program = f"LOCAL = {str(world.local)!r}\n{PROGRAM}"
    stock = json.loads(world.stock(f"from kernels import {NAMES}\n{program}"))
    ours = json.loads(world.ours(f"from hub_loader import {NAMES}\n{program}"))
    assert ours == stock
    assert (ours["value"], ours["has"], ours["local"]) == (21, [True, False], 7)


@pytest.mark.slow
def test_lock_file_of_either_is_read_by_the_other_as_documented(world: World) -> None:
    path = world.folder / "kernels.lock"
    read = "from kernels._rust import KernelLocks; print(len(KernelLocks.from_json(open('kernels.lock').read())))"
    code = "from hub_loader.cli import main; import sys; sys.exit(main(['lock', " + ALLOW + "{}]))"
    world.ours(code.format(", '--stock'"))
    assert world.stock(read) == "2\n"
    stock_form = json.loads(path.read_bytes())
    world.ours(code.format(""))
    refused = world.run(world.python, read, "stock")
    assert "unknown field `variants`" in refused.stderr
    rewrite = (
        "from kernels._rust import *; from pathlib import Path\n"
        f"locks = {{KernelDependency(e['dependency']['repo-id'], KernelVersion.Version(e['dependency']['version'])):"
        f" KernelLock(e['lock']['commit']) for e in {stock_form!r}}}\n"
        "Path('kernels.lock').write_text(KernelLocks(locks).to_json())"
    )
    world.stock(rewrite)
    load = (
        "import hub_loader; print(hub_loader.get_locked_kernel('org/top', lockfile='kernels.lock').value())"
    )
    assert world.ours(load) == "21\n"


@pytest.mark.slow
def test_old_layout_loads_with_both(world: World, hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    package = native_package(tmp_path / "old", is_old=True, has_index=False, has_digest=False)
    code = "import sys; print(get_local_kernel(__import__('pathlib').Path(sys.argv[1])).answer())"
    (folder,) = package.variants.values()
    assert (folder / "demo/__init__.py").is_file()
    assert "cp3" in folder.name  # a name that the stock client passes over: it is given the variant itself
    local = code.replace("sys.argv[1]", repr(str(folder)))
    assert world.stock(f"from kernels import get_local_kernel\n{local}") == "42\n"
    api = HfApi(endpoint=hub.url, token=hub.token("org"))
    api.create_repo("org/old", repo_type="kernel")
    api.create_branch("org/old", branch="v1", repo_type="kernel")
    (package.folder / "scratch").rename(tmp_path / "scratch")
    api.upload_folder(repo_id="org/old", repo_type="kernel", folder_path=package.folder, revision="v1")
    assert (
        world.ours(
            "import hub_loader; print(hub_loader.get_kernel('org/old', trust_remote_code=True).answer())"
        )
        == "42\n"
    )
