"""A registry with kernels of several organizations and versions, uploaded with the stock client.

The packages are those of `kernels_src/`, Python and cards as published; their libraries are one small real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from khub_process import ROOT, Hub

from build_matrix.card import card
from build_matrix.statement import statement
from hub_loader.manifest import BackendInfo, FileEntry, Index, IndexedVariant, Metadata, sha256_hex
from hub_loader.trust.keys import generate
from hub_loader.trust.sign import sign_index
from hub_loader.variant import parse_variant
from registry.models import Download
from registry.names import RepoName
from registry.store import Store

STABLE = "torch-stable-abi210"
LINUX = tuple(
    f"{STABLE}-{cell}-linux" for cell in ("cpu-x86_64", "cpu-aarch64", "cu130-x86_64", "cu130-aarch64")
)
OLD = tuple(
    f"torch2{minor}-cxx11-{cell}-linux" for minor in (8, 9) for cell in ("cpu-x86_64", "cu128-x86_64")
)
PYBIND = tuple(
    f"cp3{minor}-cpu-{arch}-linux" for minor in (10, 11, 12, 13, 14) for arch in ("x86_64", "aarch64")
)
ARCHS = ("8.0", "9.0", "10.0", "12.0")


@dataclass(frozen=True)
class Seed:
    """A version to publish: the folder of kernels_src it takes its Python from, and its variants."""

    repo: str
    version: int
    face: str
    variants: tuple[str, ...]


SEEDS = (
    Seed("kernel-hub/paged-attention", 1, "paged-attention", LINUX[:2]),
    Seed("kernel-hub/paged-attention", 2, "paged-attention", (*LINUX, f"{STABLE}-cu124-x86_64-linux", *OLD)),
    Seed("kernel-hub/rmsnorm-rotary", 1, "rmsnorm-rotary", LINUX),
    Seed(
        "kernel-hub/quantized-matmul", 1, "quantized-matmul", (*LINUX[:3], "torch213-cxx11-cpu-x86_64-linux")
    ),
    Seed("kernel-hub/batch-planner", 1, "batch-planner", PYBIND),
    Seed("vision-lab/fused-rope", 1, "rmsnorm-rotary", OLD),
    Seed("vision-lab/fused-rope", 2, "rmsnorm-rotary", (*OLD, f"{STABLE}-cu124-x86_64-linux")),
    Seed("vision-lab/triton-norm", 1, "rmsnorm-rotary", ("torch-cuda", "torch-rocm")),
    Seed("speech-team/int4-linear", 3, "quantized-matmul", ("tvm-ffi01-cu130-x86_64-linux", LINUX[0])),
)


def files_of(seed: Seed, folder: Path) -> dict[str, bytes]:
    """The files of a version by path, and the same below `folder`, as `khub build` and `khub publish` make them."""
    name = seed.repo.partition("/")[2]
    python = _python(seed.face)
    files: dict[str, bytes] = {}
    variants: dict[str, IndexedVariant] = {}
    origins: dict[str, Mapping[str, object]] = {}
    for variant in seed.variants:
        parsed = parse_variant(variant)
        backend = BackendInfo(parsed.backend.name, ARCHS if parsed.backend.name == "cuda" else ())
        kernel_id = f"_{name.replace('-', '_')}_{parsed.backend.name}_{sha256_hex(variant.encode())[:10]}"
        inside = dict(python)
        if parsed.platform is not None:
            inside[f"{kernel_id}.abi3.so"] = Path(sys.executable).read_bytes()[: 40_000 + 30 * len(variant)]
        origin = {
            "kernel": {"commit": "5c1add43569c352bd2ae8fd1188f2c8a1be7b167", "dirty": False},
            "kernel-builder": {"version": "0.0.1"},
            "toolchain": {"g++": "12.2.0", "torch-headers": sha256_hex(b"headers"), "nvcc": "13.0.88"},
        }
        digest = {path: sha256_hex(data) for path, data in inside.items()}
        metadata = Metadata(
            id=kernel_id,
            name=name,
            version=seed.version,
            license="Apache-2.0",
            backend=backend,
            digest=digest,
            provenance=origin,
        ).to_json()
        entries = {path: FileEntry(digest[path], len(data)) for path, data in inside.items()}
        variants[variant] = IndexedVariant(
            kernel_id, backend, FileEntry(sha256_hex(metadata), len(metadata)), entries
        )
        origins[variant] = origin
        files |= {
            f"build/{variant}/{path}": data for path, data in {**inside, "metadata.json": metadata}.items()
        }
    index = Index(name, seed.version, variants)
    files["index.json"] = index.to_json()
    files["provenance.intoto.json"] = statement(index, origins)  # type: ignore[arg-type]
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    files["README.md"] = card(folder, index, seed.repo).encode()
    if seed.face in ("paged-attention", "quantized-matmul"):
        files["benchmarks/cpu.json"] = benchmark(seed.face)
    return files


def _python(face: str) -> dict[str, bytes]:
    (init,) = (ROOT / "kernels_src" / face).glob("*-ext/*/__init__.py")
    return {
        path.relative_to(init.parent).as_posix(): path.read_bytes()
        for path in init.parent.rglob("*.py")
        if "__pycache__" not in path.parts
    }


def benchmark(face: str) -> bytes:
    """The results of `make bench` for one kernel, in the format that a repository publishes."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "kernels-cpu.json").read_text())
    names = {"paged-attention": ("attend",), "quantized-matmul": ("matmul",)}[face]
    environment = measured["environment"]
    rows = [
        {
            "case": f"{row['name']}, {row['shape']}, {row['dtype']}",
            "values": {"kernel": row["kernel_us"][0], "torch eager": row["peer_us"][0]},
        }
        for row in measured["results"]
        if row["name"].startswith(names)
    ]
    document = {
        "schema": 1,
        "title": "This kernel and torch eager on a CPU",
        "unit": "µs",
        "lower_is_better": True,
        "environment": {key: str(environment[key]) for key in ("device", "threads", "torch")},
        "series": ["kernel", "torch eager"],
        "results": rows,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def upload(hub: Hub, token: str, repo: str, branch: str, files: Mapping[str, bytes], message: str) -> None:
    """Commit files to a branch, made if it is new, with the stock client."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.url, token=token)
    api.create_repo(repo, repo_type="kernel", exist_ok=True)
    api.create_branch(repo, repo_type="kernel", branch=branch, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(
        repo, repo_type="kernel", revision=branch, operations=operations, commit_message=message
    )


def count_downloads(hub: Hub, repo: str, a_day: int) -> None:
    """Let the last 30 days have about that many downloads a day, fewer on weekends, more towards today."""
    org, _, name = repo.partition("/")
    store = Store(hub.data)
    today = datetime.now(timezone.utc).date()
    repo_id = store.repo(RepoName(org, name)).repo_id
    with store.write() as session:
        for back in range(30):
            day = today - timedelta(days=back)
            count = a_day * (45 - back) * (2 if day.weekday() > 4 else 6 + day.day % 4) // 200
            session.merge(Download(repo_id=repo_id, day=day, count=count))
    store.close()


def seed(hub: Hub, scratch: Path) -> None:
    """Publish SEEDS, downloaded before."""
    tokens: dict[str, str] = {}
    for number, item in enumerate(SEEDS):
        org = item.repo.partition("/")[0]
        token = tokens.setdefault(org, "") or tokens.update({org: hub.token(org)}) or tokens[org]
        files = files_of(item, scratch / str(number))
        if item.repo == "kernel-hub/rmsnorm-rotary":
            built = files.pop("provenance.intoto.json")
            files["index.json.dsse"] = sign_index(
                files["index.json"], item.repo, generate(), signed=1_780_000_000, built=built
            )
        name = item.repo.partition("/")[2]
        upload(hub, token, item.repo, f"v{item.version}", files, f"Publish {name} v{item.version}")
    for number, repo in enumerate(dict.fromkeys(item.repo for item in SEEDS)):
        count_downloads(hub, repo, 240 // (number * number + 1))
