"""What the loader's benchmark runs in: the clients' interpreter, the hub, the packages on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _report import ROOT

from hub_loader.manifest import BackendInfo, FileEntry, Index, IndexedVariant, Metadata, sha256_hex
from hub_loader.trust.dsse import ENVELOPE_NAME
from hub_loader.trust.keys import generate, public_of
from hub_loader.trust.sign import sign_index
from hub_loader.trust.trusted import KeyEntry, change_trust

STOCK = "kernels==0.17.2"
ORG = "bench"
VARIANT = "torch-universal"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Exchange:
    """One request as the hub saw it; `start` and `end` in seconds."""

    method: str
    path: str
    start: float
    end: float
    new_connection: bool


@dataclass(frozen=True)
class World:
    """`python` has both clients, `work` is a folder to fill, `url` the hub, which keeps its files in `data`."""

    python: Path
    work: Path
    url: str
    data: Path

    def begin(self, round_trip_s: float, handshake: bool = False) -> None:
        """From now on the hub is so far away; what it was asked before is forgotten."""
        address = f"{self.url}/bench?round_trip_s={round_trip_s}&handshake={handshake:d}"
        urllib.request.urlopen(urllib.request.Request(address, method="POST")).close()

    def exchanges(self) -> list[Exchange]:
        """What the hub was asked since `begin`."""
        with urllib.request.urlopen(f"{self.url}/bench") as answer:
            return [Exchange(**entry) for entry in json.load(answer)]

    def environment(self, home: Path) -> dict[str, str]:
        """Of a client whose cache is in `home`; nothing of this process's own settings."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_", "KHUB_", "PYTHON"))
        }
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "KERNELS_CACHE": str(home / "cache")}
        # Of each client, with what it has proven beside it: a cold call checks the signature.
        trust = home / "trust.json"
        if not trust.exists():
            home.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.trust, trust)
        return kept | own | {"KHUB_TRUST_FILE": str(trust)}

    @property
    def trust(self) -> Path:
        """The trust file: the publisher's key is in it."""
        return self.work / "trust.json"


@contextmanager
def hub(data: Path) -> Iterator[str]:
    """Serve `data` from a process of its own, which ends with the block."""
    command = [sys.executable, ROOT / "benchmarks" / "_slow_hub.py", data]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the hub ended with {process.wait()}")
        yield line.strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def make_python(folder: Path) -> Path:
    """The interpreter of a venv with both clients installed as pip does, and the torch of this interpreter.

    A venv that is there already keeps its stock client and gets today's hub_loader.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", STOCK]
        subprocess.run(pip, check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise SystemExit("torch is not installed here: run it with the Python of `make`")
    (packages / "torch.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    shutil.rmtree(packages / "hub_loader", ignore_errors=True)
    shutil.copytree(
        ROOT / "hub_loader", packages / "hub_loader", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run([python, "-m", "compileall", "-q", packages / "hub_loader"], check=True)
    return python


def build_package(out: Path) -> Path:
    """A kernel of this tree, compiled for this machine's CPU."""
    code = "import sys; from hub_loader.cli import main; sys.exit(main())"
    select = ["--select", "torch-stable-abi210-cpu-x86_64*", "--out", out]
    command = [sys.executable, "-c", code, "build", ROOT / "kernels_src" / "paged-attention", *select]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=sys.stderr)
    return out


def publish(world: World, folder: Path, name: str) -> str:
    """Upload a package as version 1 of bench/NAME with the stock client, and sign it; returns its commit."""
    from huggingface_hub import HfApi

    api, repo = HfApi(endpoint=world.url, token=_token(world)), f"{ORG}/{name}"
    api.create_repo(repo, repo_type="kernel")
    api.create_branch(repo, branch="v1", repo_type="kernel")
    allow = ["index.json", "build/**"]
    api.upload_folder(
        repo_id=repo, repo_type="kernel", folder_path=folder, revision="v1", allow_patterns=allow
    )
    return _sign(world, api, repo, (folder / "index.json").read_bytes())


def _sign(world: World, api: Any, repo: str, index: bytes) -> str:
    """Put a publisher's signature beside index.json, and its key into the trust file; returns the commit."""
    key = generate()
    entry = KeyEntry(world.url, ORG, public_of(key))
    change_trust(lambda trust: trust.add(entry), {"KHUB_TRUST_FILE": str(world.trust)})
    envelope = sign_index(index, repo, key, signed=int(time.time()))
    done = api.upload_file(
        path_or_fileobj=envelope,
        path_in_repo=ENVELOPE_NAME,
        repo_id=repo,
        repo_type="kernel",
        revision="v1",
    )
    return str(done.oid)


def publish_large(world: World, name: str, size: int) -> None:
    """Make bench/NAME, whose variant has a library of `size` random bytes that nothing opens.

    It goes up by LFS and piece by piece: in a commit it would be held in memory as base64.
    """
    path = world.work / f"{name}.so"
    digest, left = hashlib.sha256(), size
    with path.open("wb") as file:
        while left:
            block = os.urandom(min(_BLOCK, left))
            file.write(block)
            digest.update(block)
            left -= len(block)
    large = FileEntry(digest.hexdigest(), size)
    package = world.work / name
    write_package(
        package, {"__init__.py": b"__all__ = []\n"}, f"_{name}_universal_0000001", {"large.so": large}
    )
    publish(world, package, name)
    repo, token = f"{ORG}/{name}", _token(world)
    wanted = {"operation": "upload", "objects": [{"oid": large.sha256, "size": size}]}
    answer = json.loads(
        _post(f"{world.url}/kernels/{repo}.git/info/lfs/objects/batch", json.dumps(wanted).encode(), token)
    )
    (item,) = answer["objects"]
    with path.open("rb") as file:
        headers = {"Content-Length": str(size)}
        request = urllib.request.Request(item["actions"]["upload"]["href"], file, headers, method="PUT")
        urllib.request.urlopen(request).close()
    path.unlink()
    operations = (
        {"key": "header", "value": {"summary": "Add the library", "description": ""}},
        {
            "key": "lfsFile",
            "value": {
                "path": f"build/{VARIANT}/large.so",
                "algo": "sha256",
                "oid": large.sha256,
                "size": size,
            },
        },
    )
    body = "\n".join(map(json.dumps, operations)).encode()
    _post(f"{world.url}/api/kernels/{repo}/commit/v1", body, token, "application/x-ndjson")


def write_package(
    folder: Path, files: dict[str, bytes], kernel_id: str, elsewhere: dict[str, FileEntry]
) -> None:
    """A package of one noarch variant with `files`, and those `elsewhere` that are named and not written."""
    entries = {path: FileEntry(sha256_hex(data), len(data)) for path, data in files.items()} | elsewhere
    backend = BackendInfo("cpu", ())
    metadata = Metadata(
        id=kernel_id,
        name=kernel_id.split("_")[1],
        version=1,
        license="Apache-2.0",
        backend=backend,
        digest={path: entry.sha256 for path, entry in entries.items()},
        python_depends=(),
        kernel_depends=(),
        extra={},
    ).to_json()
    variant = folder / "build" / VARIANT
    variant.mkdir(parents=True)
    for path, data in {**files, "metadata.json": metadata}.items():
        (variant / path).write_bytes(data)
    indexed = IndexedVariant(kernel_id, backend, FileEntry(sha256_hex(metadata), len(metadata)), entries)
    index = Index(kernel_id.split("_")[1], 1, {VARIANT: indexed})
    (folder / "index.json").write_bytes(index.to_json())


def _token(world: World) -> str:
    """A token to upload with. By the command: beside this file lies another registry.py."""
    khub = [sys.executable, "-c", "import sys; from hub_loader.cli import main; sys.exit(main())"]
    command = [*khub, "registry", "token", "create", "--data", world.data, "--org", ORG, "--write"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def _post(url: str, body: bytes, token: str, content_type: str = "application/json") -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return answer.read()
