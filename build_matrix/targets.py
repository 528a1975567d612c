"""A publisher's side of a hub that is a TUF repository: the next version of an organization's targets, signed.

Readers who were given the hub's root load what these targets name and nothing else. A version is built on the one
before, which is verified from the publisher's own copy of that root: a hub cannot slip a target in to be signed.
Another publisher who was faster makes the hub answer 412; the change is then made again on what they published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from hub_loader.body import chunks
from hub_loader.config import Config
from hub_loader.errors import AuthenticationError, DownloadError, SignatureError, UsageError
from hub_loader.hub import Hub
from hub_loader.manifest import sha256_hex
from hub_loader.session import http_errors, session
from hub_loader.trust.tuf_client import GivenRoot, root_of, with_metadata
from hub_loader.trust.tuf_keys import signer_of
from hub_loader.trust.tuf_names import METADATA_URL, PUBLISH_URL, role_of, target_of
from hub_loader.trust.tuf_updater import fetch_role

if TYPE_CHECKING:
    from hub_loader.trust.keys import PrivateKey

_ATTEMPTS = 8
_MAX_BYTES = 8 << 20
DAYS = 365
Edit = Callable[[dict[str, TargetFile]], None]


@dataclass(frozen=True)
class Publisher:
    """Who publishes for `org`, on which hub, from which root of it, with which key."""

    config: Config
    root: GivenRoot
    org: str
    key: PrivateKey
    days: float = DAYS

    def check(self) -> None:
        """Raise unless the hub's TUF metadata is right and the key may publish; changes nothing.

        Raises:
            AuthenticationError: the key is not one of the organization's.
            SignatureError, DownloadError: as for readers.
        """
        self._before()

    def publish(self, repo_id: str, version: int, commit: str, index: bytes) -> int | None:
        """Make index.json at a commit the target of its version; the role's version, None if it is so already.

        Raises as `change`.
        """
        path = str(target_of(repo_id, version))
        file = TargetFile(len(index), {"sha256": sha256_hex(index)}, path, {"custom": {"commit": commit}})

        def edit(targets: dict[str, TargetFile]) -> None:
            targets[path] = file

        return self.change(edit)

    def yank(self, repo_id: str, version: int, commit: str, reason: str | None) -> int | None:
        """Take a version back, with a reason for readers, or offer it again (None); `commit` is where it is now.

        Raises as `change`, and UsageError if it is not listed.
        """
        path = str(target_of(repo_id, version))

        def edit(targets: dict[str, TargetFile]) -> None:
            if path not in targets:
                raise UsageError(f"{path} is no target of this hub: publish it with --sign-key first")
            custom = {"commit": commit} | ({} if reason is None else {"yanked": reason})
            targets[path].unrecognized_fields["custom"] = custom

        return self.change(edit)

    def change(self, edit: Edit, *, anew: bool = False, unverified: bool = False) -> int | None:
        """Edit the organization's targets and publish them; None if nothing changes and not `anew`.

        `unverified` builds on what the hub shows even if no key that may sign for it any more has signed it.

        Raises:
            AuthenticationError: the key, or the token, may not publish for the organization.
            SignatureError: the hub's TUF metadata breaks a rule, or what is there was signed by a revoked key.
            DownloadError: the hub cannot be reached, or refuses.
        """
        for _ in range(_ATTEMPTS):
            version, before = self._current(unverified)
            targets = _copy(before)
            edit(targets)
            if targets == before and not anew:
                return None
            if self._offer(version + 1, targets):
                return version + 1
        raise DownloadError(
            f"{self.org}: others have published {_ATTEMPTS} times while this tried to: try again"
        )

    def targets(self, *, unverified: bool = False) -> dict[str, TargetFile]:
        """What is listed now. Raises as `change`."""
        return _copy(self._current(unverified)[1])

    def _current(self, unverified: bool) -> tuple[int, dict[str, TargetFile]]:
        version, before = self._before()
        if version and before is None:
            before = self._unverified(version, unverified)
        return version, {} if before is None else before.targets

    def _before(self) -> tuple[int, Targets | None]:
        top, version, targets = with_metadata(
            self.root, lambda folder: fetch_role(self.config, folder, self.root.data, self.org)
        )
        keyid = signer_of(self.key).public_key.keyid
        roles = (top.delegations.roles if top.delegations else None) or {}
        role = roles.get(role_of(self.org))
        if role is None or keyid not in role.keyids:
            raise AuthenticationError(
                f"{self.config.endpoint} does not let the key {keyid[:16]} publish for {self.org!r}: its operator "
                "delegates with `khub registry trust delegate`"
            )
        return version, targets

    def _unverified(self, version: int, allowed: bool) -> Targets:
        if not allowed:
            raise SignatureError(
                f"{self.org}: what is published was signed by a key that has been revoked: look through it, then "
                f"`khub resign {self.org} --unverified`"
            )
        what = f"the targets of {self.org}"
        with Hub(self.config).stream(f"{METADATA_URL}{version}.{role_of(self.org)}.json", what) as response:
            data = b"".join(chunks(response, what, None, _MAX_BYTES))
        try:
            return Metadata[Targets].from_bytes(data).signed
        except DeserializationError:
            raise DownloadError(f"{what}: {self.config.endpoint} did not answer with metadata") from None

    def _offer(self, version: int, targets: dict[str, TargetFile]) -> bool:
        """Sign and upload a version; False if another has come first."""
        expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=self.days)
        metadata = Metadata(Targets(version=version, expires=expires, targets=targets))
        metadata.sign(signer_of(self.key))
        headers = {"user-agent": self.config.user_agent, "content-type": "application/json"}
        if self.config.token:
            headers["authorization"] = f"Bearer {self.config.token}"
        url = f"{self.config.endpoint}{PUBLISH_URL}{self.org}"
        try:
            response = session().post(url, content=metadata.to_bytes(), headers=headers, timeout=60)
        except http_errors() as error:
            raise DownloadError(f"cannot reach {url} ({error}): check the network and HF_ENDPOINT") from None
        if response.status_code == 412:
            return False
        if response.status_code in (401, 403):
            raise AuthenticationError(f"{self.org}: {_sentence(response)}")
        if response.status_code != 200:
            raise DownloadError(
                f"publishing the targets of {self.org} failed with HTTP {response.status_code}: {_sentence(response)}"
            )
        return True


def _copy(targets: Mapping[str, TargetFile]) -> dict[str, TargetFile]:
    return {path: TargetFile.from_dict(file.to_dict(), path) for path, file in targets.items()}


def publisher(config: Config, org: str, key: PrivateKey) -> Publisher | None:
    """Who publishes to the hub of `config`; None for a hub that is no TUF repository.

    Raises:
        UsageError: the hub is one, and its root was not given here.
    """
    root = root_of(config.endpoint)
    if root is not None:
        return Publisher(config, root, org, key)
    with Hub(config).stream(f"{METADATA_URL}timestamp.json", "the hub's TUF metadata") as response:
        if response.status_code != 200:
            return None
    raise UsageError(
        f"{config.endpoint} is a TUF repository: get its root.json from its operator by a way you trust, and run "
        f"`khub trust add --hub {config.endpoint} --root root.json`"
    )


def listing(
    by: Publisher, without: Sequence[str], *, unverified: bool, dry_run: bool
) -> tuple[dict[str, str], int | None]:
    """Sign the organization's targets again; their SHA-256 by path, and the version, None for a dry run.

    Raises as `Publisher.change`, and UsageError where one of `without` is not listed.
    """
    digests: dict[str, str] = {}

    def edit(targets: dict[str, TargetFile]) -> None:
        for path in without:
            if targets.pop(path, None) is None:
                raise UsageError(f"{path} is no target of {by.org}: see --dry-run")
        digests.clear()
        digests.update({path: file.hashes["sha256"] for path, file in sorted(targets.items())})

    if dry_run:
        edit(by.targets(unverified=unverified))
        return digests, None
    return digests, by.change(edit, anew=True, unverified=unverified)


def _sentence(response: Any) -> str:
    try:
        return str(response.json()["error"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
