"""Commits and trees: the ids are git's own, and operations do what they say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import RequestError
from registry.names import check_org, check_path, check_ref_name
from registry.tree import Add, Delete, File, apply, blob_oid, commit_oid, entries, lfs_file, lfs_pointer

_PARTS = st.sampled_from(["a", "b", "build", "torch-cpu", "x.py", "x", "x-y", "é", "0"])
_PATHS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)


def _file(content: bytes) -> File:
    return File(blob_oid(content), "0" * 64, len(content))


@st.composite
def _snapshots(draw: st.DrawFn) -> dict[str, File]:
    """Files at paths of which none is another's folder."""
    contents = draw(st.dictionaries(_PATHS, st.binary(max_size=3), max_size=8))
    kept: dict[str, File] = {}
    for path in sorted(contents):
        if not any(path.startswith(other + "/") for other in kept):
            kept[path] = _file(contents[path])
    return kept


def _git(*arguments: str, cwd: Path, stdin: bytes | None = None) -> str:
    who = {f"GIT_{role}_{key}": "acme" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": "1700000000 +0000" for role in ("AUTHOR", "COMMITTER")}
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        input=stdin,
        env=os.environ | who | when,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def test_ids_when_git_makes_the_same_commit_then_they_are_equal(tmp_path: Path) -> None:
    contents = {
        "README.md": b"hello\n",
        "build/torch-cpu/__init__.py": b"",
        "build/torch-cpu.txt": b"sorts before the folder",
        "build/torch-cpu/ops/ü.py": b"x = 1\n",
        "a": b"\0\1\2",
    }
    _git("init", "-q", cwd=tmp_path)
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    _git("add", "-A", cwd=tmp_path)
    tree = _git("write-tree", cwd=tmp_path)
    first = _git("commit-tree", tree, cwd=tmp_path, stdin=b"first\n")
    second = _git("commit-tree", tree, "-p", first, cwd=tmp_path, stdin=b"title\n\nbody\n")

    root, listed = entries({path: _file(content) for path, content in contents.items()})

    assert root == tree
    of_git = _git("-c", "core.quotePath=false", "ls-tree", "-rt", tree, cwd=tmp_path).splitlines()
    assert {(e.path, e.oid) for e in listed} == {(line.split("\t")[1], line.split()[2]) for line in of_git}
    assert commit_oid(tree, None, "acme", 1700000000, "first") == first
    assert commit_oid(tree, first, "acme", 1700000000, "title\n\nbody") == second


def test_tree_when_empty_then_it_is_gits_empty_tree() -> None:
    assert entries({}) == ("4b825dc642cb6eb9a060e54bf8d69288fbee4904", [])


@given(_snapshots())
def test_entries_when_listed_then_files_and_their_folders_are_there_once_in_order(
    snapshot: dict[str, File],
) -> None:
    _, listed = entries(snapshot)
    paths = [entry.path for entry in listed]
    folders = {path.rsplit("/", n)[0] for path in snapshot for n in range(1, path.count("/") + 1)}
    assert paths == sorted(snapshot.keys() | folders)
    assert {entry.path: entry.file for entry in listed if entry.type == "file"} == snapshot


@given(_snapshots(), _snapshots())
def test_root_id_when_content_differs_then_it_differs(one: dict[str, File], other: dict[str, File]) -> None:
    assert (entries(one)[0] == entries(other)[0]) == (one == other)


@given(_snapshots(), _snapshots())
def test_apply_when_everything_is_replaced_then_only_the_additions_remain(
    before: dict[str, File], after: dict[str, File]
) -> None:
    operations = [*(Delete(path) for path in before), *(Add(path, file) for path, file in after.items())]
    assert apply(before, operations) == after


@given(_snapshots(), _PATHS)
def test_apply_when_a_folder_is_deleted_then_exactly_what_is_below_it_goes(
    before: dict[str, File], folder: str
) -> None:
    below = {path for path in before if path.startswith(folder + "/")}
    if below:
        assert apply(before, [Delete(folder, folder=True)]).keys() == before.keys() - below
    else:
        with pytest.raises(RequestError, match="A folder with this name doesn't exist") as refused:
            apply(before, [Delete(folder, folder=True)])
        assert (refused.value.status, refused.value.code) == (404, "EntryNotFound")


@given(_snapshots(), _PATHS)
def test_apply_when_a_path_would_be_file_and_folder_then_it_is_refused(
    before: dict[str, File], path: str
) -> None:
    clashes = any(path.startswith(other + "/") or other.startswith(path + "/") for other in before)
    if clashes:
        with pytest.raises(RequestError, match="would be a file and"):
            apply(before, [Add(path, _file(b""))])
    else:
        assert apply(before, [Add(path, _file(b""))]).keys() == before.keys() | {path}


def test_lfs_file_when_made_then_its_id_is_the_pointers() -> None:
    file = lfs_file("ab" * 32, 12)
    assert file.oid == blob_oid(lfs_pointer("ab" * 32, 12))
    assert lfs_pointer("ab" * 32, 12).endswith(b"\nsize 12\n")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "./a",
        "a/.git/config",
        "a\\b",
        "a\nb",
        "a\0",
        "\ud800",
    ],
)
def test_check_path_when_it_could_escape_or_confuse_then_it_is_refused(path: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_path(path)
    assert refused.value.status == 400


@given(st.text(max_size=40))
def test_check_path_when_accepted_then_it_stays_inside_any_folder(path: str) -> None:
    try:
        check_path(path)
    except RequestError:
        return
    assert Path("/root", path).resolve().is_relative_to("/root")


@pytest.mark.parametrize("name", ["v1", "release-2.0", "feature/x"])
def test_check_ref_name_when_plain_then_accepted(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize("name", ["", "refs/pr/1", "a..b", "a b", "a.lock", "/a", "a/", "0" * 40, "@", None])
def test_check_ref_name_when_git_would_refuse_it_then_refused(name: object) -> None:
    with pytest.raises(RequestError, match="cannot name a branch"):
        check_ref_name(name)


@pytest.mark.parametrize("name", ["api", "Kernels", "models", "a/b", "-a", "a..b", "", None])
def test_check_org_when_it_would_hide_an_address_then_refused(name: object) -> None:
    with pytest.raises(RequestError, match="cannot name an organization"):
        check_org(name)
