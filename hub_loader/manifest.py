"""The two manifests of a package: `metadata.json` of a variant and `index.json` of a version.

`metadata.json` is the Hugging Face Hub's schema (its digest is base64 SHA-256 for each file). `index.json`
is ours: every variant with the SHA-256 and size of its metadata and files, so one request is enough to
resolve, to know what to fetch, and to prove it. The builder writes both with `to_json`; the loader and the
registry read them with `parse_*`. Parsed once, into frozen records. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from .errors import InvalidKernelError
from .record import NOTHING, Record
from .variant import parse_variant

METADATA_NAME = "metadata.json"
INDEX_NAME = "index.json"
INDEX_SCHEMA = 1

_T = TypeVar("_T")
_HEX = re.compile(r"[0-9a-f]{64}")
_KERNEL_NAME = re.compile(r"[a-z][-a-z0-9]*[a-z0-9]")


class FileEntry(Record):
    """One file of a package: SHA-256 in lower-case hex, size in bytes."""

    sha256: str
    size: int

    algorithm = "sha256"

    @property
    def digest(self) -> str:
        """What `hexdigest()` of `new_hash()` gives once fed the file."""
        return self.sha256

    def new_hash(self) -> hashlib._Hash:
        """A hash to feed the file's bytes."""
        return hashlib.sha256()


class BlobEntry(Record):
    """One file as git lists it: the blob's id (40 lower-case hex digits), size in bytes."""

    oid: str
    size: int

    algorithm = "git blob id"

    @property
    def digest(self) -> str:
        """What `hexdigest()` of `new_hash()` gives once fed the file."""
        return self.oid

    def new_hash(self) -> hashlib._Hash:
        """A hash to feed the file's bytes; git hashes "blob <size>" and a zero byte before them."""
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


Entry = FileEntry | BlobEntry
"""A file's proof: its size, and a digest of its bytes."""


class BackendInfo(Record):
    """Backend name, and for CUDA the compute capabilities compiled in, e.g. ("8.0", "9.0+PTX")."""

    type: str
    archs: tuple[str, ...] = ()


class Metadata(Record):
    """A variant's `metadata.json`.

    `digest` maps each file's path inside the variant folder (all but metadata.json) to its SHA-256 in hex;
    None where an older package has none. `extra` keeps keys this version does not know.
    """

    id: str
    name: str
    version: int
    license: str
    backend: BackendInfo
    digest: Mapping[str, str] | None
    python_depends: tuple[str, ...] = ()
    kernel_depends: tuple[Any, ...] = ()
    upstream: str | None = None
    source: str | None = None
    provenance: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = NOTHING

    @property
    def kernels_minver(self) -> str | None:
        """The oldest release of the Hub's own client that loads the variant; None where it does not say."""
        return self.extra.get("kernels-minver")

    def to_json(self) -> bytes:
        """The file's bytes: sorted keys, two spaces, a final newline; equal values give equal bytes."""
        data: dict[str, Any] = dict(self.extra)
        data |= {"id": self.id, "name": self.name, "version": self.version, "license": self.license}
        data["python-depends"] = list(self.python_depends)
        data["kernel-depends"] = list(self.kernel_depends)
        data["backend"] = {"type": self.backend.type}
        if self.backend.archs:
            data["backend"]["archs"] = list(self.backend.archs)
        for key, value in (
            ("upstream", self.upstream),
            ("source", self.source),
            ("provenance", self.provenance),
        ):
            if value is not None:
                data[key] = value
        if self.digest is not None:
            files = {path: _hex_to_base64(value) for path, value in self.digest.items()}
            data["digest"] = {"algorithm": "sha256", "files": files}
        return _canonical(data)


class IndexedVariant(Record):
    """A variant as `index.json` lists it; `files` holds every file but metadata.json."""

    id: str
    backend: BackendInfo
    metadata: FileEntry
    files: Mapping[str, FileEntry]

    @property
    def key(self) -> str:
        """The digest that pins every byte of the variant: SHA-256 of metadata.json, which digests the rest."""
        return self.metadata.sha256

    @property
    def size(self) -> int:
        """Bytes to fetch for the whole variant."""
        return self.metadata.size + sum(entry.size for entry in self.files.values())

    @property
    def all_files(self) -> dict[str, FileEntry]:
        """Every file of the variant folder, metadata.json included."""
        return {METADATA_NAME: self.metadata, **self.files}


class Index(Record):
    """A version's `index.json`: the kernel's name and version and its variants by name."""

    name: str
    version: int
    variants: Mapping[str, IndexedVariant]

    def to_json(self) -> bytes:
        """The file's bytes: sorted keys, two spaces, a final newline; equal values give equal bytes."""
        variants: dict[str, Any] = {}
        for name, variant in self.variants.items():
            backend: dict[str, Any] = {"type": variant.backend.type}
            if variant.backend.archs:
                backend["archs"] = list(variant.backend.archs)
            variants[name] = {
                "id": variant.id,
                "backend": backend,
                "metadata": {"sha256": variant.metadata.sha256, "size": variant.metadata.size},
                "files": {path: {"sha256": e.sha256, "size": e.size} for path, e in variant.files.items()},
            }
        return _canonical(
            {"schema": INDEX_SCHEMA, "name": self.name, "version": self.version, "variants": variants}
        )


def python_name(kernel_name: str) -> str:
    """The module-name form of a kernel name: paged-attention -> paged_attention."""
    return kernel_name.replace("-", "_")


def check_kernel_name(name: str) -> None:
    """Raise InvalidKernelError unless `name` is a kernel name: lower case, digits and dashes, two or more."""
    if not _KERNEL_NAME.fullmatch(name):
        raise InvalidKernelError(
            f"invalid kernel name {name!r}: use lower-case letters, digits and dashes, a letter first"
        )


def check_id(kernel_id: str, kernel_name: str) -> None:
    """Refuse an id that could shadow a module.

    An id is an identifier that begins with "_" and carries the kernel's name, e.g.
    `_paged_attention_cpu_1a2b3c4` for paged-attention.

    Raises:
        InvalidKernelError: the id is anything else.
    """
    name = python_name(kernel_name)
    if not (kernel_id.isascii() and kernel_id.isidentifier() and kernel_id.startswith(f"_{name}_")):
        raise InvalidKernelError(
            f"package {kernel_name!r} has the id {kernel_id!r}, which could shadow a module: "
            f"an id begins with '_{name}_'; ask the publisher to rebuild it"
        )


def check_path(path: str) -> None:
    """Refuse a path that could leave the variant's folder or smuggle in bytecode.

    Raises:
        InvalidKernelError: absolute, empty, with "..", a backslash, a control character, or Python bytecode.
    """
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidKernelError(
            f"manifest lists the unsafe path {path!r}: paths are relative and stay inside"
        )
    if "__pycache__" in parts or path.endswith((".pyc", ".pyo")):
        raise InvalidKernelError(f"manifest lists the bytecode file {path!r}: packages carry no bytecode")


def parse_metadata(data: bytes, *, origin: str) -> Metadata:
    """Parse a `metadata.json`. `origin` names it in errors.

    Raises:
        InvalidKernelError: not JSON, a key missing or of the wrong type, an unsafe path or id.
    """
    return parsing(origin, lambda: _metadata(json.loads(data)))


def parse_index(data: bytes, *, origin: str) -> Index:
    """Parse an `index.json`. `origin` names it in errors.

    Raises:
        InvalidKernelError: not JSON, a key missing or of the wrong type, a newer schema, an unsafe path
            or id.
    """
    return parsing(origin, lambda: _index(json.loads(data)))


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def parsing(origin: str, parse: Callable[[], _T]) -> _T:
    """What `parse` returns; whatever a malformed document makes it raise becomes an InvalidKernelError."""
    try:
        return parse()
    except InvalidKernelError as error:
        raise InvalidKernelError(f"{origin}: {error}") from None
    except KeyError as error:
        raise InvalidKernelError(f"{origin}: the key {error} is missing") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidKernelError(f"{origin}: {error}") from None


def _metadata(data: Any) -> Metadata:
    data = dict(_typed(data, dict, "metadata"))
    backend = _backend(data.pop("backend"))
    digest = data.pop("digest", None)
    metadata = Metadata(
        id=_typed(data.pop("id"), str, "id"),
        name=_typed(data.pop("name"), str, "name"),
        version=_typed(data.pop("version"), int, "version"),
        license=_typed(data.pop("license", ""), str, "license"),
        backend=backend,
        digest=None if digest is None else _digest(digest),
        python_depends=tuple(_typed(d, str, "python-depends") for d in _list(data, "python-depends")),
        kernel_depends=tuple(_list(data, "kernel-depends")),
        upstream=data.pop("upstream", None),
        source=data.pop("source", None),
        provenance=data.pop("provenance", None),
        extra=data,
    )
    check_kernel_name(metadata.name)
    check_id(metadata.id, metadata.name)
    return metadata


def _digest(data: Any) -> dict[str, str]:
    algorithm = data["algorithm"]
    if algorithm != "sha256":
        raise InvalidKernelError(f"digest algorithm {algorithm!r} is not supported: rebuild with sha256")
    digest = {path: _base64_to_hex(value) for path, value in data["files"].items()}
    _check_tree(digest)
    return digest


def _index(data: Any) -> Index:
    schema = data["schema"]
    if schema != INDEX_SCHEMA:
        raise InvalidKernelError(
            f"schema {schema!r} is not supported, only {INDEX_SCHEMA}: upgrade kernel-hub"
        )
    name = _typed(data["name"], str, "name")
    check_kernel_name(name)
    variants = {}
    for variant_name, value in _typed(data["variants"], dict, "variants").items():
        parse_variant(variant_name)
        kernel_id = _typed(value["id"], str, "id")
        check_id(kernel_id, name)
        files = {path: _file_entry(entry, path) for path, entry in value["files"].items()}
        _check_tree(files)
        metadata = _file_entry(value["metadata"], METADATA_NAME)
        variants[variant_name] = IndexedVariant(kernel_id, _backend(value["backend"]), metadata, files)
    return Index(name, _typed(data["version"], int, "version"), variants)


def _check_tree(paths: Collection[str]) -> None:
    """The paths of a variant's files can all exist side by side, and beside metadata.json."""
    for path in paths:
        check_path(path)
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if (folder := "/".join(folders[:depth])) in paths or folder == METADATA_NAME:
                raise InvalidKernelError(f"manifest lists {folder!r} both as a file and as a folder")
    if METADATA_NAME in paths:
        raise InvalidKernelError(f"manifest lists {METADATA_NAME} among the files it describes")


def _list(data: dict[str, Any], key: str) -> list[Any]:
    return _typed(data.pop(key, []), list, key)


def _backend(data: Any) -> BackendInfo:
    archs = tuple(_typed(arch, str, "archs") for arch in data.get("archs") or ())
    return BackendInfo(_typed(data["type"], str, "backend type"), archs)


def _file_entry(data: Any, path: str) -> FileEntry:
    sha256 = _typed(data["sha256"], str, f"sha256 of {path}")
    size = _typed(data["size"], int, f"size of {path}")
    if not _HEX.fullmatch(sha256) or size < 0:
        raise InvalidKernelError(f"{path!r} has a malformed digest or size")
    return FileEntry(sha256, size)


def _typed(value: Any, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidKernelError(f"{what} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _hex_to_base64(value: str) -> str:
    return base64.b64encode(bytes.fromhex(value)).decode()


def _base64_to_hex(value: str) -> str:
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise InvalidKernelError(f"digest {value!r} is not base64: {error}") from None
    if len(raw) != 32:
        raise InvalidKernelError(f"digest {value!r} is not a SHA-256")
    return raw.hex()


def _canonical(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
