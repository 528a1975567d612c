"""Which signature is uploaded with a package, and a version's signature on a hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_loader.errors import SignatureError
from hub_loader.manifest import INDEX_NAME, sha256_hex
from hub_loader.trust.dsse import ENVELOPE_NAME as ENVELOPE_NAME
from hub_loader.trust.dsse import MAX_ENVELOPE_BYTES
from hub_loader.trust.evidence import Proof
from hub_loader.trust.judge import prove
from hub_loader.trust.keys import public_of
from hub_loader.trust.sign import sign_index
from hub_loader.trust.statement import key_id

from .statement import STATEMENT_NAME

if TYPE_CHECKING:
    from hub_loader.trust.keys import PrivateKey


def envelope_to_publish(
    package: Path,
    repo_id: str,
    files: Mapping[str, bytes],
    key: PrivateKey | None,
    there: Callable[[], bytes | None],
) -> bytes | None:
    """The envelope for the index.json among `files`; None for a package that is not signed.

    `there` reads the one that the branch has now: it stays if `key` made it for the same files, so that publishing
    again changes nothing, and whatever is signed anew is later than it.

    Raises:
        SignatureError: the package brings one that is not for this index.json or repository, or the publisher has
            taken back what would be signed.
    """
    digest = sha256_hex(files[INDEX_NAME])
    if key is None:
        path = package / ENVELOPE_NAME
        if not path.is_file():
            return None
        data = path.read_bytes()
        proof = prove(data, origin=str(path))
        if (proof.index_sha256, proof.repo_id) != (digest, repo_id):
            raise SignatureError(
                f"{path} signs another {INDEX_NAME} or repository: run `khub sign {package} {repo_id}`"
            )
        return data
    old = there()
    before = _proven(old)
    if old is not None and before is not None and _is_same(before, digest, repo_id, key):
        return old
    if before is not None and before.yanked is not None and before.index_sha256 == digest:
        raise SignatureError(
            f"{repo_id} v{before.version} was taken back ({before.yanked}): publish another build, or run "
            f"`khub yank {repo_id} v{before.version} --undo`"
        )
    signed = next_time(before)
    return sign_index(files[INDEX_NAME], repo_id, key, signed=signed, built=files.get(STATEMENT_NAME))


def next_time(before: Proof | None) -> int:
    """Now, in seconds since 1970; later than what was signed before, whatever the clocks of its signers said."""
    return max(int(time.time()), 0 if before is None else before.signed + 1)


def read_envelope(api: Any, repo_id: str, commit: str, there: Mapping[str, Any]) -> bytes | None:
    """The envelope at a commit, None if its tree (files by path) has none."""
    if ENVELOPE_NAME not in there:
        return None
    if there[ENVELOPE_NAME].size > MAX_ENVELOPE_BYTES:
        raise SignatureError(
            f"{ENVELOPE_NAME} of {repo_id} is larger than any envelope: look at it, then delete it"
        )
    return download(api, repo_id, commit, ENVELOPE_NAME)


def download(api: Any, repo_id: str, commit: str, name: str) -> bytes:
    """A small file of a repository."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="khub-") as folder:
        path = api.hf_hub_download(repo_id, name, repo_type="kernel", revision=commit, local_dir=folder)
        return Path(path).read_bytes()


def _proven(data: bytes | None) -> Proof | None:
    """What the envelope on the hub proves; None where it proves nothing, and will be replaced."""
    try:
        return None if data is None else prove(data, origin=ENVELOPE_NAME)
    except SignatureError:
        return None


def _is_same(proof: Proof, digest: str, repo_id: str, key: PrivateKey) -> bool:
    mine = key_id(public_of(key))
    return (proof.index_sha256, proof.repo_id, proof.key_id, proof.yanked) == (digest, repo_id, mine, None)
