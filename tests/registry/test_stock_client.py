"""The stock huggingface_hub client against `khub serve`, under both types of repository."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from khub_process import Hub

_KINDS = pytest.mark.parametrize("kind", ["kernel", "model"])


@pytest.fixture(scope="module")
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token("client"))


@pytest.fixture
def repo(api: HfApi) -> str:
    """A new repository with an empty branch `v1`."""
    name = f"client/kernel-{secrets.token_hex(4)}"
    api.create_repo(name, repo_type="kernel")
    api.create_branch(name, branch="v1", repo_type="kernel")
    return name


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package's files, among them one larger than a request is read in one piece."""
    root = tmp_path / "package"
    variant = root / "build" / "torch-cpu"
    variant.mkdir(parents=True)
    (root / "README.md").write_text("---\ntags:\n- kernel\n---\nhello\n")
    (variant / "__init__.py").write_text("x = 1\n")
    (variant / "empty.py").write_bytes(b"")
    (variant / "name with space #é.txt").write_text("odd names are names\n")
    (variant / "big.so").write_bytes(os.urandom(3 << 20))
    return root


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@_KINDS
def test_upload_folder_when_downloaded_again_then_every_byte_is_there(
    api: HfApi, repo: str, package: Path, tmp_path: Path, kind: str
) -> None:
    commit = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=package, revision="v1")
    for other in ("kernel", "model"):
        for revision in ("v1", "refs/heads/v1", commit.oid):
            got = api.snapshot_download(
                repo,
                repo_type=other,
                revision=revision,
                cache_dir=tmp_path / f"{other}-{revision.replace('/', '-')}",
            )
            assert _content(Path(got)) == _content(package)


def test_snapshot_download_when_filtered_then_only_that_variant_comes(
    api: HfApi, repo: str, package: Path, tmp_path: Path
) -> None:
    api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package, revision="v1")
    got = api.snapshot_download(
        repo,
        repo_type="kernel",
        revision="v1",
        allow_patterns=["build/torch-cpu/*"],
        cache_dir=tmp_path / "cache",
    )
    assert _content(Path(got)).keys() == _content(package).keys() - {"README.md"}


@_KINDS
def test_create_repo_when_it_exists_then_409_or_its_address(
    api: HfApi, repo: str, hub: Hub, kind: str
) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo, repo_type=kind)
    assert refused.value.response.status_code == 409
    url = api.create_repo(repo, repo_type=kind, exist_ok=True)
    assert (url, url.repo_id, url.repo_type) == (
        f"{hub.url}/{'kernels/' if kind == 'kernel' else ''}{repo}",
        repo,
        kind,
    )


def test_create_repo_when_a_dataset_then_the_sentence_says_kernels(api: HfApi) -> None:
    with pytest.raises(BadRequestError, match="holds kernels"):
        api.create_repo("client/data", repo_type="dataset")


def test_delete_repo_when_done_then_it_is_gone_and_the_name_is_free(
    api: HfApi, repo: str, package: Path
) -> None:
    api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package)
    api.delete_repo(repo, repo_type="kernel")
    assert not api.repo_exists(repo, repo_type="kernel")
    api.delete_repo(repo, repo_type="kernel", missing_ok=True)
    api.create_repo(repo, repo_type="kernel")
    assert list(api.list_repo_tree(repo, repo_type="kernel", recursive=True)) == []


def test_refs_when_branches_and_tags_exist_then_each_names_its_commit(api: HfApi, repo: str) -> None:
    added = api.upload_file(
        path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo, repo_type="kernel", revision="v1"
    )
    api.create_tag(repo, tag="release", revision="v1", repo_type="kernel")
    api.create_branch(repo, branch="v2", revision=added.oid, repo_type="kernel")
    refs = api.list_repo_refs(repo, repo_type="kernel", include_pull_requests=True)
    main = api.kernel_info(repo).sha
    assert {b.name: b.target_commit for b in refs.branches} == {
        "main": main,
        "v1": added.oid,
        "v2": added.oid,
    }
    assert [(t.name, t.ref, t.target_commit) for t in refs.tags] == [
        ("release", "refs/tags/release", added.oid)
    ]
    assert (refs.converts, refs.pull_requests) == ([], [])

    api.create_branch(repo, branch="v2", repo_type="kernel", exist_ok=True)
    api.create_tag(repo, tag="release", revision="v1", repo_type="kernel", exist_ok=True)
    api.delete_branch(repo, branch="v2", repo_type="kernel")
    api.delete_tag(repo, tag="release", repo_type="kernel")
    refs = api.list_repo_refs(repo, repo_type="kernel")
    assert ([b.name for b in refs.branches], refs.tags) == (["main", "v1"], [])


def test_delete_branch_when_main_then_refused(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match="protected"):
        api.delete_branch(repo, branch="main", repo_type="kernel")


def test_create_branch_when_the_name_is_a_full_reference_then_bad_request(api: HfApi, repo: str) -> None:
    with pytest.raises(BadRequestError, match="cannot name a branch"):
        api.create_branch(repo, branch="refs/pr/5", repo_type="kernel")


def test_tree_when_listed_then_folders_are_one_level_and_ids_are_gits(
    api: HfApi, repo: str, package: Path
) -> None:
    api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package, revision="v1")
    top = list(api.list_repo_tree(repo, repo_type="kernel", revision="v1"))
    assert [entry.path for entry in top] == ["README.md", "build"]
    inner = list(api.list_repo_tree(repo, "build/torch-cpu", repo_type="kernel", revision="v1"))
    empty = next(entry for entry in inner if entry.path.endswith("empty.py"))
    assert (empty.size, empty.blob_id) == (0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    files = list(api.list_repo_tree(repo, "build", recursive=True, repo_type="kernel", revision="v1"))
    assert [entry.path for entry in files] == ["build/torch-cpu", *(entry.path for entry in inner)]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "build/nothing", repo_type="kernel", revision="v1"))


def test_tree_when_longer_than_a_page_then_the_client_follows_to_the_end(api: HfApi, repo: str) -> None:
    paths = [f"f/{n:04}.txt" for n in range(1050)]
    api.create_commit(
        repo,
        [CommitOperationAdd(path, path.encode()) for path in paths],
        commit_message="many",
        repo_type="kernel",
    )
    listed = list(api.list_repo_tree(repo, repo_type="kernel", recursive=True))
    assert [entry.path for entry in listed] == ["f", *paths]


def test_paths_info_when_some_do_not_exist_then_they_are_left_out(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a/b.txt", repo_id=repo, repo_type="kernel")
    found = api.get_paths_info(repo, ["a", "a/b.txt", "nothing"], repo_type="kernel")
    assert [entry.path for entry in found] == ["a", "a/b.txt"]


def test_commit_when_the_parent_has_moved_then_412_and_nothing_changes(api: HfApi, repo: str) -> None:
    def commit(path: str, parent: str) -> str:
        operation = CommitOperationAdd(path, b"x")
        return str(
            api.create_commit(
                repo, [operation], commit_message="m", repo_type="kernel", parent_commit=parent
            ).oid
        )

    start = str(api.kernel_info(repo).sha)
    head = commit("a.txt", parent=start)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        commit("b.txt", parent=start)
    assert refused.value.response.status_code == 412
    assert api.kernel_info(repo).sha == head
    assert commit("b.txt", parent=head[:8]) == api.kernel_info(repo).sha


def test_commit_when_it_deletes_copies_and_replaces_then_the_tree_is_the_result(
    api: HfApi, repo: str
) -> None:
    add = [CommitOperationAdd(path, path.encode()) for path in ("a.txt", "d/one", "d/two", "keep")]
    api.create_commit(repo, add, commit_message="add", repo_type="kernel")
    change = [
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("d/"),
        CommitOperationAdd("keep", b"new"),
        CommitOperationCopy("d/one", "copied"),
    ]
    api.create_commit(repo, change, commit_message="change", repo_type="kernel")
    paths = [entry.path for entry in api.list_repo_tree(repo, repo_type="kernel", recursive=True)]
    assert paths == ["copied", "keep"]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("a.txt", repo, repo_type="kernel")


def test_upload_when_nothing_changed_then_the_head_stays(api: HfApi, repo: str, package: Path) -> None:
    first = api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package)
    again = api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package)
    assert again.oid == first.oid == api.kernel_info(repo).sha


def test_upload_when_the_message_has_a_title_and_a_body_then_it_succeeds(api: HfApi, repo: str) -> None:
    done = api.upload_file(
        path_or_fileobj=b"1",
        path_in_repo="a",
        repo_id=repo,
        repo_type="kernel",
        commit_message="Ünïcode title",
        commit_description="and a body",
    )
    assert done.oid == api.kernel_info(repo).sha


def test_errors_when_something_is_missing_then_the_client_raises_its_own_type(api: HfApi, repo: str) -> None:
    with pytest.raises(RepositoryNotFoundError, match="client/nothing"):
        api.kernel_info("client/nothing")
    with pytest.raises(RevisionNotFoundError, match="v9"):
        api.kernel_info(repo, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        api.kernel_info(repo, revision="0" * 40)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(
            path_or_fileobj=b"", path_in_repo="a", repo_id=repo, repo_type="kernel", revision="v9"
        )
    with pytest.raises(EntryNotFoundError, match="nothing"):
        api.hf_hub_download(repo, "nothing.txt", repo_type="kernel")
    assert not api.file_exists(repo, "nothing.txt", repo_type="kernel")
    assert not api.revision_exists(repo, "v9", repo_type="kernel")


def test_whoami_when_the_token_is_good_then_it_names_the_organization(api: HfApi) -> None:
    who = api.whoami()
    assert (who["name"], who["auth"]["accessToken"]["role"]) == ("client", "write")


def test_organization_overview_when_it_exists_then_it_is_not_vouched_for(api: HfApi) -> None:
    overview = api.get_organization_overview("client")
    assert (overview.name, overview.trustedKernelPublisher) == ("client", False)
