"""metadata.json and index.json: the bytes are fixed by golden files, malformed input names its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import InvalidKernelError
from hub_loader.manifest import (
    BackendInfo,
    FileEntry,
    Index,
    IndexedVariant,
    Metadata,
    check_id,
    check_path,
    parse_index,
    parse_metadata,
    python_name,
    sha256_hex,
)

GOLDEN = Path(__file__).parent / "golden"
METADATA = Metadata(
    id="_demo_cuda_1a2b3c4",
    name="demo",
    version=3,
    license="Apache-2.0",
    backend=BackendInfo("cuda", ("8.0", "9.0+PTX")),
    digest={"__init__.py": sha256_hex(b""), "demo/__init__.py": sha256_hex(b"abc")},
    python_depends=("einops",),
    extra={"unknown-to-us": True},
)
INDEX = Index(
    name="demo",
    version=3,
    variants={
        "torch-cuda": IndexedVariant(
            id="_demo_cuda_1a2b3c4",
            backend=BackendInfo("cuda", ("9.0",)),
            metadata=FileEntry(sha256_hex(b"abc"), 3),
            files={"__init__.py": FileEntry(sha256_hex(b""), 0)},
        )
    },
)


def test_metadata_then_writes_and_reads_the_golden_file() -> None:
    golden = (GOLDEN / "metadata.json").read_bytes()
    assert METADATA.to_json() == golden
    assert parse_metadata(golden, origin="golden") == METADATA


def test_index_then_writes_and_reads_the_golden_file() -> None:
    golden = (GOLDEN / "index.json").read_bytes()
    assert INDEX.to_json() == golden
    assert parse_index(golden, origin="golden") == INDEX


def test_indexed_variant_then_counts_metadata_among_its_files() -> None:
    variant = INDEX.variants["torch-cuda"]
    assert variant.size == 3
    assert list(variant.all_files) == ["metadata.json", "__init__.py"]


def test_parse_metadata_when_an_older_package_has_no_digest_then_digest_is_none() -> None:
    data = json.loads(METADATA.to_json())
    del data["digest"]
    assert parse_metadata(json.dumps(data).encode(), origin="x").digest is None


def _changed(data: bytes, keys: str, value: Any) -> bytes:
    """`data` with the value at a/b/c replaced; deleted if None."""
    document = json.loads(data)
    *path, last = keys.split("/")
    target = document
    for key in path:
        target = target[key]
    target[last] = value
    if value is None:
        del target[last]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("id", None, "the key 'id' is missing"),
        ("id", "json", "could shadow a module"),
        ("version", "3", "version must be of type int, not str"),
        ("version", True, "version must be of type int, not bool"),
        ("name", "De mo", "invalid kernel name 'De mo'"),
        ("python-depends", "einops", "python-depends must be of type list, not str"),
        ("backend", {"type": "cuda", "archs": [9.0]}, "archs must be of type str, not float"),
        ("digest/algorithm", "md5", "digest algorithm 'md5' is not supported"),
        ("digest/files", {"a.py": "not base64!"}, "is not base64"),
        ("digest/files", {"a.py": "YWJj"}, "is not a SHA-256"),
        ("digest/files", {"../a.py": "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="}, "unsafe path"),
    ],
)
def test_parse_metadata_when_malformed_then_names_file_and_place(keys: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidKernelError) as caught:
        parse_metadata(_changed(METADATA.to_json(), keys, value), origin="here/metadata.json")
    assert str(caught.value).startswith("here/metadata.json: ")
    assert message in str(caught.value)


ENTRY = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("schema", 2, "upgrade kernel-hub"),
        ("variants", [], "variants must be of type dict, not list"),
        ("variants/cuda", {}, "'cuda': unknown framework"),
        ("variants/torch-cuda/id", "_other_1", "could shadow a module"),
        ("variants/torch-cuda/files", {"a": {"sha256": "F" * 64, "size": 1}}, "malformed digest or size"),
        ("variants/torch-cuda/files", {"a": {"sha256": "0" * 64, "size": -1}}, "malformed digest or size"),
        ("variants/torch-cuda/files", {"metadata.json": ENTRY}, "among the files it describes"),
        ("variants/torch-cuda/files", {"a": ENTRY, "a/b": ENTRY}, "'a' both as a file and as a folder"),
        ("variants/torch-cuda/files", {"metadata.json/b": ENTRY}, "both as a file and as a folder"),
        ("variants/torch-cuda/files", {"\ud800": ENTRY}, "unsafe path"),
    ],
)
def test_parse_index_when_malformed_then_names_file_and_place(keys: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidKernelError) as caught:
        parse_index(_changed(INDEX.to_json(), keys, value), origin="here/index.json")
    assert str(caught.value).startswith("here/index.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_parse_when_not_a_json_object_then_invalid_kernel(data: bytes) -> None:
    for parse in (parse_index, parse_metadata):
        with pytest.raises(InvalidKernelError, match=r"^here: "):
            parse(data, origin="here")


@pytest.mark.parametrize(
    "kernel_id", ["json", "torch", "demo", "_demo", "_demo-x", "_demoo_1", "__demo_1", "_démo_1", ""]
)
def test_check_id_when_it_could_shadow_a_module_then_refuses(kernel_id: str) -> None:
    with pytest.raises(InvalidKernelError, match="could shadow a module"):
        check_id(kernel_id, "demo")


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "a//b", "./a", "a/../b", "a\\b", "a\0b", "a\nb", "a/__pycache__/b.py", "a.pyc"],
)
def test_check_path_when_unsafe_then_refuses(path: str) -> None:
    with pytest.raises(InvalidKernelError, match="manifest lists the"):
        check_path(path)


_hex = st.binary(min_size=32, max_size=32).map(bytes.hex)
_paths = st.text(st.sampled_from("abc_é"), min_size=1, max_size=6).map("{}.py".format)
_backends = st.builds(BackendInfo, st.sampled_from(["cpu", "cuda"]), st.sampled_from([(), ("8.0", "9.0a")]))
_entries = st.builds(FileEntry, _hex, st.integers(0, 2**40))


@given(
    st.builds(
        Metadata,
        id=st.just("_demo_1"),
        name=st.just("demo"),
        version=st.integers(0, 10**6),
        license=st.text(),
        backend=_backends,
        digest=st.none() | st.dictionaries(_paths, _hex),
        python_depends=st.lists(st.text()).map(tuple),
        upstream=st.none() | st.text(),
    )
)
def test_metadata_when_written_and_parsed_then_is_the_same(metadata: Metadata) -> None:
    assert parse_metadata(metadata.to_json(), origin="x") == metadata


@given(
    st.builds(
        Index,
        name=st.just("demo"),
        version=st.integers(0, 10**6),
        variants=st.dictionaries(
            st.sampled_from(["torch-cpu", "torch-cuda"]),
            st.builds(
                IndexedVariant, st.just("_demo_1"), _backends, _entries, st.dictionaries(_paths, _entries)
            ),
        ),
    )
)
def test_index_when_written_and_parsed_then_is_the_same(index: Index) -> None:
    assert parse_index(index.to_json(), origin="x") == index


def test_metadata_that_says_where_it_comes_from_says_so_again() -> None:
    whole = replace(METADATA, source="https://example.com/kernel", provenance={"commit": "1a2b3c4"})
    document = json.loads(whole.to_json())
    assert (document["source"], document["provenance"]) == (whole.source, whole.provenance)
    assert parse_metadata(whole.to_json(), origin="x") == whole


def test_metadata_may_leave_licence_and_dependencies_out() -> None:
    document = json.loads(METADATA.to_json())
    del document["license"], document["python-depends"]
    short = parse_metadata(json.dumps(document).encode(), origin="x")
    assert (short.license, short.python_depends) == ("", ())


def test_text_is_written_as_it_is_and_a_digest_read_as_it_was_written() -> None:
    assert "Grüße".encode() in replace(METADATA, extra={"note": "Grüße"}).to_json()
    golden = json.loads(METADATA.to_json())["digest"]["files"]["__init__.py"]
    broken = _changed(METADATA.to_json(), "digest/files", {"__init__.py": golden[:8] + "\n" + golden[8:]})
    with pytest.raises(InvalidKernelError, match="is not base64"):
        parse_metadata(broken, origin="x")


def test_name_of_a_kernel_as_a_module_has_no_hyphen() -> None:
    assert python_name("paged-attention-v2") == "paged_attention_v2"


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        ("id", 1, "id must be"),
        ("name", 1, "name must be"),
        ("license", 1, "license must be"),
        ("python-depends", [1], "python-depends must be"),
        ("backend", {"type": 1}, "backend type must be"),
    ],
)
def test_metadata_of_the_wrong_type_is_called_by_its_key(keys: str, value: Any, what: str) -> None:
    with pytest.raises(InvalidKernelError, match=f": {what} of type|^{what} of type"):
        parse_metadata(_changed(METADATA.to_json(), keys, value), origin="x")


@pytest.mark.parametrize("path", ["demo/a.pyc", "demo/a.pyo"])
def test_bytecode_is_refused_under_both_of_its_names(path: str) -> None:
    with pytest.raises(InvalidKernelError):
        check_path(path)
