"""What owners do with a repository beside uploading, with the stock client: rename, hide, gate, review, squash."""

from __future__ import annotations

import secrets
import signal
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from khub_process import Hub, StartHub

from registry import downloads
from registry.downloads import Downloads, is_download
from registry.names import RepoName
from registry.pages.downloads import daily_downloads
from registry.store import Store


@pytest.fixture(scope="module")
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token("owner"))


@pytest.fixture(scope="module")
def other(hub: Hub) -> HfApi:
    """A client with a good token of an organization that has nothing to do with the repositories."""
    return HfApi(endpoint=hub.url, token=hub.token("stranger"))


@pytest.fixture(scope="module")
def nobody(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def repo(api: HfApi) -> str:
    """A new repository with one file, seen as a model: the client's calls here know no kernels."""
    name = f"owner/protocol-{secrets.token_hex(4)}"
    api.create_repo(name)
    _add(api, name, {"a.txt": b"1"})
    return name


def _add(api: HfApi, repo: str, files: dict[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    options = {"commit_message": "add", **options}
    return str(api.create_commit(repo, operations, **options).oid)


def _paths(api: HfApi, repo: str, revision: str = "main") -> list[str]:
    return [entry.path for entry in api.list_repo_tree(repo, revision=revision, recursive=True)]


# -- history


def test_commits_when_listed_then_they_go_back_to_the_first_over_pages(
    api: HfApi, repo: str, hub: Hub
) -> None:
    made = [
        _add(api, repo, {f"{n}.txt": b"x"}, commit_message=f"no. {n}", commit_description="why")
        for n in range(60)
    ]
    listed = api.list_repo_commits(repo, formatted=True)
    assert [commit.commit_id for commit in listed[:60]] == made[::-1]
    assert [commit.title for commit in listed[59:]] == ["no. 0", "add", "Create the repository"]
    assert (listed[0].message, listed[0].authors, listed[0].formatted_title) == ("why", ["owner"], "no. 59")
    old = api.list_repo_commits(repo, revision=made[0])
    assert [commit.commit_id for commit in old] == [commit.commit_id for commit in listed[59:]]
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_commits(repo, revision="v9")
    assert httpx.get(f"{hub.url}/api/kernels/{repo}/commits/main?cursor=x").status_code == 400


def test_squash_when_done_then_one_commit_has_the_same_files(api: HfApi, repo: str) -> None:
    _add(api, repo, {"b/c.txt": b"2"})
    before = _paths(api, repo)
    api.super_squash_history(repo, commit_message="once")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["once"]
    assert _paths(api, repo) == before == ["a.txt", "b", "b/c.txt"]
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history(repo, branch="v9")


# -- rename


def test_move_when_done_then_the_old_name_leads_to_the_new_for_reading_and_writing(
    api: HfApi, repo: str, tmp_path: Path, hub: Hub
) -> None:
    new = f"{repo}-renamed"
    api.move_repo(repo, new)
    assert api.model_info(repo).id == new
    got = api.hf_hub_download(repo, "a.txt", cache_dir=tmp_path)
    assert Path(got).read_bytes() == b"1"
    oid = _add(api, repo, {"b.txt": b"2"})
    assert oid == api.model_info(new).sha
    sent = httpx.head(f"{hub.url}/kernels/{repo}/resolve/main/a.txt?download=1")
    assert (sent.status_code, sent.headers["location"]) == (
        307,
        f"/kernels/{new}/resolve/main/a.txt?download=1",
    )
    with pytest.raises(HfHubHTTPError):
        api.delete_repo(repo)  # a body names it: nothing is deleted by a name that somebody once knew
    assert api.repo_exists(new)


def test_move_when_the_old_name_is_taken_again_then_it_is_the_new_repository(api: HfApi, repo: str) -> None:
    new = f"{repo}-away"
    api.move_repo(repo, new)
    api.create_repo(repo)
    assert api.model_info(repo).id == repo and api.model_info(new).id == new
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.move_repo(repo, new)
    api.delete_repo(new)
    api.move_repo(repo, new)
    api.move_repo(new, repo)
    assert api.model_info(new).id == repo


def test_move_when_the_token_is_of_one_side_only_then_403(api: HfApi, other: HfApi, repo: str) -> None:
    for client in (api, other):
        with pytest.raises(HfHubHTTPError, match="belongs to"):
            client.move_repo(repo, f"stranger/{secrets.token_hex(4)}")
    with pytest.raises(RepositoryNotFoundError):
        api.move_repo("owner/nothing", "owner/something")


# -- private and gated


def test_private_when_asked_for_by_strangers_then_every_address_says_there_is_none(
    api: HfApi, other: HfApi, nobody: HfApi, hub: Hub, repo: str
) -> None:
    api.update_repo_settings(repo, visibility="private")
    assert api.model_info(repo).private and _paths(api, repo) == ["a.txt"]
    assert api.auth_check(repo) is None
    for client in (other, nobody):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info(repo)
        with pytest.raises(RepositoryNotFoundError):
            client.auth_check(repo)
        assert repo not in [model.id for model in client.list_models(author="owner")]
    assert repo in [model.id for model in api.list_models(author="owner")]
    missing = "owner/" + "x" * len(repo.removeprefix("owner/"))
    addresses = [
        "/api/models/{}",
        "/api/kernels/{}/revision/v9",
        "/api/models/{}/refs",
        "/api/models/{}/tree/main",
    ]
    addresses += ["/api/models/{}/commits/main", "/api/models/{}/discussions", "/api/models/{}/discussions/1"]
    addresses += [
        "/{}",
        "/kernels/{}",
        "/kernels/{}/tree/main",
        "/kernels/{}/versions",
        "/kernels/{}/commit/main",
    ]
    addresses += ["/{}/resolve/main/a.txt", "/kernels/{}/resolve/v9/none", "/api/models/{}/auth-check"]
    for address in addresses:
        seen = [httpx.get(hub.url + address.format(name)) for name in (repo, missing)]
        assert {answer.status_code for answer in seen} == {404}, address
        assert len({answer.text.replace(repo, missing) for answer in seen}) == 1, address
    assert all(
        repo not in httpx.get(hub.url + page).text for page in ("/", "/kernels", "/owner", "/kernels?q=owner")
    )
    moved = f"{repo}-hidden"
    api.move_repo(repo, moved)
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info(repo)
    assert api.model_info(repo).id == moved


def test_create_repo_when_private_then_strangers_never_see_it(api: HfApi, nobody: HfApi) -> None:
    name = f"owner/secret-{secrets.token_hex(4)}"
    api.create_repo(name, visibility="private")
    assert api.repo_exists(name) and not nobody.repo_exists(name)
    api.update_repo_settings(name, visibility="public")
    assert nobody.repo_exists(name)


def test_gated_when_not_let_in_then_the_names_are_listed_and_the_files_refused(
    api: HfApi, other: HfApi, nobody: HfApi, hub: Hub, repo: str, tmp_path: Path
) -> None:
    api.update_repo_settings(repo, gated="manual")
    assert other.model_info(repo).gated == "manual" and _paths(nobody, repo) == ["a.txt"]
    for client, status in ((other, 403), (nobody, 401)):
        with pytest.raises(GatedRepoError) as refused:
            client.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "refused")
        assert refused.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            client.auth_check(repo)
    assert Path(api.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "owner")).read_bytes() == b"1"

    api.grant_access(repo, "stranger")
    assert Path(other.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "in")).read_bytes() == b"1"
    assert [request.username for request in api.list_accepted_access_requests(repo)] == ["stranger"]
    api.reject_access_request(repo, "stranger", rejection_reason="no")
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    with pytest.raises(HfHubHTTPError):
        other.grant_access(repo, "stranger")


def test_gated_when_asked_then_the_owner_decides_or_the_gate_does(
    api: HfApi, other: HfApi, hub: Hub, repo: str
) -> None:
    def ask() -> int:
        return httpx.post(
            f"{hub.url}/{repo}/ask-access", headers={"Authorization": f"Bearer {other.token}"}
        ).status_code

    assert ask() == 400
    api.update_repo_settings(repo, gated="manual")
    assert httpx.post(f"{hub.url}/{repo}/ask-access").status_code == 401
    assert ask() == 200
    assert [request.username for request in api.list_pending_access_requests(repo)] == ["stranger"]
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    api.accept_access_request(repo, "stranger")
    other.auth_check(repo)
    api.cancel_access_request(repo, "stranger")
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    api.reject_access_request(repo, "stranger", rejection_reason=None)
    assert ask() == 200, "asking again does not undo what the owner decided"
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    with pytest.raises(HfHubHTTPError):
        api.accept_access_request(repo, "unknown")
    with pytest.raises(HfHubHTTPError):
        list(other.list_pending_access_requests(repo))


# -- pull requests


def test_pull_request_when_committed_then_branches_know_nothing_of_it(api: HfApi, repo: str) -> None:
    main = api.model_info(repo).sha
    made = api.create_commit(
        repo,
        [CommitOperationAdd("b.txt", b"2")],
        commit_message="Add b",
        commit_description="please",
        create_pr=True,
    )
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert api.model_info(repo).sha == main and _paths(api, repo) == ["a.txt"]
    assert _paths(api, repo, "refs/pr/1") == ["a.txt", "b.txt"]
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main"]
    assert [(pull.ref, pull.target_commit) for pull in refs.pull_requests or []] == [("refs/pr/1", made.oid)]
    assert api.list_repo_refs(repo).pull_requests is None
    more = _add(api, repo, {"c.txt": b"3"}, revision="refs/pr/1")
    assert more == api.model_info(repo, revision="refs/pr/1").sha != made.oid

    details = api.get_discussion_details(repo, 1)
    assert (details.title, details.status, details.target_branch) == ("Add b", "open", "refs/heads/main")
    assert (details.conflicting_files, details.events[0].content) == ([], "please")
    api.merge_pull_request(repo, 1)
    assert _paths(api, repo) == ["a.txt", "b.txt", "c.txt"]
    details = api.get_discussion_details(repo, 1)
    assert (details.status, details.merge_commit_oid) == ("merged", api.model_info(repo).sha)
    with pytest.raises(HfHubHTTPError, match="merged"):
        _add(api, repo, {"d.txt": b"4"}, revision="refs/pr/1")


def test_pull_request_when_the_branch_changed_the_same_file_then_it_is_not_merged(
    api: HfApi, repo: str
) -> None:
    _add(api, repo, {"a.txt": b"mine"}, create_pr=True)
    _add(api, repo, {"other.txt": b"theirs"}, create_pr=True)
    _add(api, repo, {"a.txt": b"theirs"})
    assert api.get_discussion_details(repo, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match="has changed a.txt since"):
        api.merge_pull_request(repo, 1)
    api.merge_pull_request(repo, 2)
    assert _paths(api, repo) == ["a.txt", "other.txt"]


def test_pull_request_when_closed_then_it_takes_no_commit_until_opened_again(api: HfApi, repo: str) -> None:
    draft = api.create_pull_request(repo, "Later")
    assert (draft.num, draft.status) == (1, "draft")
    api.change_discussion_status(repo, 1, "closed")
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="open")] == []
    with pytest.raises(HfHubHTTPError, match="closed"):
        _add(api, repo, {"b.txt": b"2"}, revision="refs/pr/1")
    api.change_discussion_status(repo, 1, "open")
    _add(api, repo, {"b.txt": b"2"}, revision="refs/pr/1")
    listed = list(api.get_repo_discussions(repo, discussion_type="pull_request"))
    assert [(d.num, d.title, d.is_pull_request) for d in listed] == [(1, "Later", True)]
    assert list(api.get_repo_discussions(repo, discussion_type="discussion")) == []
    with pytest.raises(HfHubHTTPError, match="no discussions"):
        api.create_discussion(repo, "Hello")
    with pytest.raises(HfHubHTTPError, match="take no 'comment'"):
        api.comment_discussion(repo, 1, "Hello")
    with pytest.raises(HfHubHTTPError):
        api.get_discussion_details(repo, 2)


def test_pull_request_when_the_token_is_of_another_organization_then_403(
    other: HfApi, api: HfApi, repo: str
) -> None:
    _add(api, repo, {"b.txt": b"2"}, create_pr=True)
    for attempt in (
        lambda: _add(other, repo, {"c.txt": b"3"}, create_pr=True),
        lambda: other.merge_pull_request(repo, 1),
        lambda: other.change_discussion_status(repo, 1, "closed"),
        lambda: other.super_squash_history(repo),
        lambda: other.update_repo_settings(repo, visibility="private"),
    ):
        with pytest.raises(HfHubHTTPError, match="belongs to 'stranger'"):
            attempt()
    assert api.get_discussion_details(repo, 1).status == "open" and _paths(api, repo) == ["a.txt"]


# -- lists and counts


def test_list_when_searched_and_sorted_then_pages_hold_each_repository_once(api: HfApi, hub: Hub) -> None:
    mark = secrets.token_hex(4)
    names = [f"owner/{mark}-{n}" for n in range(5)]
    for name in names:
        api.create_repo(name)
    assert sorted(model.id for model in api.list_models(search=mark.upper(), author="OWNER")) == names
    created = [model.id for model in api.list_models(search=mark, sort="created_at", limit=2)]
    assert len(created) == 2
    found, url = [], f"{hub.url}/api/kernels?search={mark}&limit=2&sort=createdAt&direction=1&full=true"
    while url:
        page = httpx.get(url)
        found += [each["id"] for each in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert found == names
    assert httpx.get(f"{hub.url}/api/kernels?search=%25_%25").json() == []


def test_downloads_when_variants_are_fetched_then_they_are_counted_once_each_and_kept(
    start_hub: StartHub, tmp_path: Path
) -> None:
    first = start_hub(tmp_path / "data")
    api = HfApi(endpoint=first.url, token=first.token("acme"))
    api.create_repo("acme/k")
    _add(
        api,
        "acme/k",
        {"build/torch-cpu/metadata.json": b"{}" * 9, "build/torch-cpu/x.py": b"", "README.md": b""},
    )
    file = f"{first.url}/kernels/acme/k/resolve/main/build/torch-cpu/metadata.json"
    assert httpx.head(file).status_code == 200
    assert httpx.get(file, headers={"Range": "bytes=5-"}).status_code == 206
    assert httpx.get(f"{first.url}/acme/k/resolve/main/README.md").status_code == 200
    for _ in range(3):
        assert httpx.get(file).status_code == 200
    assert httpx.get(file, headers={"Range": "bytes=0-"}).status_code == 206
    assert first.stop(signal.SIGTERM) in (0, -signal.SIGTERM)

    second = start_hub(tmp_path / "data")
    assert httpx.get(f"{second.url}/api/kernels/acme/k").json()["downloads"] == 4
    assert httpx.get(f"{second.url}/api/kernels?sort=downloads").json()[0]["downloads"] == 4
    second.stop()


def test_downloads_when_flushed_twice_then_the_day_holds_their_sum(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.create_repo(RepoName("acme", "k"), "acme")
    counts = Downloads()
    for repo_id in (1, 1, 99):  # no repository has the number 99
        counts.fetched(repo_id, "build/torch-cpu/metadata.json", None)
    counts.flush(store)
    counts.fetched(1, "build/torch-cpu/metadata.json", None)
    counts.flush(store)
    counts.flush(store)
    with store.read() as session:
        assert daily_downloads(session, [1]) == {1: {datetime.now(timezone.utc).date(): 3}}
        assert downloads.recent(session, [1, 99]) == {1: 3}
    store.close()


@pytest.mark.parametrize(
    ("path", "asked", "counts"),
    [
        ("build/torch-cpu/metadata.json", None, True),
        ("build/torch-cpu/metadata.json", "bytes=0-", True),
        ("build/torch-cpu/metadata.json", "bytes=10-", False),
        ("build/torch-cpu/x/metadata.json", None, False),
        ("metadata.json", None, False),
        ("build/torch-cpu/__init__.py", None, False),
    ],
)
def test_is_download_when_it_is_not_a_variants_first_file_then_no(
    path: str, asked: str | None, counts: bool
) -> None:
    assert is_download(path, asked) is counts


def test_file_when_missing_in_a_gated_repository_then_only_members_learn_it(
    api: HfApi, other: HfApi, repo: str
) -> None:
    api.update_repo_settings(repo, gated="auto")
    with pytest.raises(GatedRepoError):
        other.hf_hub_download(repo, "none.txt")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "none.txt")
