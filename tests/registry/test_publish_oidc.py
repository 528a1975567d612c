"""`khub publish --oidc` as a CI job runs it: the job's address, the issuer and the registry are real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from khub_process import ROOT, Hub, StartHub, khub_command, khub_environment
from oidc_issuer import JOB_SECRET, REPOSITORY, Issuer, running_issuer
from registry_command import registry, registry_json

from build_matrix.oidc import upload_token
from hub_loader.errors import AuthenticationError, DownloadError, KernelHubError, UsageError

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def ci_hub(start_hub: StartHub, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A registry that knows its address and lets the job upload to one repository of `ci`."""
    hub = start_hub(tmp_path_factory.mktemp("ci") / "data")
    registry(hub.data, "settings", "--public-url", hub.url)
    add = ["publisher", "add", "--org", "ci", "--issuer", issuer.url, "--repository", REPOSITORY]
    registry(hub.data, *add, "--kernel", "demo")
    return hub


@pytest.fixture
def job(ci_hub: Hub, issuer: Issuer, tmp_path: Path) -> dict[str, str]:
    """The environment of a job of the workflow; no token of the registry is in it."""
    names = ("HF_", "KERNELS_", "ACTIONS_")
    environment = {name: value for name, value in khub_environment().items() if not name.startswith(names)}
    return environment | {
        "HF_ENDPOINT": ci_hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/job?api-version=2",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB_SECRET,
    }


def publish(tmp_path: Path, job: dict[str, str], repo: str = "ci/demo") -> subprocess.CompletedProcess[str]:
    package = python_package(tmp_path / "package", kernel_id="_demo_cpu_1").folder
    command = khub_command("publish", package, repo, "--oidc", "--json")
    return subprocess.run(command, env=job, capture_output=True, text=True, timeout=120, check=False)


def test_publish_with_oidc_uploads_without_a_stored_token_and_twice_is_no_change(
    tmp_path: Path, job: dict[str, str], ci_hub: Hub
) -> None:
    done = publish(tmp_path, job)
    assert done.returncode == 0, done.stderr
    commit = json.loads(done.stdout)["commit"]
    assert httpx.get(f"{ci_hub.url}/api/kernels/ci/demo/revision/v1").json()["sha"] == commit
    again = publish(tmp_path, job)
    assert json.loads(again.stdout)["written"] == 0, again.stderr
    secret = [
        row["hint"] for row in registry_json(ci_hub.data, "token", "list") if row["kind"] == "publisher"
    ]
    assert secret and all(hint not in done.stdout + done.stderr for hint in secret)


def test_publish_with_oidc_to_what_the_publisher_may_not_says_why(
    tmp_path: Path, job: dict[str, str]
) -> None:
    done = publish(tmp_path, job, "ci/other")
    assert done.returncode == AuthenticationError.exit_code
    assert "it uploads to ci/demo alone" in done.stderr


def test_publish_with_oidc_asks_in_the_name_of_the_hub_it_was_told(
    tmp_path: Path, job: dict[str, str], ci_hub: Hub
) -> None:
    """A hub that calls itself otherwise takes no token that was made for the address in HF_ENDPOINT."""
    registry(ci_hub.data, "settings", "--public-url", "https://hub.example")
    try:
        done = publish(tmp_path, job)
    finally:
        registry(ci_hub.data, "settings", "--public-url", ci_hub.url)
    assert done.returncode == AuthenticationError.exit_code
    assert "another audience than 'https://hub.example'" in done.stderr


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ACTIONS_ID_TOKEN_REQUEST_TOKEN": ""}, AuthenticationError, "id-token: write"),
        ({"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "wrong"}, DownloadError, "HTTP 404"),
        ({"ACTIONS_ID_TOKEN_REQUEST_URL": "http://127.0.0.1:9/job"}, DownloadError, "127.0.0.1"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, DownloadError, "cannot be reached"),
        ({"HF_ENDPOINT": "https://huggingface.co"}, UsageError, "registry of your own"),
    ],
)
def test_upload_token_where_there_can_be_none_says_what_is_missing(
    job: dict[str, str], change: dict[str, str], error: type[KernelHubError], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        upload_token("ci/demo", job | change)
    assert JOB_SECRET not in str(refused.value)


def test_upload_token_is_one_of_the_registrys(job: dict[str, str], ci_hub: Hub) -> None:
    token = upload_token("ci/demo", job)
    who = httpx.get(f"{ci_hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"}).json()
    assert (who["name"], who["auth"]["accessToken"]["role"]) == ("ci", "write")
