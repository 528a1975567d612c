"""The `kernel` fixture: the package a test file lies in, as a user gets it, and in three shapes a user does not.

- "cpu": built by `khub build`, loaded by `get_local_kernel`. `KHUB_KERNEL_BUILD` names a folder of packages
  (`<folder>/<package>/index.json`) to test instead of building them here.
- "cuda": the same on a GPU, where there is one; every tensor of a test is made on it.
- "cpu-baseline": compiled here without the paths for newer instruction sets.
- "cpu-wide": the code for AVX-512's 16 lanes, compiled here for AVX2 where the processor has no more; of packages that
  have such code.
- "cpu-amx": the code for AMX-INT8 and AVX-512 VNNI, on the emulator in tests/amx_emulator; only for tests that name it.
- "cuda-emulated": the CUDA source compiled for the host, on the emulator in tests/cuda_emulator.
- "triton": the Python-only variant, on a GPU; under TRITON_INTERPRET=1, which no other kind runs under, interpreted on
  the CPU. Packages that have no such variant skip it.
"""

import functools
import hashlib
import importlib.util
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from filelock import FileLock
from hub_loader import get_local_kernel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WIDE = "KHUB_EMULATE_AVX512"
EMULATOR = Path(__file__).resolve().parent.parent / "tests" / "cuda_emulator"
AMX_EMULATOR = EMULATOR.parent / "amx_emulator"
KINDS = ["cpu", "cuda-emulated"]
KINDS[1:1] = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cpu-baseline", "cpu-wide")]
# Every kind but the GPU's compiled with g++'s sanitizers, whose run-time the process must have been started with.
SANITIZED = os.environ.get("KHUB_SANITIZE") == "1"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    KINDS = ["triton"]
elif torch.cuda.is_available() and not SANITIZED:
    KINDS += ["cuda", "triton"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without code for 16 lanes "cpu-wide" would be "cpu" once more."""
    kept, dropped = [], []
    for item in items:
        params = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        wide = params.get("kernel") == "cpu-wide"
        (dropped if wide and not has_wide_code(item.path.parent.parent) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@functools.cache
def has_wide_code(package: Path) -> bool:
    return any(WIDE in path.read_text() for path in (package / "csrc").rglob("*.cpp"))


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Fresh inputs in every run; a failed test shows the seed, and KHUB_TEST_SEED brings it back."""
    seed = int(os.environ.get("KHUB_TEST_SEED", secrets.randbits(31)))
    print(f"KHUB_TEST_SEED={seed}")
    torch.manual_seed(seed)
    return seed


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config):
    """Builds and loads a package once: (its folder, a kind as above) -> module."""
    loaded: dict[tuple[Path, str], ModuleType] = {}
    cache = Path(pytestconfig.cache.mkdir("kernels"))

    def build(source: Path, kind: str) -> ModuleType:
        if (source, kind) not in loaded:
            if kind == "triton":
                package = built_twin(source, tmp_path_factory.mktemp("package"))
                # The loader offers CUDA variants on machines with a GPU alone.
                loaded[source, kind] = (
                    import_package(package / "build" / "torch-cuda")
                    if INTERPRETED
                    else get_local_kernel(package, backend="cuda")
                )
            elif kind in ("cpu", "cuda") and not SANITIZED:
                package = built_package(source, kind, tmp_path_factory.mktemp("package"))
                loaded[source, kind] = get_local_kernel(package, backend=kind)
            else:
                # One process at a time compiles, where several run tests; the others find its folder.
                with FileLock(cache / f"{source.name}-{kind}.lock"):
                    folder = compile_package(source, kind, cache)
                loaded[source, kind] = import_package(folder)
        return loaded[source, kind]

    return build


@pytest.fixture(scope="module", params=KINDS)
def kernel(request: pytest.FixtureRequest, builds) -> Iterator[ModuleType]:
    """The module under test, of each kind in turn."""
    on_gpu = request.param == "cuda" or (request.param == "triton" and not INTERPRETED)
    with torch.device("cuda" if on_gpu else "cpu"):
        yield builds(request.path.parent.parent, request.param)


@pytest.fixture(scope="module")
def cpu_kernel(request: pytest.FixtureRequest, builds) -> ModuleType:
    """The CPU build alone, for what would take the emulator too long or is promised for the CPU only."""
    return builds(request.path.parent.parent, "cpu")


def built_package(source: Path, kind: str, out: Path) -> Path:
    """The package of a kernel: the one KHUB_KERNEL_BUILD holds, else built into `out`."""
    given = os.environ.get("KHUB_KERNEL_BUILD")
    if given:
        return Path(given) / source.name
    select = "torch-stable-abi*-cpu-x86_64-*" if kind == "cpu" else "torch-stable-abi*-cu130-x86_64-*"
    run([sys.executable, "-m", "hub_loader", "build", str(source), "--select", select, "--out", str(out)])
    return out


def built_twin(source: Path, out: Path) -> Path:
    """The package with the Python-only variant alone, built into `out`."""
    if not (source / "triton").is_dir():
        pytest.skip(f"{source.name} has no variant in Triton")
    run([sys.executable, "-m", "hub_loader", "build", str(source / "triton"), "--out", str(out)])
    return out


def compile_package(package: Path, kind: str, cache: Path) -> Path:
    """Compiles one backend of a package into a folder named by its sources' digest. Returns the folder."""
    backend, _, special = kind.partition("-")
    config = tomllib.loads((package / "build.toml").read_text())
    name = config["general"]["name"].replace("-", "_")
    sections = [s for s in config["kernel"].values() if s["backend"] == backend]
    emulated = special == "emulated"
    inputs = [
        p
        for root in (package / "csrc", package / "torch-ext", EMULATOR, AMX_EMULATOR)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    ]
    digest = hashlib.sha256(torch.__version__.encode() + (package / "build.toml").read_bytes())
    digest.update(Path(__file__).read_bytes() + bytes([SANITIZED]))
    for path in inputs:
        digest.update(path.name.encode() + path.read_bytes())
    op_id = f"_{name}_{kind.replace('-', '_')}_{digest.hexdigest()[:12]}"
    folder = cache / op_id
    if folder.exists():
        return folder

    torch_root = Path(torch.__file__).parent
    common = ["g++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    common += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-DTORCH_EXTENSION_NAME={op_id}"]
    common += [f"-D{backend.upper()}_KERNEL", "-O1", *(["-DUSE_CUDA"] if emulated else [])]
    if not SANITIZED:
        # Fuses multiply and add where a file's flags allow it, as the build does: bits are compared with that. The rest
        # of -O3 takes longer than it saves here.
        common.append("-fexpensive-optimizations")
    if special == "baseline":
        common.append("-DKHUB_BASELINE")
    if special == "wide":
        common.append(f"-D{WIDE}")
    if special == "amx":
        common += ["-DKHUB_EMULATE_AMX", "-I", str(AMX_EMULATOR)]
    if SANITIZED:
        # The optimizer sees through less of checked code, and warns of what it then cannot rule out.
        common.remove("-Werror")
        common += ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    includes = ["-I", str(EMULATOR)] if emulated else ["-idirafter", str(EMULATOR)]
    includes += ["-isystem", str(torch_root / "include"), "-isystem", sysconfig.get_paths()["include"]]
    jobs = [(src, []) for src in config["torch"]["src"]]
    jobs += [(src, section.get("cxx-flags", [])) for section in sections for src in section["src"]]
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        work = Path(scratch) / "build"
        work.mkdir()

        def compile_one(job: tuple[str, list[str]]) -> str:
            source, flags = job
            target = str(work / (source.replace("/", "_") + ".o"))
            # What only checks arguments, and what this kind never runs, is compiled sooner than it is made fast.
            stem = Path(source).stem
            unused = {"wide": "_baseline", "amx": ("_baseline", "_avx2")}.get(special, ())
            if stem == "torch_binding" or stem.endswith(unused):
                flags = [*flags, "-O0"]
            if special == "amx" and stem.endswith("_avx2"):
                flags = [*flags, "-DKHUB_BASELINE"]
            run([*common, *flags, *includes, "-c", "-x", "c++", str(package / source), "-o", target])
            return target

        sources = [job for job in jobs if job[0].endswith((".cpp", ".cu"))]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        libraries = ["-L", str(torch_root / "lib"), "-ltorch_cpu", "-lc10"]
        checks = ["-fsanitize=address,undefined"] if SANITIZED else []
        run(["g++", "-shared", *checks, *objects, *libraries, "-o", str(work / f"{op_id}.abi3.so")])
        for path in objects:
            Path(path).unlink()
        for path in (package / "torch-ext" / name).glob("*.py"):
            (work / path.name).write_bytes(path.read_bytes())
        (work / "_ops.py").write_text(
            f"import torch\nfrom . import {op_id}\nops = torch.ops.{op_id}\n"
            f'def add_op_namespace_prefix(op_name: str) -> str:\n    return f"{op_id}::{{op_name}}"\n'
        )
        work.rename(folder)
    return folder


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def import_package(folder: Path) -> ModuleType:
    name = "kernel_under_test_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
