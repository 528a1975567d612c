"""What things are called in a hub's TUF repository; the registry, publishers and the loader agree on it here. Pure.

An organization's kernels are the delegated role `org.<organization>`, apart from TUF's own four roles. A target is
the index.json of one version: `<organization>/<name>/v<N>/index.json`.
"""

from __future__ import annotations

import re

from ..record import Record

METADATA_URL = "/tuf/metadata/"
BUNDLE_URL = "/tuf/bundle"
PUBLISH_URL = "/tuf/targets/"
_TARGET = re.compile(r"([^/]+)/([^/]+)/v([1-9]\d{0,8})/index\.json", re.ASCII)


def role_of(org: str) -> str:
    """The delegated role of an organization."""
    return f"org.{org}"


def org_of(role: str) -> str | None:
    """The organization of a delegated role; None for TUF's own roles."""
    return role.removeprefix("org.") if role.startswith("org.") else None


def paths_of(org: str) -> str:
    """The pattern of the targets that an organization's role may have; TUF's `*` stays within one part."""
    return f"{org}/*/*/index.json"


class Target(Record):
    """A version of a kernel: organization, name, number."""

    org: str
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.org}/{self.name}/v{self.version}/index.json"

    @property
    def repo_id(self) -> str:
        """org/name."""
        return f"{self.org}/{self.name}"

    @property
    def branch(self) -> str:
        """The branch that holds the version."""
        return f"v{self.version}"


def parse_target(path: str) -> Target | None:
    """The version that a target path names; None if it is no such path."""
    match = _TARGET.fullmatch(path)
    return Target(match[1], match[2], int(match[3])) if match else None


def target_of(repo_id: str, version: int) -> Target:
    """The target of a version of `repo_id` (org/name)."""
    org, _, name = repo_id.partition("/")
    return Target(org, name, version)
