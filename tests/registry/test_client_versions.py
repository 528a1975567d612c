"""Other releases of the stock clients against `khub serve`, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from khub_process import Hub

pytestmark = pytest.mark.slow

# What a publisher and a user do, in the words all these releases understand.
_ROUND_TRIP = """
    import os, sys, tempfile, pathlib
    from huggingface_hub import HfApi, snapshot_download
    repo, kind = sys.argv[1:]
    api = HfApi()
    print(api.create_repo(repo, repo_type=kind, exist_ok=True))
    api.create_branch(repo, branch="v1", repo_type=kind, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp())
    content = {"README.md": b"---\\ntags: [kernel]\\n---\\n", "build/torch-cpu/__init__.py": b"x = 1\\n",
               "build/torch-cpu/big.so": os.urandom(12_000_000), "build/torch-cpu/empty": b""}
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    first = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, revision="v1")
    again = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, revision="v1")
    assert first.oid == again.oid, (first, again)
    refs = api.list_repo_refs(repo, repo_type=kind)
    assert {b.name: b.target_commit for b in refs.branches}["v1"] == first.oid
    for asked in ("v1", first.oid):
        cache = tempfile.mkdtemp()
        got = pathlib.Path(snapshot_download(repo, repo_type=kind, revision=asked, cache_dir=cache))
        assert {str(p.relative_to(got)): p.read_bytes() for p in got.rglob("*") if p.is_file()} == content
    api.delete_file("build/torch-cpu/empty", repo, repo_type=kind, revision="v1")
    left = [f.path for f in api.list_repo_tree(repo, repo_type=kind, revision="v1", recursive=True)]
    assert left == sorted({*content, "build", "build/torch-cpu"} - {"build/torch-cpu/empty"}), left
    print("round trip done")
"""

# A package as the kernel builder lays it out, for any machine: no binary, only Python.
_KERNEL = """
    import json, sys, tempfile, pathlib
    from huggingface_hub import HfApi
    from kernels import get_kernel
    repo = sys.argv[1]
    api = HfApi()
    api.create_repo(repo, repo_type="kernel")
    api.create_branch(repo, branch="v1", repo_type="kernel")
    folder = pathlib.Path(tempfile.mkdtemp())
    variant = folder / "build" / "torch-cpu"
    variant.mkdir(parents=True)
    (variant / "__init__.py").write_text("def answer():\\n    return 42\\n")
    metadata = {"id": "_answer_cpu_0000000", "name": "answer", "version": 1, "license": "Apache-2.0",
                "python-depends": [], "kernel-depends": [], "backend": {"type": "cpu"}}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=folder, revision="v1")
    kernel = get_kernel(repo, version=1, backend="cpu", trust_remote_code=True)
    assert kernel.answer() == 42
    print("loaded", kernel.__file__)
"""


def _run(folder: Path, packages: list[str], script: str, hub: Hub, *arguments: str) -> str:
    """Run `script` with `packages` from PyPI in a new environment below `folder`; returns what it printed."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    # torch is large: the new environment sees this one's, behind its own packages
    site = next((venv / "lib").glob("python3*/site-packages"))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    settings |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token("versions"),
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, "-c", textwrap.dedent(script), *arguments],
        env=settings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("packages", "kind"),
    [
        (["huggingface_hub==1.10.0"], "model"),
        (["huggingface_hub==1.33.0"], "model"),
        (["huggingface_hub==2.4.0"], "kernel"),
    ],
)
def test_round_trip_when_the_client_is_another_release_then_it_works(
    hub: Hub, tmp_path: Path, packages: list[str], kind: str
) -> None:
    repo = f"versions/hub-{packages[0].rpartition('=')[2]}"
    assert "round trip done" in _run(tmp_path, packages, _ROUND_TRIP, hub, repo, kind)


def test_get_kernel_when_the_stock_loader_asks_then_the_package_is_loaded(hub: Hub, tmp_path: Path) -> None:
    packages = ["kernels==0.17.2", "huggingface_hub==2.4.0"]
    assert "loaded" in _run(tmp_path, packages, _KERNEL, hub, "versions/answer")
