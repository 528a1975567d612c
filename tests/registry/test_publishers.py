"""Which publisher fits a run: what each requirement excludes, over all combinations."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.oidc.publishers import NotARunError, Publisher, Run, find_publisher, run_of

ISSUERS, REPOSITORIES, FILES = (
    ["https://a.example", "https://b.example"],
    ["o/k", "O/K", "x/k"],
    ["p.yml", "q.yml"],
)
ENVIRONMENTS, REFS, GLOBS = (
    ["", "hub"],
    ["refs/heads/main", "refs/tags/v1"],
    ["refs/tags/*", "refs/heads/main"],
)
EVENTS, KERNELS, ORGS = (
    ["push", "release", "pull_request", "pull_request_target"],
    ["relu", "gelu"],
    ["acme", "org"],
)


def maybe(values: list[str]) -> st.SearchStrategy[str | None]:
    return st.one_of(st.none(), st.sampled_from(values))


publishers = st.builds(
    Publisher,
    id=st.integers(1, 9),
    org=st.sampled_from(ORGS),
    issuer=st.sampled_from(ISSUERS),
    repository=st.sampled_from(REPOSITORIES),
    kernel=maybe(KERNELS),
    workflow=maybe(FILES),
    environment=maybe(["hub", "HUB"]),
    ref=maybe(GLOBS),
    owner_id=maybe(["1", "2"]),
)
runs = st.builds(
    Run,
    issuer=st.sampled_from(ISSUERS),
    repository=st.sampled_from(REPOSITORIES),
    owner_id=st.sampled_from(["", "1"]),
    workflow=st.sampled_from(["", *FILES]),
    environment=st.sampled_from(ENVIRONMENTS),
    ref=st.sampled_from(REFS),
    event=st.sampled_from(EVENTS),
    sha=st.just("f" * 40),
    run_id=st.just("1"),
)
kernels = maybe(KERNELS)


@given(run=runs, org=st.sampled_from(ORGS), kernel=kernels, those=st.lists(publishers, max_size=4))
def test_publisher_that_is_found_asks_for_nothing_that_the_run_lacks(
    run: Run, org: str, kernel: str | None, those: list[Publisher]
) -> None:
    found = find_publisher(run, org, kernel, those)
    if isinstance(found, str):
        assert found
        return
    assert found in those
    assert (found.org, found.issuer) == (org, run.issuer)
    assert found.repository.lower() == run.repository.lower() and not run.event.startswith("pull_request")
    assert found.kernel in (None, kernel) and found.workflow in (None, run.workflow)
    assert found.owner_id in (None, run.owner_id)
    assert found.environment is None or found.environment.lower() == run.environment
    assert found.ref is None or fnmatchcase(run.ref, found.ref)


@given(
    run=runs,
    kernel=st.sampled_from(KERNELS),
    one=publishers,
    field=st.sampled_from(["kernel", "workflow", "environment", "ref", "owner_id"]),
)
def test_publisher_that_asks_for_less_fits_whatever_it_fitted_before(
    run: Run, kernel: str, one: Publisher, field: str
) -> None:
    looser: Publisher = replace(one, **{field: None})  # type: ignore[arg-type]
    if not isinstance(find_publisher(run, one.org, kernel, [one]), str):
        assert not isinstance(find_publisher(run, one.org, kernel, [looser]), str)


CLAIMS: dict[str, Any] = {
    "iss": "https://a.example",
    "repository": "Acme/Kernels",
    "ref": "refs/heads/main",
    "workflow_ref": "acme/kernels/.github/workflows/p.yml@refs/heads/main",
}


@pytest.mark.parametrize(
    ("refs", "file"),
    [
        ({}, "p.yml"),
        ({"job_workflow_ref": "acme/kernels/.github/workflows/p.yml@refs/tags/x"}, "p.yml"),
        ({"job_workflow_ref": "acme/kernels/.github/workflows/q.yml@refs/heads/main"}, ""),
        ({"job_workflow_ref": "acme/kernels-2/.github/workflows/p.yml@refs/heads/main"}, ""),
        ({"workflow_ref": "evil/x/acme/kernels/.github/workflows/p.yml@refs/heads/main"}, ""),
        ({"workflow_ref": "acme/kernels/.github/workflows/../p.yml@refs/heads/main"}, "../p.yml"),
        ({"workflow_ref": None}, ""),
        ({"workflow_ref": "p.yml"}, ""),
    ],
)  # fmt: skip
def test_run_whose_job_and_workflow_are_not_of_one_file_has_none(refs: dict[str, Any], file: str) -> None:
    assert run_of(CLAIMS | refs).workflow == file


@pytest.mark.parametrize(
    "change",
    [
        {"repository": None},
        {"repository": ""},
        {"repository": 5},
        {"ref": None},
        {"environment": ["hub"]},
        {"run_id": "1\x00"},
        {"run_id": 7},
        {"workflow_ref": {"a": 1}},
    ],
)
def test_claims_that_are_no_runs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NotARunError):
        run_of(CLAIMS | change)
