"""The variants in Triton of the kernel packages: the same functions, the same tests, and machine code for every GPU.

Triton decides when it is imported whether it interprets, so what runs kernels runs in processes of its own.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hub_loader.manifest import parse_index

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "kernels_src"
TWINS = sorted(path.parent for path in KERNELS.glob("*/triton"))
CAPABILITIES = ["80", "86", "89", "90", "100", "120"]

# What only the compiled variants promise: a token's bits in any batch (NumPy multiplies otherwise when the tile has
# other rows), rounding to the nearest bfloat16 (the interpreter cuts it off; GPUs round), and not to multiply by zero
# what a tree hides from one row of a tile.
NOT_HERE = (
    "hides_is_not_read or alone_and_in_any_batch "
    "or ((exact_sum or 16_bit_value or rounded_before or other_half) and bfloat16)"
)
# A part that takes seconds, of every operator, dtype and option.
PART = {
    "paged-attention": "(mixed_step and -0) or an_option_is or (half_precision and sinks) "
    "or (head_size_and_dtype and 36) or written_classic or bad_argument or copy_blocks "
    "or line or (eight_bits and 36) or merge_states or convert_fp8",
    "quantized-matmul": "(each_shape and (2-5 or 2-8)) or bad_argument or any_length or sliced or no_output "
    "or any_order",
    "rmsnorm-rotary": "(of_rows and (7- or 769)) or each_width or views or any_view or bad_argument "
    "or (other_half and 7-) or rounded_before or threshold",
}

twins = pytest.mark.parametrize("package", TWINS, ids=lambda package: package.name)


def run_interpreted(package: Path, select: str) -> str:
    expression = f"triton and ({select}) and not ({NOT_HERE})"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore::RuntimeWarning",
        "-k",
        expression,
        package / "tests",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def build(source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hub_loader", "build", str(source), "--out", str(out)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return out / "build" / "torch-cuda"


def compile_ahead(package: Path, out: Path, capabilities: list[str]) -> list[tuple[str, str]]:
    """(kernel, capability) of each machine code made."""
    folder = build(package / "triton", out / "package")
    script = Path(__file__).with_name("compile_triton_ahead.py")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(out / "cache")}
    command = [sys.executable, str(script), str(folder), *capabilities]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert all(int(size) > 1000 for _, _, size in lines)
    return [(kernel, capability) for kernel, capability, _ in lines]


@pytest.mark.slow
@twins
def test_a_variant_in_triton_interpreted_passes_a_part_of_the_packages_tests(package: Path) -> None:
    assert re.match(r"\d\d+ passed", run_interpreted(package, PART[package.name]))


@pytest.mark.heavy
@twins
def test_a_variant_in_triton_interpreted_passes_the_packages_tests(package: Path) -> None:
    assert re.match(r"\d\d+ passed", run_interpreted(package, "test"))


@pytest.mark.slow
@twins
def test_a_variant_in_triton_compiles_without_a_gpu(package: Path, tmp_path: Path) -> None:
    assert {capability for _, capability in compile_ahead(package, tmp_path, ["90"])} == {"sm_90"}


@pytest.mark.heavy
@twins
def test_a_variant_in_triton_compiles_for_every_capability(package: Path, tmp_path: Path) -> None:
    made = compile_ahead(package, tmp_path, CAPABILITIES)
    kernels = {kernel for kernel, _ in made}
    assert set(made) == {(kernel, f"sm_{capability}") for kernel in kernels for capability in CAPABILITIES}


@twins
def test_a_variant_in_triton_offers_what_the_compiled_variants_offer(package: Path) -> None:
    name = package.name.replace("-", "_")
    ours = package / "triton" / "torch-ext" / name
    assert exported(ours / "__init__.py") == exported(package / "torch-ext" / name / "__init__.py")
    for path in (package / "torch-ext" / name).glob("*.py"):
        copy = "_face.py" if path.name == "__init__.py" else path.name
        assert (ours / copy).read_text() == path.read_text(), copy


@twins
def test_a_variant_in_triton_defines_the_operators_of_the_compiled_variants(package: Path) -> None:
    name = package.name.replace("-", "_")
    binding = (package / "torch-ext" / "torch_binding.cpp").read_text()
    binding = re.sub(
        r"#if defined\(CPU_KERNEL\)\n.*?\n#e", "#e", binding, flags=re.DOTALL
    )  # it is a GPU's twin
    compiled = [
        "".join(re.findall(r'"([^"]*)"', call)) for call in re.findall(r"ops\.def\(([^;]*)\);", binding)
    ]
    tree = ast.parse((package / "triton" / "torch-ext" / name / "_operators.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "register"
    ]
    assert {ast.literal_eval(c.args[0]) + ast.literal_eval(c.args[1]) for c in calls} == set(compiled)


@twins
def test_a_variant_in_triton_imports_the_standard_library_torch_triton_and_itself_only(package: Path) -> None:
    for path in (package / "triton").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            for name in names:
                assert name.split(".")[0] in {"torch", "triton", *sys.stdlib_module_names}, (
                    f"{path} imports {name}"
                )


@pytest.mark.slow
def test_a_variant_in_triton_built_into_a_package_joins_its_variants(tmp_path: Path) -> None:
    package, out = KERNELS / "rmsnorm-rotary", tmp_path / "package"
    command = [
        sys.executable,
        "-m",
        "hub_loader",
        "build",
        str(package),
        "--select",
        "torch-stable-abi*-cpu-x86_64*",
    ]
    subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    build(package / "triton", out)
    index = parse_index((out / "index.json").read_bytes(), origin="index.json")
    assert index.name == package.name
    assert {"torch-cuda", "torch-stable-abi210-cpu-x86_64-linux"} <= index.variants.keys()


def exported(path: Path) -> list[str]:
    """`__all__` of a module, unread by Python."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise AssertionError(f"{path} has no __all__")


@pytest.mark.slow
def test_command_of_the_page_on_checks_runs_the_interpreted_tests() -> None:
    page = (ROOT / "docs" / "kernel-checks.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("TRITON_INTERPRET=1 python"))
    command = line.replace("python ", f"{sys.executable} ", 1) + " --collect-only -q"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_rows.py::test_rms_norm_in_place_is_rms_norm[triton]" in done.stdout
