"""Who may import whom, as the design draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"hub_loader", "build_matrix", "registry", "engine"}
# folder -> what its modules may import beside the standard library: (at import time, inside functions too)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    # huggingface_hub requires httpx (1.x) or httpx2 (2.x): with it one of them is installed.
    "hub_loader": (set(), {"huggingface_hub", "httpx", "httpx2", "packaging"}),
    "build_matrix": ({"hub_loader", "packaging", "httpx", "elftools", "tqdm", "tomli"}, {"huggingface_hub"}),
    "registry": (
        {
            "hub_loader",
            "alembic",
            "h11",
            "httpx",
            "jinja2",
            "jwt",
            "markdown_it",
            "nh3",
            "obstore",
            "prometheus_client",
            "sqlalchemy",
            "starlette",
            "uvicorn",
            "cryptography",
            "securesystemslib",
            "tuf",
        },
        set(),
    ),
    "engine": (
        {"hub_loader", "torch", "jinja2", "numpy", "safetensors", "tokenizers", "tqdm", "llguidance"},
        {"huggingface_hub"},
    ),
}
# Modules of an optional extra: imported by name, on demand.
EXTRAS = {
    "engine/progress.py": {"tqdm"},
    "engine/bench/gguf_file.py": {"gguf"},
    "engine/bench/peers/llama_cpp.py": {"xllamacpp"},
    "engine/bench/peers/transformers_batch.py": {"transformers"},
    "engine/bench/peers/transformers_generate.py": {"transformers"},
    "engine/bench/peers/vllm.py": {"vllm"},
    "build_matrix/ray_executor.py": {"ray"},
    "build_matrix/targets.py": {"tuf"},
    "engine/quant/gguf_file.py": {"gguf"},
    "hub_loader/commands/completion.py": {"shtab"},
    "hub_loader/toml.py": {"tomli"},
    "hub_loader/trust/bundles.py": {"sigstore"},
    "hub_loader/trust/keys.py": {"cryptography"},
    "hub_loader/trust/tuf_keys.py": {"cryptography", "securesystemslib"},
    "hub_loader/trust/tuf_updater.py": {"tuf"},
    "hub_loader/trust/tuf_client.py": {"tuf"},
    "engine/server/tracing.py": {"opentelemetry"},
    "registry/telemetry/tracing.py": {"opentelemetry"},
}
# The engine's server, extra [serve]; nothing else of the engine knows it.
SERVER = {"h11", "prometheus_client", "pydantic", "starlette", "uvicorn"}
TEMPLATE = ROOT / "build_matrix" / "template"  # what `khub init` copies: a kernel, not a module of ours
MODULES = [
    path
    for folder in ALLOWED
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "train.py" and TEMPLATE not in path.parents
]


def imported(nodes: list[ast.AST]) -> set[str]:
    """Top-level names of the packages that import statements among `nodes` bring in; relative ones aside."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"tomllib"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_the_design_allows(path: Path) -> None:
    at_import, anywhere = ALLOWED[path.relative_to(ROOT).parts[0]]
    if path.name == "load_child.py":  # a program that the load gates run in the interpreter of a torch
        anywhere = anywhere | {"torch"}
    if path.parent == ROOT / "hub_loader" / "layers":  # the layers it replaces are torch's
        anywhere = anywhere | {"torch"}
    if path.name == "ours.py":  # a program of its own, that uses the engine as anybody does
        at_import = at_import | {"engine"}
    tree = ast.parse(path.read_text())
    at_import = at_import | EXTRAS.get(path.relative_to(ROOT).as_posix(), set())
    if ROOT / "engine" / "server" in path.parents:
        at_import = at_import | SERVER
    assert imported(list(tree.body)) <= at_import
    assert imported(list(ast.walk(tree))) <= at_import | anywhere


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda path: path.name)
def test_engine_uses_only_the_public_names_of_the_loader(path: Path) -> None:
    import hub_loader

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hub_loader"):
            assert node.module in ("hub_loader", "hub_loader.errors")
            public = set(hub_loader.__all__) | set(vars(hub_loader.errors))
            assert {alias.name for alias in node.names} <= public


def test_import_hub_loader_imports_neither_torch_nor_huggingface_hub() -> None:
    code = "import sys, hub_loader; print(sorted({'torch', 'huggingface_hub', 'httpx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_hub_loader_imports_nothing_else_and_has_every_name() -> None:
    code = (
        "import sys; before = {*sys.modules}; import hub_loader; print(sorted({*sys.modules} - before)); "
        "print({*hub_loader.__all__} <= {*dir(hub_loader)}, {*hub_loader.__all__} == {*hub_loader._LAZY}); "
        "print(hub_loader.errors.IntegrityError is hub_loader.IntegrityError)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, *checks = done.stdout.splitlines()
    assert set(ast.literal_eval(imported)) <= {"__future__", "hub_loader"}
    assert checks == ["True True", "True"]


def test_import_of_get_kernel_alone_imports_nothing_of_loading() -> None:
    code = "import sys; from hub_loader import get_kernel; print(sorted(n for n in sys.modules if 'hub_loader' in n))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == ["hub_loader", "hub_loader.entry"]


def test_layers_are_imported_on_first_use_and_import_no_torch() -> None:
    code = (
        "import sys, hub_loader; before = 'hub_loader.layers' in sys.modules; "
        "[getattr(hub_loader, name) for name in hub_loader.__all__]; "
        "print(before, 'hub_loader.layers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
