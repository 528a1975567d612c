"""What a caller allows of the kernels that may run here. Pure: an argument in, a policy out.

`trust_remote_code`, the argument of the Hub's own client, is what a caller may say about it:
    True        every kernel may run
    a list      those of the listed repositories may as well
    False       only those that a trusted key has signed; on the public hub also those of publishers it vouches for
    None        as False

What it cannot allow, and how it is decided: trust/judge.py. What a signature is checked against: trust/trusted.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UsageError
from .hub import check_repo_id
from .record import Record

Trust = bool | Sequence[str] | None


class Policy(Record):
    """What the caller allows beside what a trusted key has signed.

    Everything, these repositories, and by `hub_word` the publishers that the hub vouches for.
    """

    everything: bool = False
    repo_ids: frozenset[str] = frozenset()
    hub_word: bool = False

    def allows(self, repo_id: str) -> bool:
        """Whether kernels of `repo_id` may run whoever has published them."""
        return self.everything or repo_id in self.repo_ids


def make_policy(trust_remote_code: Trust, *, public: bool) -> Policy:
    """The policy that a caller's `trust_remote_code` means; on the public hub its word about publishers counts.

    Raises:
        UsageError: it is neither None, True, False nor a list of repositories.
    """
    if trust_remote_code is None or isinstance(trust_remote_code, bool):
        return Policy(everything=trust_remote_code is True, hub_word=public)
    if isinstance(trust_remote_code, str) or not isinstance(trust_remote_code, Sequence):
        raise UsageError(
            f"trust_remote_code={trust_remote_code!r} is not a list: pass True, False or ['org/name']"
        )
    for repo_id in trust_remote_code:
        check_repo_id(repo_id)
    return Policy(repo_ids=frozenset(trust_remote_code), hub_word=public)
