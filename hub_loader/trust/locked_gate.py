"""What this machine knows against a locked kernel: the TUF metadata that it verified when it last asked, however old.

A locked load sends no request, and its bytes were listed when the lock was written. So nothing has to be listed now,
and nothing expires. But what a hub has said here since then is not forgotten because a lock file is older:

    on the hub that is loaded from   no key that may publish for the organization has signed its list any more
    on any hub with a given root     the very index.json of the lock was taken back, or is listed by keys alone that
                                     the trust file has revoked

A list that names another index.json for the version, or no longer names the version, says nothing against the lock:
publishers publish anew, and a machine may have asked before the lock was written.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import SignatureError
from ..manifest import parse_index, sha256_hex
from .evidence import Evidence
from .judge import by_tuf
from .trusted import read_trust
from .tuf_client import age, known_namespace, roots
from .tuf_names import target_of
from .tuf_record import Namespace

if TYPE_CHECKING:
    from ..pin import Version


def check_known(config: Config, version: Version, origin: str) -> None:
    """Hold the version that the lock file `origin` names against what is known here; sends no request.

    Raises:
        SignatureError: it was taken back, or its publishers' keys are revoked.
        UsageError: what is kept beside the trust file is damaged.
    """
    org = version.repo_id.partition("/")[0]
    for given in roots():
        known = known_namespace(given.hub, org)
        if known is None:
            continue
        wrong = known.refused if given.hub == config.endpoint else None
        wrong = wrong or _against(given.hub, known, version)
        if wrong is not None:
            raise SignatureError(
                f"{version.repo_id}: {wrong}; {given.hub} said so {age(known)} ago. {origin} has it at "
                f"{version.commit[:12]}: `khub lock` for another version; if it is good again, load it once without "
                "the lock file while online"
            )


def _against(hub: str, known: Namespace, version: Version) -> str | None:
    """What a hub has against this very index.json, in words."""
    if version.index is None:
        return None
    number = parse_index(version.index, origin=f"index.json of {version.repo_id}").version
    target, digest = known.target(target_of(version.repo_id, number)), sha256_hex(version.index)
    if target is None or target.sha256 != digest:
        return None
    keys = read_trust().keys_for(hub, version.repo_id)
    return by_tuf(
        Evidence(
            version.repo_id,
            None,
            digest,
            time.time(),
            len(version.index),
            publisher_keys=keys,
            has_root=True,
            tuf=target,
        )
    )
