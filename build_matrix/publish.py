"""Upload a built package with the stock Hub client: one commit on the version's branch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import AuthenticationError, DownloadError, InvalidKernelError
from hub_loader.manifest import INDEX_NAME, parse_index

from .statement import STATEMENT_NAME


@dataclass(frozen=True)
class Published:
    """Where a package went."""

    repo_id: str
    branch: str
    commit: str
    variants: tuple[str, ...]


def publish(package: Path, repo_id: str, *, message: str | None = None) -> Published:
    """Upload `package` (a folder with `index.json` and `build/`) to `repo_id`, branch `v<version>`.

    The repository and the branch are created when they are not there. `HF_ENDPOINT` and `HF_TOKEN` say
    where and as whom, as for every Hub client.

    Raises:
        InvalidKernelError: `package` is not a built package.
        AuthenticationError: no token, or one without the right to write there.
        DownloadError: the hub cannot be reached or answers an error.
    """
    path = package / INDEX_NAME
    if not path.is_file():
        raise InvalidKernelError(
            f"{package} holds no {INDEX_NAME}: build it first with khub build --out {package}"
        )
    index = parse_index(path.read_bytes(), origin=str(path))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="kernel-hub")
    branch = f"v{index.version}"
    files = {INDEX_NAME: package / INDEX_NAME}
    if (package / STATEMENT_NAME).is_file():  # packages of other builders have none
        files[STATEMENT_NAME] = package / STATEMENT_NAME
    for name, variant in index.variants.items():
        files |= {f"build/{name}/{path}": package / "build" / name / path for path in variant.all_files}
    try:
        api.create_repo(repo_id, repo_type="kernel", exist_ok=True)
        api.create_branch(repo_id, repo_type="kernel", branch=branch, exist_ok=True)
        there = api.list_repo_tree(repo_id, repo_type="kernel", revision=branch, recursive=True)
        # A variant that is no longer built must not linger beside the new ones.
        stale = [f.path for f in there if isinstance(f, RepoFile) and f.path.startswith("build/")]
        # One commit, so that no reader ever sees an index with half of its files.
        commit = api.create_commit(
            repo_id,
            repo_type="kernel",
            revision=branch,
            operations=[
                *(CommitOperationDelete(path) for path in stale if path not in files),
                *(CommitOperationAdd(path, local) for path, local in files.items()),
            ],
            commit_message=message or f"Publish {index.name} {branch}",
        )
    except LocalTokenNotFoundError:
        raise AuthenticationError("no token to write with: set HF_TOKEN or run `hf auth login`") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AuthenticationError(
                f"{repo_id}: {_sentence(error)}; set HF_TOKEN to a token that may write"
            ) from None
        raise DownloadError(f"publishing {repo_id} failed with HTTP {status}: {_sentence(error)}") from None
    return Published(repo_id, branch, commit.oid, tuple(index.variants))


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
