"""Other releases of the stock clients against `khub serve`, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import textwrap
from pathlib import Path

import pytest
from environments import make_environment, pip
from khub_process import Hub, khub
from stalling_relay import StallingRelay

pytestmark = pytest.mark.slow

# What publishers and users do, in the words all these releases understand. argv: repository, type, and the
# address of a relay that stalls the first long answer.
_ROUND_TRIP = """
    import importlib.util, os, sys, tempfile, pathlib
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import RepositoryNotFoundError
    repo, kind, relay = sys.argv[1:]
    same = {"repo_type": kind}
    api = HfApi()

    print(api.create_repo(repo, exist_ok=True, **same))
    api.create_branch(repo, branch="v1", exist_ok=True, **same)
    folder = pathlib.Path(tempfile.mkdtemp())
    content = {"README.md": b"---\\ntags: [kernel]\\n---\\n", "build/torch-cpu/__init__.py": b"x = 1\\n",
               "build/torch-cpu/big.so": os.urandom(12_000_000), "build/torch-cpu/empty": b""}
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    first = api.upload_folder(repo_id=repo, folder_path=folder, revision="v1", **same)
    again = api.upload_folder(repo_id=repo, folder_path=folder, revision="v1", **same)
    assert first.oid == again.oid, (first, again)

    refs = api.list_repo_refs(repo, **same)
    assert {b.name: b.target_commit for b in refs.branches}["v1"] == first.oid
    for asked in ("v1", first.oid):
        cache = tempfile.mkdtemp()
        got = pathlib.Path(snapshot_download(repo, revision=asked, cache_dir=cache, **same))
        assert {str(p.relative_to(got)): p.read_bytes() for p in got.rglob("*") if p.is_file()} == content

    big = hf_hub_download(repo, "build/torch-cpu/big.so", revision="v1", endpoint=relay,
                          cache_dir=tempfile.mkdtemp(), **same)
    assert pathlib.Path(big).read_bytes() == content["build/torch-cpu/big.so"]

    api.delete_file("build/torch-cpu/empty", repo, revision="v1", **same)
    left = [f.path for f in api.list_repo_tree(repo, revision="v1", recursive=True, **same)]
    assert left == sorted({*content, "build", "build/torch-cpu"} - {"build/torch-cpu/empty"}), left
    assert api.list_repo_files(repo, revision="v1", **same) == [p for p in left if "." in p]
    titles = [c.title for c in api.list_repo_commits(repo, revision="v1", **same)]
    assert len(titles) == 3 and titles[-1] == "Create the repository", titles

    api.create_tag(repo, tag="release", revision="v1", **same)
    api.create_branch(repo, branch="old", revision=first.oid, **same)
    refs = api.list_repo_refs(repo, **same)
    assert [b.name for b in refs.branches] == ["main", "old", "v1"] and [t.name for t in refs.tags] == ["release"]
    assert api.repo_info(repo, revision="old", **same).sha == first.oid
    assert api.file_exists(repo, "README.md", revision="release", **same)
    api.delete_branch(repo, branch="old", **same)
    api.delete_tag(repo, tag="release", **same)
    assert not api.revision_exists(repo, "release", **same)

    note = [CommitOperationAdd("note.txt", b"1")]
    change = api.create_commit(repo, note, commit_message="note", create_pr=True, **same)
    assert change.pr_num == 1 and not api.file_exists(repo, "note.txt", **same)
    pulls = api.list_repo_refs(repo, include_pull_requests=True, **same).pull_requests
    assert [(p.ref, p.target_commit) for p in pulls] == [("refs/pr/1", change.oid)]

    api.move_repo(repo, repo + "-renamed", **same)
    assert api.repo_info(repo, revision="v1", **same).id == repo + "-renamed"
    card = hf_hub_download(repo, "README.md", revision="v1", cache_dir=tempfile.mkdtemp(), **same)
    assert pathlib.Path(card).read_bytes() == content["README.md"]
    assert repo + "-renamed" in [m.id for m in api.list_models(author=repo.split("/")[0])]
    api.delete_repo(repo + "-renamed", **same)
    try:
        api.repo_info(repo, **same)
    except RepositoryNotFoundError:
        print("round trip done", "with" if importlib.util.find_spec("hf_xet") else "without", "hf_xet")
"""

# A package as the kernel builder lays it out, for any machine: no binary, only Python.
_PUBLISH = """
    import json, sys, tempfile, pathlib
    from huggingface_hub import HfApi
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
    print("published")
"""

# torch is large: the stock client sees that of this environment, behind its own packages.
_WITH_TORCH = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
_LOAD = """
    from kernels import get_kernel
    repo, trust = sys.argv[1], sys.argv[2] == "trust"
    try:
        kernel = get_kernel(repo, version=1, backend="cpu", trust_remote_code=trust)
    except ValueError as error:
        print("refused:", error)
    else:
        assert kernel.answer() == 42
        print("loaded", kernel.__file__)
"""

_KERNELS = f"{_WITH_TORCH}from kernels.cli import main; main()"  # what the `kernels` command runs


class Client:
    """Programs of an interpreter that has a release of the clients, run in `folder` against a hub."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python

    def run(self, hub: Hub, token: str, *arguments: str) -> str:
        """Run the environment's Python with `arguments`; returns what it printed."""
        settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        settings |= {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": token,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DOWNLOAD_TIMEOUT": "3",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [self.python, *arguments],
            env=settings,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.parametrize(
    ("release", "kind"),
    [
        # These know no kernels: they upload them as models.
        pytest.param("1.10.0", "model", marks=pytest.mark.heavy),
        pytest.param("1.33.0", "model", marks=pytest.mark.heavy),
        ("2.4.0", "kernel"),
    ],
)
def test_round_trip_when_the_client_is_another_release_then_it_works_with_and_without_xet(
    hub: Hub, tmp_path: Path, release: str, kind: str
) -> None:
    python = make_environment(tmp_path / "venv", (f"huggingface_hub=={release}", "hf_xet"))
    client = Client(tmp_path, python)
    token = hub.token("versions")
    for xet in ("with", "without"):
        if xet == "without":
            pip(python, "uninstall", "-y", "hf_xet")
        with StallingRelay(hub.url, after=11_000_000) as relay:
            script = textwrap.dedent(_ROUND_TRIP)
            said = client.run(hub, token, "-c", script, f"versions/hub-{release}-{xet}", kind, relay.url)
        assert f"round trip done {xet} hf_xet" in said
        assert relay.stalled and relay.resumed_at > 0, "the download went on where it was interrupted"


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory, stock_python: Path) -> Client:
    return Client(tmp_path_factory.mktemp("loader"), stock_python)


def test_get_kernel_when_the_publisher_is_not_trusted_then_the_stock_loader_wants_to_be_told(
    hub: Hub, loader: Client
) -> None:
    token = hub.token("versions")
    assert "published" in loader.run(hub, token, "-c", textwrap.dedent(_PUBLISH), "versions/answer")
    load = _WITH_TORCH + textwrap.dedent(_LOAD)
    assert "refused: " in loader.run(hub, token, "-c", load, "versions/answer", "ask")
    assert "loaded " in loader.run(hub, token, "-c", load, "versions/answer", "trust")


def test_lock_and_download_when_the_publisher_is_trusted_then_the_stock_loader_asks_nothing(
    hub: Hub, loader: Client, tmp_path: Path
) -> None:
    token = hub.token("vouched")
    assert khub("registry", "org", "trust", "--data", hub.data, "vouched").returncode == 0
    loader.run(hub, token, "-c", textwrap.dedent(_PUBLISH), "vouched/answer")
    load = _WITH_TORCH + textwrap.dedent(_LOAD)
    assert "loaded " in loader.run(hub, token, "-c", load, "vouched/answer", "ask")

    project = tmp_path / "project"
    project.mkdir()
    wanted = '[tool.kernels.dependencies]\n"vouched/answer" = 1\n'
    (project / "pyproject.toml").write_text(f'[build-system]\nrequires = ["setuptools"]\n{wanted}')
    loader.run(hub, token, "-c", _KERNELS, "lock", str(project))
    (locked,) = json.loads((project / "kernels.lock").read_text())
    assert locked["dependency"]["repo-id"] == "vouched/answer"
    loader.run(hub, token, "-c", _KERNELS, "download", str(project))
