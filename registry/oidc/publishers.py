"""Which CI runs may upload: what a publisher is, what a run says of itself, whether the two fit. Pure.

The claims are those of GitHub Actions' OIDC tokens.
Source: https://docs.github.com/en/actions/reference/security/oidc
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

# Such runs carry code that nobody has merged.
_UNMERGED = frozenset({"pull_request", "pull_request_target"})
_WORKFLOWS = ".github/workflows/"


@dataclass(frozen=True)
class Publisher:
    """Runs of `repository` at `issuer` may upload for `org`; None asks for nothing.

    `kernel` is the one repository of the organization that they may upload to, `workflow` a file's name,
    `ref` a glob over full references (`refs/tags/v*`), `owner_id` the number that survives a rename of the
    account at the issuer.
    """

    id: int
    org: str
    issuer: str
    repository: str
    kernel: str | None = None
    workflow: str | None = None
    environment: str | None = None
    ref: str | None = None
    owner_id: str | None = None

    def __str__(self) -> str:
        parts = (("workflow", self.workflow), ("environment", self.environment), ("ref", self.ref))
        return " ".join([self.repository, *(f"{name}={value}" for name, value in parts if value)])


@dataclass(frozen=True)
class Run:
    """What a verified token says of the run that it was made for."""

    issuer: str
    repository: str
    owner_id: str
    workflow: str  # a file's name
    environment: str
    ref: str
    event: str
    sha: str
    run_id: str


class NotARunError(ValueError):
    """The claims lack something that every run's token has, or contradict themselves."""


def run_of(claims: Mapping[str, Any]) -> Run:
    """The run that a token's claims describe. Raises NotARunError."""

    def text(name: str, *, required: bool = False) -> str:
        value = claims.get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or not (value or not required) or not value.isprintable():
            raise NotARunError(f"the claim {name!r} is missing or not text")
        return value

    repository = text("repository", required=True)
    files = {
        _workflow_file(text(name), repository)
        for name in ("workflow_ref", "job_workflow_ref")
        if claims.get(name) is not None
    }
    return Run(
        issuer=text("iss", required=True),
        repository=repository,
        owner_id=text("repository_owner_id"),
        workflow=files.pop() if len(files) == 1 else "",  # a workflow called from another one is neither
        environment=text("environment"),
        ref=text("ref", required=True),
        event=text("event_name"),
        sha=text("sha"),
        run_id=text("run_id"),
    )


def _workflow_file(ref: str, repository: str) -> str:
    """`publish.yml` of `acme/kernels/.github/workflows/publish.yml@refs/heads/main`; "" if of elsewhere."""
    path, _, _ = ref.partition("@")
    prefix = f"{repository}/{_WORKFLOWS}"
    return path[len(prefix) :] if path.lower().startswith(prefix.lower()) else ""


def find_publisher(
    run: Run, org: str, kernel: str | None, publishers: Iterable[Publisher]
) -> Publisher | str:
    """The publisher that lets `run` upload to `kernel` of `org` (None: to all of it), or why there is none."""
    wanted = org if kernel is None else f"{org}/{kernel}"
    reasons = []
    for publisher in publishers:
        if publisher.org != org or publisher.issuer != run.issuer:
            continue
        reason = _mismatch(publisher, run, kernel)
        if reason is None:
            return publisher
        reasons.append(f"publisher {publisher.id} ({publisher}): {reason}")
    if run.event in _UNMERGED:
        return f"a run of event {run.event!r} publishes nothing: its code is not merged"
    return "; ".join(reasons) or f"{org!r} has no publisher of {run.issuer}, needed for {wanted!r}"


def _mismatch(publisher: Publisher, run: Run, kernel: str | None) -> str | None:
    if run.event in _UNMERGED:
        return f"the event is {run.event!r}"
    if publisher.repository.lower() != run.repository.lower():
        return f"the run is of {run.repository!r}"
    if publisher.owner_id is not None and publisher.owner_id != run.owner_id:
        return f"the account's number is {run.owner_id!r}, not {publisher.owner_id!r}"
    if publisher.workflow is not None and publisher.workflow != run.workflow:
        return f"the workflow is {run.workflow or 'called from another one'!r}"
    if publisher.environment is not None and publisher.environment.lower() != run.environment.lower():
        return f"the environment is {run.environment!r}"
    if publisher.ref is not None and not fnmatchcase(run.ref, publisher.ref):
        return f"the reference is {run.ref!r}"
    if publisher.kernel is not None and publisher.kernel != kernel:
        return f"it uploads to {publisher.org}/{publisher.kernel} alone"
    return None
