"""The tree of a repository without an index: what is read from it, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hub_loader.errors import InvalidKernelError
from hub_loader.listing import (
    Listing,
    parse_listed_variant,
    parse_listing,
    parse_status,
    read_tree,
    status_entry,
)
from hub_loader.manifest import BlobEntry, FileEntry

OID, SHA = "a" * 40, "b" * 64


def file(path: str, **changed: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": OID, "size": 3, **changed}


def tree(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "directory", "path": "build/torch-cpu", "oid": OID},
        file("build/torch-cpu/metadata.json"),
        *entries,
    ]


def test_read_tree_takes_large_files_by_sha256_and_small_ones_by_blob_id() -> None:
    lfs = {"oid": SHA, "size": 900, "pointerSize": 130}
    variants = read_tree(
        tree(file("build/torch-cpu/a.so", lfs=lfs, size=900), file("build/torch-cpu/b/c.py")), origin="x"
    )
    assert variants["torch-cpu"].files == {"a.so": FileEntry(SHA, 900), "b/c.py": BlobEntry(OID, 3)}
    assert variants["torch-cpu"].metadata == BlobEntry(OID, 3)
    assert variants["torch-cpu"].size == 906


def test_read_tree_passes_over_what_is_no_variant() -> None:
    others = [
        file("README.md"),
        file("build/notes.txt"),
        file("build/torch-cuda/__init__.py"),  # no metadata.json
        file("build/banana/metadata.json"),
        file("build/torch-cpu/__pycache__/a.cpython-311.pyc"),
        file("elsewhere/torch-cuda/metadata.json"),
    ]
    assert read_tree(tree(*others), origin="x") == read_tree(tree(), origin="x")


@pytest.mark.parametrize(
    "entry",
    [
        file("build/torch-cpu/../../etc/passwd"),
        file("build/torch-cpu//a.py"),
        file("build/torch-cpu/a\nb.py"),
        file("build/torch-cpu/a.py", oid="zz"),
        file("build/torch-cpu/a.py", oid=None),
        file("build/torch-cpu/a.py", size=-1),
        file("build/torch-cpu/a.py", size="3"),
        file("build/torch-cpu/a.py", size=True),
        file("build/torch-cpu/a.py", lfs={"oid": OID, "size": 3}),
        file("build/torch-cpu/a.py", lfs={}),
        {"path": "build/torch-cpu/a.py"},
        "file",
    ],
)
def test_read_tree_of_a_malformed_answer_is_refused(entry: Any) -> None:
    with pytest.raises(InvalidKernelError, match="the tree of org/demo"):
        read_tree(tree(entry), origin="the tree of org/demo")


def test_key_of_a_listing_changes_with_every_path_id_and_size_and_nothing_else() -> None:
    base = read_tree(tree(file("build/torch-cpu/a.py")), origin="x")["torch-cpu"]
    others = [
        tree(),
        tree(file("build/torch-cpu/b.py")),
        tree(file("build/torch-cpu/a.py", oid="c" * 40)),
        tree(file("build/torch-cpu/a.py", size=4)),
        tree(file("build/torch-cpu/a.py", lfs={"oid": SHA, "size": 3})),
    ]
    keys = {read_tree(other, origin="x")["torch-cpu"].key for other in others}
    assert len(keys | {base.key}) == len(others) + 1
    again = [*reversed(tree(file("build/torch-cpu/a.py")))]
    assert read_tree(again, origin="x")["torch-cpu"].key == base.key


def test_listing_then_is_read_back_as_it_was_written() -> None:
    lfs = file("build/torch-cpu/a.so", lfs={"oid": SHA, "size": 3})
    variants = read_tree(tree(lfs), origin="x")
    for moved_to in (None, ("org/other", "main")):
        listing = Listing(variants, moved_to)
        assert parse_listing(listing.to_json(), origin="x") == listing
    one = variants["torch-cpu"]
    assert parse_listed_variant(one.to_json(), origin="x") == one
    for damaged in (
        b"",
        b"[]",
        b'{"variants": {"torch-cpu": {"a": {"oid": "z", "size": 1}}}, "moved_to": null}',
    ):
        with pytest.raises(InvalidKernelError):
            parse_listing(damaged, origin="x")


def test_status_is_found_at_the_root_alone_and_only_a_redirect_is_known() -> None:
    assert status_entry([file("docs/kernel-status.toml"), file("kernel-status.toml")]) == BlobEntry(OID, 3)
    assert status_entry([file("build/kernel-status.toml")]) is None
    status = b'kind = "redirect"\ndestination = "org/new"\nrevision = "v2"\n'
    assert parse_status(status, origin="x") == ("org/new", "v2")
    for other in (b"kind = 1", b'kind = "redirect"', b"[", b'kind = "gone"\ndestination = "a/b"', b"\xff"):
        with pytest.raises(InvalidKernelError):
            parse_status(other, origin="x")
