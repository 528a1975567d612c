"""Envelope, statement and judgement: what is read, what is never accepted, and the table of docs/trust.md."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader.errors import SignatureError, UsageError
from hub_loader.manifest import sha256_hex
from hub_loader.policy import Policy
from hub_loader.trust.dsse import MAX_ENVELOPE_BYTES, Envelope, Signature, pae, parse_envelope
from hub_loader.trust.evidence import (
    Evidence,
    Proof,
    PublicKey,
    Seen,
    SeenRef,
    SeenYank,
    TrustedKey,
    TufTarget,
)
from hub_loader.trust.judge import after, judge, prove
from hub_loader.trust.keys import parse_private, parse_public_key, public_line, public_of
from hub_loader.trust.sign import sign_index
from hub_loader.trust.statement import PAYLOAD_TYPE, key_id, read_statement, release_statement

GOLDEN = Path(__file__).parent / "golden"
INDEX = (GOLDEN / "index.json").read_bytes()
# The key of RFC 8410's example 10.3: everybody has it.
PEM = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""
KEY = parse_private(PEM, str, origin="the example")
PUBLIC = public_of(KEY, "example")
MINE = TrustedKey(key_id(PUBLIC), "example")
ENVELOPE = sign_index(INDEX, "org/demo", KEY, signed=1_700_000_000)
PROOF = prove(ENVELOPE, origin="x")
ORIGIN = "index.json.dsse of org/demo"
HERE = Evidence("org/demo", f"v{PROOF.version}", sha256_hex(INDEX), 0.0, len(INDEX), PROOF, (MINE,))
CLOSED, OPEN, NAMED = Policy(), Policy(everything=True), Policy(repo_ids=frozenset({"org/demo"}))
PUBLIC_HUB = Policy(hub_word=True)

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
printable = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=40)
envelopes = st.builds(
    Envelope,
    printable,
    st.binary(max_size=200),
    st.lists(st.builds(Signature, printable, st.binary(max_size=80)), min_size=1, max_size=3).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def test_envelope_is_the_golden_one_and_proves_what_it_says() -> None:
    assert (GOLDEN / "index.json.dsse").read_bytes() == ENVELOPE
    assert replace(PROOF, key=PUBLIC) == Proof(
        sha256_hex(INDEX), "org/demo", json.loads(INDEX)["version"], 1_700_000_000, PUBLIC, MINE.id
    )
    assert public_line(PUBLIC) == "khub-ed25519 Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE= example"


def test_pae_is_that_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(texts, st.binary(), texts, st.binary())
def test_pae_of_different_contents_is_different(kind: str, data: bytes, other: str, more: bytes) -> None:
    assert (pae(kind, data) == pae(other, more)) == ((kind, data) == (other, more))


@given(envelopes)
def test_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert parse_envelope(envelope.to_json(), origin="x") == envelope


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_by_name_and_never_crashes(data: bytes) -> None:
    with pytest.raises(SignatureError, match=ORIGIN):
        prove(data, origin=ORIGIN)


@given(json_values)
def test_payload_that_is_no_statement_is_refused_though_it_is_signed(value: object) -> None:
    payload = json.dumps(value).encode()
    signature = Signature(MINE.id, KEY.sign(pae(PAYLOAD_TYPE, payload)))
    with pytest.raises(SignatureError, match="signs no release"):
        prove(Envelope(PAYLOAD_TYPE, payload, (signature,)).to_json(), origin="x")


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_envelope_with_one_byte_changed_never_proves_anything_else(place: int, change: int) -> None:
    data = bytearray(ENVELOPE)
    data[place] ^= change
    with contextlib.suppress(SignatureError):  # white space outside the signed payload proves the same
        assert prove(bytes(data), origin="x") == PROOF


@given(st.integers(0, 10), st.binary(min_size=1, max_size=20))
def test_payload_that_was_changed_is_refused(place: int, inserted: bytes) -> None:
    envelope = parse_envelope(ENVELOPE, origin="x")
    spot = place * len(envelope.payload) // 11
    payload = envelope.payload[:spot] + inserted + envelope.payload[spot:]
    with pytest.raises(SignatureError):
        prove(replace(envelope, payload=payload).to_json(), origin="x")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"payloadType"', '"payload_type"'),
        ('"signatures"', '"more": 1, "signatures"'),
        ('"payloadType"', '"payload": "e30=", "payloadType"'),  # a name twice
        ("application/vnd.in-toto+json", "application/json"),
        (f'"keyid": "{MINE.id}"', '"keyid": "another"'),
        (f'"keyid": "{MINE.id}"', '"keyid": null'),
        ('"sig": "', '"sig": "\\n'),
        ('"signatures": [', '"signatures": [' + ", ".join(['{"keyid": "a", "sig": "AA=="}'] * 16) + ", "),
    ],
)
def test_envelope_that_is_written_otherwise_is_refused(old: str, new: str) -> None:
    text = ENVELOPE.decode()
    assert old in text
    with pytest.raises(SignatureError):
        prove(text.replace(old, new, 1).encode(), origin="x")


def test_envelope_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(SignatureError, match=f"no envelope has more than {MAX_ENVELOPE_BYTES}"):
        parse_envelope(b" " * (MAX_ENVELOPE_BYTES + 1), origin="x")


def test_second_signature_of_the_same_key_that_is_wrong_is_refused() -> None:
    envelope = parse_envelope(ENVELOPE, origin="x")
    with pytest.raises(SignatureError, match="is not what the key"):
        prove(
            replace(envelope, signatures=(*envelope.signatures, Signature(MINE.id, bytes(64)))).to_json(),
            origin="x",
        )


def test_key_that_the_statement_names_must_have_signed() -> None:
    envelope = parse_envelope(ENVELOPE, origin="x")
    other = parse_private(PEM.replace(b"1Hu", b"1Hv").replace(b"INTu", b"INTv"), str, origin="x")
    theirs = Signature(key_id(public_of(other)), other.sign(pae(PAYLOAD_TYPE, envelope.payload)))
    with pytest.raises(SignatureError, match="has no signature of the key"):
        prove(replace(envelope, signatures=(theirs,)).to_json(), origin="x")


@given(
    repo_id=st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}", fullmatch=True),
    version=st.integers(0, 1 << 39),
    signed=st.integers(0, 1 << 39),
    raw=st.binary(min_size=32, max_size=32),
    yanked=st.none() | printable,
)
def test_statement_is_read_as_it_was_written(
    repo_id: str, version: int, signed: int, raw: bytes, yanked: str | None
) -> None:
    key = PublicKey(raw)
    proof = Proof("ab" * 32, repo_id, version, signed, key, key_id(key), yanked)
    payload = release_statement(proof, None)
    assert read_statement(Envelope(PAYLOAD_TYPE, payload, ()), origin="x") == proof


def test_statement_of_the_build_stays_in_what_is_signed_and_must_be_about_the_index() -> None:
    built = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "index.json", "digest": {"sha256": sha256_hex(INDEX)}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"buildDefinition": {"buildType": "urn:x"}, "runDetails": {"builder": {"id": "urn:y"}}},
    }
    data = sign_index(INDEX, "org/demo", KEY, signed=5, built=json.dumps(built).encode())
    assert prove(data, origin="x").index_sha256 == sha256_hex(INDEX)
    payload = json.loads(parse_envelope(data, origin="x").payload)
    assert payload["predicate"].pop("kernelhub_release")["repository"] == "org/demo"
    assert payload == built
    built["subject"] = [{"name": "index.json", "digest": {"sha256": "00" * 32}}]
    with pytest.raises(SignatureError, match="not about this"):
        sign_index(INDEX, "org/demo", KEY, signed=5, built=json.dumps(built).encode())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519 AAAA",
        "khub-ed25519",
        "khub-ed25519 AAAA",
        "khub-ed25519 " + "A" * 43,
        "khub-ed25519 !",
    ],
)
def test_line_that_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="is not a public key"):
        parse_public_key(line)


@given(st.binary(min_size=32, max_size=32), printable)
def test_public_key_is_read_as_it_was_written(raw: bytes, comment: str) -> None:
    key = PublicKey(raw, comment)
    assert parse_public_key(public_line(key) + "\n") == key


def test_signed_by_a_trusted_key_then_runs_whatever_is_allowed() -> None:
    for policy in (CLOSED, OPEN, NAMED, PUBLIC_HUB):
        verdict = judge(policy, HERE)
        assert (verdict.allowed, verdict.signer) == (True, MINE)
        assert verdict.reason.endswith("of the trust file, on 2023-11-14")
    later = judge(CLOSED, replace(HERE, now=PROOF.signed + 9.9 * 24 * 3600))
    assert later.reason.endswith(", on 2023-11-14, 9 days ago")


@pytest.mark.parametrize("proof", [None, PROOF], ids=["unsigned", "unknown key"])
def test_unsigned_or_unknown_then_runs_only_where_the_caller_or_the_public_hub_says_so(
    proof: Proof | None,
) -> None:
    nobody = replace(HERE, proof=proof, publisher_keys=())
    allowed = {}
    for policy, word in itertools.product((CLOSED, OPEN, NAMED, PUBLIC_HUB), (True, False, None)):
        verdict = judge(policy, replace(nobody, hub_vouches=word))
        allowed[policy, word] = verdict.allowed
        assert not verdict.is_final
        assert verdict.is_open == (policy == PUBLIC_HUB and word is None)
        assert verdict.signer is None
    assert {case for case, yes in allowed.items() if yes} == {
        *((policy, word) for policy in (OPEN, NAMED) for word in (True, False, None)),
        (PUBLIC_HUB, True),
    }
    known = replace(nobody, publisher_keys=(TrustedKey("0" * 64),), hub_vouches=True)
    assert not judge(PUBLIC_HUB, known).allowed  # the user has said who signs for them


REVOKED = replace(MINE, revoked=True)
LATER = SeenRef(PROOF.signed + 5, "cd" * 32, MINE.id)
WRONG = {
    "another index": (replace(HERE, index_sha256="00" * 32), "not the one that was signed"),
    "no index": (replace(HERE, index_sha256=None), "not the one that was signed"),
    "another repository": (replace(HERE, repo_id="org/other"), "the signature is for org/demo"),
    "another version": (replace(HERE, ref="v9"), "the branch v9 shows what was signed as version"),
    "a revoked key": (replace(HERE, publisher_keys=(REVOKED,)), "has revoked"),
    "yanked": (replace(HERE, proof=replace(PROOF, yanked="slow")), "has taken version 3 back: slow"),
    "yanked before": (
        replace(HERE, seen=Seen(yanked={PROOF.index_sha256: SeenYank(PROOF.signed + 1, "slow")})),
        "back: slow",
    ),
    "yanked and unsigned": (
        replace(HERE, proof=None, seen=Seen(yanked={PROOF.index_sha256: SeenYank(PROOF.signed, "slow")})),
        "back: slow",
    ),
    "older than seen": (
        replace(HERE, seen=Seen(refs={"v3": LATER})),
        "5 seconds before what was loaded here last",
    ),
    "newest is older": (
        replace(HERE, newest=True, seen=Seen(highest=4)),
        "its newest version is 3, and 4 was seen",
    ),
    "signed before": (replace(HERE, proof=None, seen=Seen(refs={"v3": LATER})), "is not signed now"),
    "signed before, newest": (
        replace(HERE, newest=True, proof=None, seen=Seen(3, {"v3": LATER})),
        "is not signed now",
    ),
    "no TUF target": (replace(HERE, has_root=True), "TUF metadata does not list it"),
    "another TUF target": (
        replace(HERE, has_root=True, tuf=TufTarget("t", "00" * 32, len(INDEX), frozenset(), 0.0)),
        "not the one that t of the hub's TUF metadata is",
    ),
    "yanked in TUF": (
        replace(HERE, tuf=TufTarget("t", PROOF.index_sha256, len(INDEX), frozenset(), 0.0, "slow")),
        "back: slow",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_then_refused_whatever_is_allowed(case: str) -> None:
    evidence, says = WRONG[case]
    for policy, word in itertools.product((CLOSED, OPEN, NAMED, PUBLIC_HUB), (True, False, None)):
        verdict = judge(policy, replace(evidence, hub_vouches=word))
        assert (verdict.allowed, verdict.is_final) == (False, True)
        assert says in verdict.reason


LISTED = TufTarget("t", PROOF.index_sha256, len(INDEX), frozenset({"ab"}), 0.0)


def test_tuf_target_that_is_right_is_allowed_and_the_signer_is_who_signed_the_envelope() -> None:
    unsigned = judge(CLOSED, replace(HERE, proof=None, publisher_keys=(), has_root=True, tuf=LISTED))
    assert (unsigned.allowed, unsigned.signer, "listed by the key ab" in unsigned.reason) == (
        True,
        None,
        True,
    )
    signed = judge(CLOSED, replace(HERE, publisher_keys=(), has_root=True, tuf=LISTED))
    assert signed.allowed and signed.signer is not None and signed.signer.id == PROOF.key_id


def test_tuf_target_listed_by_a_key_that_the_user_has_revoked_is_refused_whatever_is_allowed() -> None:
    revoked = TrustedKey("ab", revoked=True)
    evidence = replace(HERE, proof=None, publisher_keys=(revoked,), has_root=True, tuf=LISTED)
    verdict = judge(OPEN, evidence)
    assert (verdict.allowed, verdict.is_final) == (False, True) and "has revoked" in verdict.reason
    assert judge(CLOSED, replace(evidence, tuf=replace(LISTED, key_ids=frozenset({"ab", "cd"})))).allowed


def test_tuf_target_that_was_signed_long_ago_is_as_old_as_its_publisher_wants() -> None:
    older = replace(HERE, seen=Seen(9, {"v3": LATER}), has_root=True, tuf=LISTED)
    assert (
        judge(CLOSED, older).allowed and not judge(CLOSED, replace(older, has_root=False, tuf=None)).allowed
    )


def test_commit_that_is_asked_for_by_its_hash_may_be_old() -> None:
    old = replace(HERE, ref=None, seen=Seen(9, {"v3": LATER}))
    assert judge(CLOSED, old).allowed
    assert after(old.seen, old) == old.seen


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=12))
def test_after_any_history_nothing_older_than_what_was_loaded_is_ever_loaded(
    history: list[tuple[int, int, bool]],
) -> None:
    seen, newest, taken_back = Seen(), -1, dict[str, int]()
    for signed, number, is_yank in history:
        digest = f"{number:064x}"
        proof = replace(PROOF, signed=signed, index_sha256=digest, yanked="slow" if is_yank else None)
        evidence = replace(HERE, index_sha256=digest, proof=proof, seen=seen)
        allowed = judge(OPEN, evidence).allowed
        assert allowed == (not is_yank and signed >= newest and signed > taken_back.get(digest, -1))
        if allowed:
            newest = signed
        elif is_yank and signed >= newest:
            taken_back[digest] = max(signed, taken_back.get(digest, -1))
        seen = after(seen, evidence) if allowed or is_yank else seen


def test_what_an_untrusted_key_says_is_not_remembered() -> None:
    stranger = replace(HERE, publisher_keys=(), proof=replace(PROOF, version=1, yanked="slow"))
    assert after(Seen(), stranger) == Seen()
    assert after(Seen(), replace(stranger, proof=PROOF)) == Seen()


def test_base64_in_another_spelling_is_refused() -> None:
    text = ENVELOPE.decode()
    start = text.index('"sig": "') + 8
    signature = text[start : text.index('"', start)]
    other = base64.urlsafe_b64encode(base64.b64decode(signature)).decode()
    if other == signature:
        other = signature.rstrip("=")
    with pytest.raises(SignatureError):
        prove(text.replace(signature, other).encode(), origin="x")


# What mutants of `judge` and `after` survived without: bounds, what is remembered, and whole sentences.


@pytest.mark.parametrize(("seen", "allowed"), [(None, True), (-1, True), (0, True), (1, False)])
def test_newest_version_is_refused_only_below_the_highest_that_was_seen(
    seen: int | None, allowed: bool
) -> None:
    highest = None if seen is None else PROOF.version + seen
    verdict = judge(CLOSED, replace(HERE, newest=True, seen=Seen(highest=highest)))
    assert verdict.allowed is allowed
    if not allowed:
        assert verdict.reason == (
            f"org/demo: its newest version is {PROOF.version}, and {highest} was seen here before: "
            "`khub trust forget org/demo` if the publisher meant it"
        )


@pytest.mark.parametrize(("later", "allowed"), [(-3, True), (0, True), (3, False)])
def test_branch_that_shows_what_was_signed_before_is_refused_and_says_how_long_before(
    later: int, allowed: bool
) -> None:
    known = SeenRef(PROOF.signed + later, PROOF.index_sha256, MINE.id)
    verdict = judge(CLOSED, replace(HERE, seen=Seen(refs={HERE.ref or "": known})))
    assert verdict.allowed is allowed
    assert allowed or "it was signed 3 seconds before what was loaded here last" in verdict.reason


def test_what_was_used_is_remembered_whole_and_the_highest_version_stays() -> None:
    shown = SeenRef(PROOF.signed, PROOF.index_sha256, MINE.id)
    for before, highest in ((None, PROOF.version), (PROOF.version - 1, PROOF.version), (99, 99)):
        assert after(Seen(highest=before), HERE) == Seen(highest=highest, refs={HERE.ref or "": shown})


def test_later_yank_replaces_the_reason_and_an_earlier_or_equal_one_does_not() -> None:
    taken_back = replace(HERE, proof=replace(PROOF, yanked="broken"))
    for signed, reason in (
        (PROOF.signed - 1, "broken"),
        (PROOF.signed, "first"),
        (PROOF.signed + 1, "first"),
    ):
        before = Seen(yanked={PROOF.index_sha256: SeenYank(signed, "first")})
        assert after(before, taken_back).yanked[PROOF.index_sha256].reason == reason


def test_verdicts_are_whole_sentences() -> None:
    unsigned = replace(HERE, proof=None, publisher_keys=())
    cure = "read its code, then allow it with trust_remote_code=['org/demo'] (khub: --trust-remote-code org/demo)"
    said = judge(CLOSED, unsigned)
    assert (said.allowed, said.reason) == (False, f"org/demo: it is not signed: {cure}")
    said = judge(NAMED, unsigned)
    assert (said.allowed, said.reason) == (True, "it is not signed; allowed by trust_remote_code")
    said = judge(PUBLIC_HUB, replace(unsigned, hub_vouches=True))
    assert (said.allowed, said.reason) == (True, "it is not signed; the hub vouches for 'org'")
    said = judge(PUBLIC_HUB, replace(unsigned, hub_vouches=False))
    assert (said.allowed, said.is_open) == (False, False)
    assert said.reason == f"org/demo: it is not signed, and the hub does not vouch for 'org': {cure}"
    said = judge(PUBLIC_HUB, unsigned)
    assert (said.allowed, said.is_open) == (False, True)
    assert said.reason == (
        f"org/demo: it is not signed, and nobody could be asked whether 'org' is to be trusted: {cure}"
    )
    said = judge(CLOSED, replace(HERE, publisher_keys=()))
    assert (said.allowed, said.reason) == (
        False,
        f"org/demo: it is signed by the key {MINE.id[:16]}, which nobody trusts here: compare the key with the "
        f"publisher's and run `khub trust add org KEY`, or {cure}",
    )
    for comment, whose in (("example", " (example)"), ("", "")):
        trusted = TrustedKey(MINE.id, comment, "the trust file")
        said = judge(CLOSED, replace(HERE, publisher_keys=(trusted,), now=PROOF.signed + 86_400.0))
        assert said.reason == (
            f"signed by the key {MINE.id[:16]}{whose} of the trust file, on 2023-11-14, 1 days ago"
        )
