"""`khub publish --source`: what was built from is published beside the variants, and builds where none of them fits."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from khub_process import ROOT, Hub, khub_command, khub_environment

from hub_loader.errors import InvalidKernelError
from hub_loader.source_files import source_digest

TINY = ROOT / "tests" / "build_matrix" / "tiny-relu"
SOURCES = {
    "build.toml",
    "csrc/relu.cpp",
    "csrc/relu.cu",
    "csrc/relu.h",
    "torch-ext/tiny_relu/__init__.py",
    "torch-ext/torch_binding.cpp",
}
# For another processor: no published variant fits this machine, and one can be built.
PUBLISHED = "torch-stable-abi210-cpu-aarch64-linux"
LOAD = """
import json, sys, torch
from hub_loader import get_choices, get_kernel
kernel = get_kernel(sys.argv[1], version=1, allow_build=True, trust_remote_code=True)
assert torch.equal(kernel.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
((commit, choice),) = get_choices()
print(json.dumps([commit, choice.step, choice.variant]))
"""


def run(command: list[str], environment: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel's folder with what lies in one besides source."""
    folder = tmp_path_factory.mktemp("source") / "tiny-relu"
    shutil.copytree(TINY, folder)
    for path in (".git/config", ".env", "dist/old", "build/x", "docs/a.txt", "NOTES.md"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("not to be published")
    return folder


@pytest.fixture(scope="module")
def package(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel for this machine."""
    return build(source, tmp_path_factory.mktemp("package"), "torch-stable-abi210-cpu-x86_64-linux")


def build(source: Path, out: Path, select: str) -> Path:
    run(khub_command("build", source, "--select", select, "--out", out), khub_environment())
    return out


@pytest.fixture
def access(hub: Hub, tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token("author"),
        "HF_HOME": str(tmp_path / "home"),
    }


@pytest.fixture
def repo() -> str:
    return f"author/tiny-relu-{secrets.token_hex(4)}"


def publish(
    package: Path, repo: str, access: dict[str, str], *more: str | Path, code: int = 0
) -> dict[str, object]:
    done = run(khub_command("publish", package, repo, "--json", *more), access, code)
    answer: dict[str, object] = {"error": done.stderr} if code else json.loads(done.stdout)
    return answer


def files(repo: str, access: dict[str, str]) -> set[str]:
    api = HfApi(access["HF_ENDPOINT"], token=access["HF_TOKEN"])
    return set(api.list_repo_files(repo, repo_type="kernel", revision="v1"))


def outside_of_variants(repo: str, access: dict[str, str]) -> set[str]:
    return {path for path in files(repo, access) if not path.startswith("build/")}


ABOUT = {"README.md", "index.json", "provenance.intoto.json", ".gitattributes"}


def test_publish_with_source_uploads_what_was_built_from_and_without_takes_it_away(
    package: Path, source: Path, access: dict[str, str], repo: str
) -> None:
    publish(package, repo, access, "--source", source)
    assert outside_of_variants(repo, access) - ABOUT == SOURCES
    again = publish(package, repo, access, "--source", source)
    assert (again["written"], again["removed"]) == (0, 0)
    api = HfApi(access["HF_ENDPOINT"], token=access["HF_TOKEN"])
    api.create_commit(
        repo,
        [CommitOperationAdd("CHANGES.md", b"by hand")],
        commit_message="by hand",
        repo_type="kernel",
        revision="v1",
    )
    without = publish(package, repo, access)
    assert (without["written"], without["removed"]) == (0, len(SOURCES))
    assert outside_of_variants(repo, access) - ABOUT == {"CHANGES.md"}


def test_publish_when_the_source_has_changed_since_the_build_refuses(
    package: Path, source: Path, access: dict[str, str], repo: str, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    (changed / "csrc" / "relu.h").write_text("// other\n")
    answer = publish(package, repo, access, "--source", changed, code=InvalidKernelError.exit_code)
    assert f"{changed} is not what {package} was built from: build it again" in str(answer["error"])
    (changed / "csrc" / "relu.h").write_bytes((source / "csrc" / "relu.h").read_bytes())
    (changed / "README.md").write_text("what it says has nothing to do with what is built")
    publish(package, repo, access, "--source", changed)


def test_statement_and_metadata_of_a_package_state_the_digest_of_its_source(
    package: Path, source: Path
) -> None:
    digest = {"sha256": source_digest(source)}
    (variant,) = (package / "build").iterdir()
    assert json.loads((variant / "metadata.json").read_text())["provenance"]["sources"] == digest
    statement = json.loads((package / "provenance.intoto.json").read_text())
    depends = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"name": "tiny-relu sources", "digest": digest} in depends


@pytest.mark.slow
@pytest.mark.heavy
def test_published_source_builds_on_a_machine_that_no_variant_fits(
    source: Path, access: dict[str, str], repo: str, tmp_path: Path
) -> None:
    package = build(source, tmp_path / "other", PUBLISHED)
    commit = publish(package, repo, access, "--source", source)["commit"]
    done = run([sys.executable, "-c", LOAD, repo], access)
    assert json.loads(done.stdout) == [commit, "build", "torch-stable-abi210-cpu-x86_64-linux"]
    offline = access | {"HF_HUB_OFFLINE": "1"}
    assert json.loads(run([sys.executable, "-c", LOAD, repo], offline).stdout)[1] == "build"


@pytest.mark.slow
def test_published_source_that_was_swapped_is_not_compiled(
    source: Path, access: dict[str, str], repo: str, tmp_path: Path
) -> None:
    package = build(source, tmp_path / "other", PUBLISHED)
    publish(package, repo, access, "--source", source)
    api = HfApi(access["HF_ENDPOINT"], token=access["HF_TOKEN"])
    operations = [CommitOperationAdd("csrc/relu.h", b"// another author's\n")]
    api.create_commit(repo, operations, commit_message="swap", repo_type="kernel", revision="v1")
    user = access | {"HF_HOME": str(tmp_path / "user")}  # what was published here is remembered here
    done = run([sys.executable, "-c", LOAD, repo], user, code=1)
    assert "IntegrityError" in done.stderr
    assert "is not what the published variants were built from: do not build it" in done.stderr


@pytest.fixture
def published(package: Path, source: Path, access: dict[str, str], repo: str) -> Iterator[str]:
    publish(package, repo, access, "--source", source)
    yield repo


USE = """
import sys, torch
from {module} import get_kernel
kernel = get_kernel(sys.argv[1], version=1, **{options})
assert torch.equal(kernel.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
"""


@pytest.mark.slow
def test_variant_beside_published_source_loads_and_verifies_without_a_file_of_it(
    published: str, access: dict[str, str]
) -> None:
    run(
        [
            sys.executable,
            "-c",
            USE.format(module="hub_loader", options={"trust_remote_code": True}),
            published,
        ],
        access,
    )
    cache = Path(access["HF_HOME"]) / "kernel-hub"
    assert "1 variants looked at" in run(khub_command("verify"), access).stdout
    assert not (cache / "sources").exists()
    assert not list(cache.rglob("build.toml"))


@pytest.mark.heavy
def test_stock_client_loads_the_variant_beside_published_source(
    published: str, access: dict[str, str], stock_torch_python: Path
) -> None:
    del access["PYTHONPATH"]
    code = USE.format(module="kernels", options={"trust_remote_code": True})
    run([str(stock_torch_python), "-c", code, published], access)
