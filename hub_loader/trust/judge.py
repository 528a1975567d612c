"""The rules of trust in one place: what an envelope proves, and whether what is proven may run.

    index.json.dsse                     refused   runs                          runs too, where the caller names it
    a trusted key's, and all is right             always
    none, or a key nobody trusts here   else      on the public hub, if it      yes
                                                  vouches and no key is
                                                  trusted for the namespace
    wrong, of a revoked key, for        always
    another repository, version or
    index, older than seen, yanked

`judge` is pure; so is `prove` but for the library that knows the curve. docs/trust.md is the same for users.
"""

from __future__ import annotations

import time
from dataclasses import replace

from ..errors import SignatureError
from ..policy import Policy
from ..request import versions
from .dsse import pae, parse_envelope
from .evidence import Evidence, Proof, Seen, SeenRef, SeenYank, TrustedKey, Verdict
from .keys import verify
from .statement import read_statement

_DAY_S = 24 * 3600
_SHORT = 16  # digits of a key's id in messages


def prove(envelope: bytes, *, origin: str) -> Proof:
    """What an envelope proves: that the key it names has signed what it says.

    Raises:
        SignatureError: it is malformed, or the signature does not hold.
        MissingExtraError: the library that checks it is not installed.
    """
    parsed = parse_envelope(envelope, origin=origin)
    proof = read_statement(parsed, origin=origin)
    message = pae(parsed.payload_type, parsed.payload)
    mine = [one.value for one in parsed.signatures if one.key_id == proof.key_id]
    if not mine:
        raise SignatureError(f"{origin} has no signature of the key {proof.key_id[:_SHORT]} that it names")
    if not all(verify(proof.key, value, message) for value in mine):
        raise SignatureError(
            f"{origin} is not what the key {proof.key_id[:_SHORT]} has signed: it was changed, do not use the package"
        )
    return proof


def judge(policy: Policy, evidence: Evidence) -> Verdict:
    """Whether the version may run under what the caller allows."""
    wrong = _contradiction(evidence)
    if wrong is not None:
        return Verdict(False, f"{evidence.repo_id}: {wrong}", is_final=True)
    signer = _signer(evidence)
    if signer is not None:
        whose = f" ({signer.comment})" if signer.comment else ""
        when = "" if evidence.proof is None else f", {_age(evidence.proof, evidence.now)}"
        return Verdict(True, f"signed by the key {signer.id[:_SHORT]}{whose} of {signer.where}{when}", signer)
    if evidence.tuf is not None:
        key_id = min(evidence.tuf.key_ids, default="")
        return Verdict(True, f"listed by the key {key_id[:_SHORT]} in the hub's TUF metadata")
    unknown = _what_is_missing(evidence)
    if policy.allows(evidence.repo_id):
        return Verdict(True, f"{unknown}; allowed by trust_remote_code")
    return _by_the_hubs_word(policy, evidence, unknown)


def after(seen: Seen, evidence: Evidence) -> Seen:
    """What is to be remembered of `evidence`, which a trusted key has signed: that it was taken back, or is in use."""
    proof = evidence.proof
    if proof is None or _signer(evidence) is None or _wrong(evidence, proof, but_yanked=True) is not None:
        return seen
    if proof.yanked is not None:
        known = seen.yanked.get(proof.index_sha256)
        if known is not None and known.signed >= proof.signed:
            return seen
        yank = SeenYank(proof.signed, proof.yanked)
        return replace(seen, yanked={**seen.yanked, proof.index_sha256: yank})
    if evidence.ref is None:
        return seen
    highest = proof.version if seen.highest is None else max(seen.highest, proof.version)
    shown = SeenRef(proof.signed, proof.index_sha256, proof.key_id)
    return replace(seen, highest=highest, refs={**seen.refs, evidence.ref: shown})


def _contradiction(evidence: Evidence) -> str | None:
    """What no permission heals, in words; None if there is no such thing."""
    return by_tuf(evidence) or (
        _unproven(evidence) if evidence.proof is None else _wrong(evidence, evidence.proof)
    )


def by_tuf(evidence: Evidence) -> str | None:
    """What the hub's TUF metadata has against the version, in words; None for nothing."""
    target = evidence.tuf
    if target is None:
        return "this hub's TUF metadata does not list it" if evidence.has_root else None
    if (target.sha256, target.length) != (evidence.index_sha256, evidence.index_size):
        return f"index.json is not the one that {target.path} of the hub's TUF metadata is"
    if target.yanked is not None:
        return f"the publisher has taken it back: {target.yanked}"
    revoked = {key.id: key.where for key in evidence.publisher_keys if key.revoked}
    if target.key_ids and target.key_ids <= revoked.keys():
        key_id = min(target.key_ids)
        return f"it is listed by the key {key_id[:_SHORT]}, which {revoked[key_id]} has revoked"
    return None


def _unproven(evidence: Evidence) -> str | None:
    yank = evidence.seen.yanked.get(evidence.index_sha256 or "")
    if yank is not None:
        return f"the publisher has taken it back: {yank.reason}"
    known = None if evidence.ref is None else evidence.seen.refs.get(evidence.ref)
    if known is None:
        return None
    return (
        f"it was signed by the key {known.key_id[:_SHORT]} when it was last loaded here, and is not signed now: "
        f"ask the publisher; `khub trust forget {evidence.repo_id}` if it is meant"
    )


def _wrong(evidence: Evidence, proof: Proof, *, but_yanked: bool = False) -> str | None:
    if proof.index_sha256 != evidence.index_sha256:
        return "index.json is not the one that was signed: do not use it, tell the publisher"
    if proof.repo_id != evidence.repo_id:
        return f"the signature is for {proof.repo_id}: ask the publisher to sign it for this repository"
    revoked = [key for key in evidence.publisher_keys if key.id == proof.key_id and key.revoked]
    if revoked:
        return f"it is signed by the key {proof.key_id[:_SHORT]}, which {revoked[0].where} has revoked"
    if _is_version(evidence.ref) and evidence.ref != f"v{proof.version}":
        return f"the branch {evidence.ref} shows what was signed as version {proof.version}"
    reason = None if but_yanked else _yanked(evidence, proof)
    if reason is not None:
        return f"the publisher has taken version {proof.version} back: {reason}"
    return _rolled_back(evidence, proof)


def _yanked(evidence: Evidence, proof: Proof) -> str | None:
    """The reason of a yank that this proof, or one seen before and not signed over since, states."""
    known = evidence.seen.yanked.get(proof.index_sha256)
    if proof.yanked is None and known is not None and proof.signed <= known.signed:
        return known.reason
    return proof.yanked


def _rolled_back(evidence: Evidence, proof: Proof) -> str | None:
    if (
        evidence.ref is None or evidence.tuf is not None
    ):  # old on purpose: a commit, or listed by its publisher
        return None
    cure = f"`khub trust forget {evidence.repo_id}` if the publisher meant it"
    highest = evidence.seen.highest
    if evidence.newest and highest is not None and proof.version < highest:
        return f"its newest version is {proof.version}, and {highest} was seen here before: {cure}"
    known = evidence.seen.refs.get(evidence.ref)
    if known is not None and proof.signed < known.signed:
        age = known.signed - proof.signed
        return f"it was signed {age} seconds before what was loaded here last: an older one is shown again; {cure}"
    return None


def _signer(evidence: Evidence) -> TrustedKey | None:
    if evidence.proof is None:
        return None
    if (
        evidence.tuf is not None
    ):  # who lists it may be another publisher of the organization than who signed it
        return TrustedKey(
            evidence.proof.key_id, evidence.proof.key.comment, "a publisher that the hub's TUF metadata lists"
        )
    return next((key for key in evidence.publisher_keys if key.id == evidence.proof.key_id), None)


def _age(proof: Proof, now: float) -> str:
    """When it was signed, and how long ago; a signer whose clock is ahead has signed today."""
    day = time.strftime("%Y-%m-%d", time.gmtime(proof.signed))
    days = max(int(now - proof.signed), 0) // _DAY_S
    return f"on {day}, {days} days ago" if days else f"on {day}"


def _what_is_missing(evidence: Evidence) -> str:
    if evidence.proof is None:
        return "it is not signed"
    return f"it is signed by the key {evidence.proof.key_id[:_SHORT]}, which nobody trusts here"


def allowing(repo_id: str) -> str:
    """How a caller, in Python or at a command line, says that this repository may run unsigned."""
    return f"trust_remote_code=[{repo_id!r}] (khub: --trust-remote-code {repo_id})"


def _by_the_hubs_word(policy: Policy, evidence: Evidence, unknown: str) -> Verdict:
    org = evidence.repo_id.partition("/")[0]
    cure = f"read its code, then allow it with {allowing(evidence.repo_id)}"
    if evidence.proof is not None:
        cure = f"compare the key with the publisher's and run `khub trust add {org} KEY`, or {cure}"
    if not policy.hub_word or evidence.publisher_keys:
        return Verdict(False, f"{evidence.repo_id}: {unknown}: {cure}")
    if evidence.hub_vouches:
        return Verdict(True, f"{unknown}; the hub vouches for {org!r}")
    why = f"the hub does not vouch for {org!r}"
    if evidence.hub_vouches is None:
        why = f"nobody could be asked whether {org!r} is to be trusted"
    is_open = evidence.hub_vouches is None
    return Verdict(False, f"{evidence.repo_id}: {unknown}, and {why}: {cure}", is_open=is_open)


def _is_version(ref: str | None) -> bool:
    return ref is not None and versions([ref]) != []
