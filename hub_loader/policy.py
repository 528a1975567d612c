"""Whose kernels may run here: the one place where that is decided. Pure: facts in, a verdict out.

`trust_remote_code`, the argument of the Hub's own client, is what a caller may say about it:
    True        every kernel may run
    a list      those of the listed repositories may, and those of publishers that the hub vouches for
    False       only those of publishers that the hub vouches for
    None        False on the public hub; True on a hub that HF_ENDPOINT names, for naming it is the decision

What this does and does not prove: the hub vouches for its own organizations, so the verdict is worth what the
hub's word and TLS are worth. It is asked of the repository that answers, after a redirect, and remembered:
offline without a remembered verdict the answer is no. Signatures by a publisher's key are not checked yet;
they will be a further fact of `check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import PolicyError, UsageError
from .hub import check_repo_id

Trust = bool | Sequence[str] | None


@dataclass(frozen=True)
class Policy:
    """What the caller allows: everything, or these repositories and, by `hub_word`, what the hub vouches for."""

    everything: bool = False
    repo_ids: frozenset[str] = frozenset()
    hub_word: bool = False

    def allows(self, repo_id: str) -> bool:
        """Whether kernels of `repo_id` may run whoever has published them."""
        return self.everything or repo_id in self.repo_ids

    def needs_publisher(self, repo_id: str) -> bool:
        """Whether it matters if the hub vouches for the publisher of `repo_id`."""
        return not self.everything and repo_id not in self.repo_ids

    def check(self, repo_id: str, publisher_is_trusted: bool | None) -> None:
        """Raise PolicyError unless kernels of `repo_id` may run.

        `publisher_is_trusted` is the hub's word; None where it was not asked or could not be.
        """
        if not self.needs_publisher(repo_id) or publisher_is_trusted:
            return
        org = repo_id.partition("/")[0]
        why = f"the hub does not vouch for {org!r}"
        if publisher_is_trusted is None:
            why = f"nobody could be asked whether {org!r} is to be trusted"
        raise PolicyError(
            f"{repo_id}: {why}: read its code, then allow it with trust_remote_code=[{repo_id!r}]"
        )


def make_policy(trust_remote_code: Trust, *, public: bool) -> Policy:
    """The policy that a caller's `trust_remote_code` means on the public hub or on one of their own.

    Raises:
        UsageError: it is neither None, True, False nor a list of repositories.
    """
    if trust_remote_code is None:
        return Policy(everything=not public)
    if isinstance(trust_remote_code, bool):
        return Policy(everything=trust_remote_code)
    if isinstance(trust_remote_code, str) or not isinstance(trust_remote_code, Sequence):
        raise UsageError(
            f"trust_remote_code={trust_remote_code!r} is not a list: pass True, False or ['org/name']"
        )
    for repo_id in trust_remote_code:
        check_repo_id(repo_id)
    return Policy(repo_ids=frozenset(trust_remote_code))
