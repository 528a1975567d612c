"""Integrity: what is loaded is what was published, or nothing is."""

from __future__ import annotations

import importlib.util
import marshal
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import Client, Shelf
from packages import Package

Plain = Callable[..., Package]
GET = "print(client.get_kernel(sys.argv[1], version=1, trust_remote_code=True).value())"

DIGEST = """
from kernels._rust import Digest, Metadata
metadata = Metadata.read_from_file(Path(sys.argv[1]) / "metadata.json")
metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, Path(sys.argv[1])))
print("as published")
"""


def cached(client: Client, name: str) -> Path:
    """The one file of that name in the client's cache, as it is opened: a link is followed."""
    (path,) = client.cache.rglob(name)
    return path.resolve()


def tamper(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["numbers.py", "metadata.json"])
def test_cached_file_when_it_was_changed_is_refused(
    client: Client, shelf: Shelf, plain: Plain, org: str, name: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=20).folder)
    assert client.scenario(GET, f"{org}/demo") == "20"
    path = cached(client, name)
    tamper(path, path.read_bytes().replace(b"20", b"66").replace(b"Apache", b"Apathy"))
    said = client.scenario(GET, f"{org}/demo")
    value = "66" if name == "numbers.py" else "20"
    client.expect(said, ours=rf"IntegrityError: .*{name}.*", peer=value)


def test_cached_init_when_it_was_changed_is_refused(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=20).folder)
    assert client.scenario(GET, f"{org}/demo") == "20"
    inner = next(path for path in client.cache.rglob("demo/__init__.py"))
    path = (inner.parents[1] / "__init__.py").resolve()
    tamper(path, path.read_bytes() + b"print('tampered')\n")
    said = client.scenario(GET, f"{org}/demo")
    client.expect(said, ours=r"IntegrityError: .*__init__\.py.*", peer=r"tampered\n20")


def poison(source: Path, code: str) -> None:
    """Put bytecode of `code` where Python looks for that of `source`, with the mark of a fresh one."""
    stat = source.stat()
    target = Path(importlib.util.cache_from_source(str(source)))
    target.parent.mkdir(exist_ok=True)
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(stat.st_mtime), stat.st_size)
    target.write_bytes(header + marshal.dumps(compile(code, str(source), "exec")))


def test_bytecode_when_it_was_put_beside_a_cached_file_is_not_run(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    shelf.put(f"{org}/demo", plain(value=20).folder)
    assert client.scenario(GET, f"{org}/demo") == "20"
    (source,) = client.cache.rglob("numbers.py")
    os.chmod(source.parent, 0o755)
    poison(source, "VALUE = 66")
    said = client.scenario(GET, f"{org}/demo")
    client.expect(said, ours=r"IntegrityError: .*__pycache__.*", peer="66")


def test_bytecode_in_a_folder_of_ones_own_is_not_run(client: Client, plain: Plain) -> None:
    package = plain(value=20)
    folder = package.variants["torch-universal"]
    poison(folder / "numbers.py", "VALUE = 66")
    if client.kind == "peer":  # its own digest, were it asked, would not see it
        assert client.scenario(DIGEST, folder) == "as published"
    said = client.scenario("print(client.get_local_kernel(Path(sys.argv[1])).value())", package.folder)
    client.expect(said, ours="20", peer="66")


def test_folder_of_ones_own_when_a_file_is_not_what_the_metadata_says_is_refused(
    client: Client, plain: Plain
) -> None:
    package = plain(value=20)
    (package.variants["torch-universal"] / "numbers.py").write_text("VALUE = 66\n")
    said = client.scenario("print(client.get_local_kernel(Path(sys.argv[1])).value())", package.folder)
    client.expect(said, ours=r"IntegrityError: .*numbers\.py.*", peer="66")


def test_published_file_when_it_is_not_what_the_metadata_says_is_refused(
    client: Client, shelf: Shelf, plain: Plain, org: str
) -> None:
    package = plain(value=20)
    (package.variants["torch-universal"] / "numbers.py").write_text("VALUE = 66\n")
    shelf.put(f"{org}/demo", package.folder)
    said = client.scenario(GET, f"{org}/demo")
    client.expect(said, ours=r"(IntegrityError|InvalidKernelError): .*", peer="66")
