"""`khub publish` against the real registry, and the card it writes."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, hf_hub_download
from khub_process import Hub, khub_command, khub_environment

from build_matrix.card import CARD_NAME, card, read_api
from hub_loader.config import CACHE_NAME
from hub_loader.errors import AuthenticationError, InvalidKernelError
from hub_loader.manifest import parse_index
from hub_loader.store import Store

TINY = Path(__file__).with_name("tiny-relu")
STABLE, EXACT = "torch-stable-abi210-cpu-x86_64-linux", "torch213-cxx11-cpu-x86_64-linux"


def khub(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = khub_command(*map(str, arguments))
    done = subprocess.run(
        command, env=khub_environment() | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def package(tmp_path: Path) -> Path:
    khub(
        "build",
        TINY,
        "--select",
        "{torch-stable-abi210,torch213-cxx11}-cpu-x86_64-*",
        "--out",
        tmp_path / "package",
    )
    return tmp_path / "package"


@pytest.fixture
def access(hub: Hub, tmp_path: Path) -> dict[str, str]:
    home = str(tmp_path / "home")
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token("author"), "HF_HOME": home, "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def repo() -> str:
    return f"author/tiny-relu-{secrets.token_hex(4)}"


def test_publish_again_writes_nothing_and_makes_no_commit(
    package: Path, access: dict[str, str], repo: str
) -> None:
    first = json.loads(khub("publish", package, repo, "--json", **access).stdout)
    assert (first["branch"], first["removed"]) == ("v1", 0)
    assert sorted(first["variants"]) == [STABLE, EXACT]
    again = json.loads(khub("publish", package, repo, "--json", **access).stdout)
    assert (again["written"], again["removed"], again["commit"]) == (0, 0, first["commit"])
    assert "no change" in khub("publish", package, repo, **access).stdout


def test_publish_of_a_package_with_one_variant_less_writes_what_changed_and_removes_the_rest(
    package: Path, access: dict[str, str], repo: str, tmp_path: Path
) -> None:
    first = json.loads(khub("publish", package, repo, "--json", **access).stdout)
    fewer = tmp_path / "fewer"
    khub("build", TINY, "--select", STABLE, "--out", fewer)
    second = json.loads(khub("publish", fewer, repo, "--json", **access).stdout)
    index = parse_index((package / "index.json").read_bytes(), origin="index.json")
    assert second["written"] == 3  # the index, its statement and the card
    assert second["removed"] == len(index.variants[EXACT].all_files)
    assert second["commit"] != first["commit"]
    api = HfApi(endpoint=access["HF_ENDPOINT"], token=access["HF_TOKEN"])
    there = api.list_repo_files(repo, repo_type="kernel", revision="v1")
    assert not any(EXACT in path for path in there)
    # What this machine published is what it loads next, without waiting for what it knew to grow old.
    known = Store(Path(access["HF_HOME"]) / CACHE_NAME).refs(access["HF_ENDPOINT"], repo)
    assert known.refs["v1"].commit == second["commit"]


def test_publish_puts_the_card_beside_the_variants(
    package: Path, access: dict[str, str], repo: str, tmp_path: Path
) -> None:
    khub("publish", package, repo, **access)
    path = hf_hub_download(
        repo, CARD_NAME, repo_type="kernel", revision="v1", endpoint=access["HF_ENDPOINT"], cache_dir=tmp_path
    )
    index = parse_index((package / "index.json").read_bytes(), origin="index.json")
    assert Path(path).read_text() == card(package, index, repo)


def test_publish_of_a_package_that_was_changed_after_the_build_is_refused(
    package: Path, access: dict[str, str], repo: str
) -> None:
    (package / "build" / STABLE / "__init__.py").write_text("import os\n")
    done = khub("publish", package, repo, code=InvalidKernelError.exit_code, **access)
    assert f"{STABLE}/__init__.py is not what index.json lists" in done.stderr


def test_publish_with_a_token_of_another_organization_says_so(
    package: Path, access: dict[str, str], hub: Hub
) -> None:
    stranger = access | {"HF_TOKEN": hub.token("stranger")}
    done = khub("publish", package, "author/tiny-relu", code=AuthenticationError.exit_code, **stranger)
    assert "HF_TOKEN" in done.stderr


def test_card_states_licence_use_api_variants_and_provenance(package: Path) -> None:
    index = parse_index((package / "index.json").read_bytes(), origin="index.json")
    text = card(package, index, "author/tiny-relu")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"license": "apache-2.0", "tags": ["kernel"]}
    assert 'tiny_relu = get_kernel("author/tiny-relu", version=1)' in text
    assert "```python\nrelu(" in text
    for name, variant in index.variants.items():
        assert f"| `{name}` | - | {variant.size / 1024:.0f} KiB |" in text
        assert f"| `{name}` | `{variant.id}` |" in text
    assert text == card(package, index, "author/tiny-relu")


def test_read_api_gives_signatures_without_importing(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text(
        '"""What it\nis for.\n\nMore."""\n'
        "raise SystemExit('imported')\n"
        "from . import layers\n"
        "from .inner import _scale as scale\n"
        "from .missing import gone\n"
        "__all__ = ['add', 'wide', 'layers', 'scale', 'Layer', 'gone']\n"
        "def add(x: int, /, y: int = 1, *rest, z=2, **more) -> int:\n    '''Adds.\n\n    Twice.'''\n"
        f"def wide({', '.join(f'argument{i}: float' for i in range(6))}, *, last: int = 3): ...\n"
        "class Layer(Base):\n    '''A layer.'''\n"
        "def _hidden(): ...\n"
    )
    (tmp_path / "layers.py").write_text("'''Layers that swap in.'''\n")
    (tmp_path / "inner.py").write_text("def _scale(x): 'Scales.'\n")
    api = read_api(tmp_path)
    assert api.summary == "What it is for."
    found = {entry.signature: entry.summary for entry in api.entries}
    wide = (
        "wide(\n" + "".join(f"    argument{i}: float,\n" for i in range(6)) + "    *,\n    last: int = 3,\n)"
    )
    assert found == {
        "add(x: int, /, y: int=1, *rest, z=2, **more) -> int": "Adds.",
        wide: "",
        "layers": "Layers that swap in.",
        "scale(x)": "Scales.",
        "class Layer(Base)": "A layer.",
        "gone": "",
    }


def test_read_api_of_a_face_that_is_not_python_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("def (:\n")
    with pytest.raises(InvalidKernelError, match=r"__init__\.py cannot be read"):
        read_api(tmp_path)
