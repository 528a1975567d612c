"""`khub registry org | user | member | token | publisher | audit | settings`: answers, JSON, help, wrong arguments."""

from __future__ import annotations

import argparse
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from registry_command import new_token, registry, registry_json, run

from registry.accounts.command_parts import duration, size

VERBS = {
    "org": ["add", "list", "remove", "trust", "quota"],
    "user": ["add", "list", "remove"],
    "member": ["add", "list", "remove"],
    "token": ["create", "list", "revoke"],
    "publisher": ["add", "list", "remove"],
    "audit": [],
    "settings": [],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_help_of_every_command_says_what_it_does_and_whoever_takes_arguments_shows_an_example(
    data: Path,
) -> None:
    code, top, _ = run(data, "--help")
    assert code == 0
    for noun, verbs in VERBS.items():
        assert re.search(rf"^ +{noun}\b", top, re.MULTILINE)
        for verb in verbs or [""]:
            code, text, _ = run(data, *filter(None, (noun, verb)), "--help")
            assert code == 0 and "--data" in text and "--json" in text
            if verb not in ("list", "remove", ""):
                assert f"khub registry {noun} {verb}" in text


def test_token_create_when_for_an_organization_then_the_last_line_is_the_token_as_it_always_was(
    data: Path,
) -> None:
    lines = registry(data, "token", "create", "--org", "acme", "--write").splitlines()
    assert lines[0] == "A token to write as 'acme'; it is not shown again:"
    assert lines[-1].startswith("khub_") and len(lines) == 2
    made = registry_json(data, "token", "create", "--org", "acme")
    assert {"org": "acme", "scope": "read"}.items() <= made.items()
    assert registry_json(data, "org", "list")[0]["name"] == "acme"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["token", "create"], "--org ORG"),
        (["token", "create", "--org", "acme", "--write", "--scope", "read"], "contradict"),
        (["token", "create", "--org", "acme", "--limit", "other/x"], "outside of --org"),
        (["token", "create", "--org", "acme", "--limit", "acme/.."], "cannot name a repository"),
        (["token", "create", "--org", "api"], "cannot name an organization"),
        (["token", "create", "--user", "nobody"], "No user 'nobody'"),
        (["token", "create", "--org", "acme", "--expires", "soon"], "write 30m, 12h"),
        (["token", "revoke", "99"], "No token 99"),
        (["org", "add", "kernels"], "cannot name an organization"),
        (["org", "remove", "nothing"], "No organization 'nothing'"),
        (["org", "quota", "acme", "--bytes", "much"], "is no size"),
        (["user", "remove", "nobody"], "No user 'nobody'"),
        (["user", "add", "a/b"], "cannot name"),
        (["member", "add", "--org", "acme", "--user", "nobody"], "No"),
        (["member", "add", "--org", "acme", "--user", "x", "--role", "king"], "invalid choice"),
        (["publisher", "add", "--org", "acme", "--repository", "alone"], "OWNER/NAME"),
        (["publisher", "add", "--org", "acme", "--repository", "a/b/c"], "OWNER/NAME"),
        (
            ["publisher", "add", "--org", "acme", "--repository", "a/b", "--issuer", "http://ci.example"],
            "is no issuer",
        ),
        (
            ["publisher", "add", "--org", "acme", "--repository", "a/b", "--issuer", "https://ci.example/?x"],
            "is no issuer",
        ),
        (["publisher", "remove", "5"], "No publisher 5"),
        (["settings", "--public-url", "hub.example"], "is no address"),
        (["settings", "--rate-token", "-1"], "no positive number"),
        (["settings", "--rate-token", "nan"], "no positive number"),
    ],
)  # fmt: skip
def test_command_when_an_argument_is_wrong_then_it_says_which_and_changes_nothing(
    data: Path, arguments: list[str], words: str
) -> None:
    code, out, error = run(data, *arguments)
    assert code == 2 and words in error and out == ""
    assert registry_json(data, "org", "list") == [] and registry_json(data, "audit") == []


def test_lists_when_empty_then_they_say_how_to_begin_and_json_is_empty(data: Path) -> None:
    for noun in ("org", "user", "token", "publisher"):
        assert f"khub registry {noun}" in registry(data, noun, "list")
        assert registry_json(data, noun, "list") == []
    assert registry(data, "audit") == "Nothing like that happened.\n"


def test_lists_when_filled_then_lines_and_json_tell_the_same(data: Path) -> None:
    registry(data, "user", "add", "ada", "--full-name", "Ada Lovelace", "--operator")
    registry(data, "org", "add", "acme")
    registry(data, "member", "add", "--org", "acme", "--user", "ada", "--role", "owner")
    new_token(data, "--user", "ada", "--scope", "admin", "--label", "laptop", "--expires", "8w")
    registry(
        data, "publisher", "add", "--org", "acme", "--repository", "gh/k", "--kernel", "relu", "--ref", "v*"
    )
    assert registry(data, "user", "list") == "ada (Ada Lovelace): operator, owner of acme\n"
    assert registry_json(data, "user", "list")[0]["roles"] == {"acme": "owner"}
    assert registry(data, "member", "list", "--org", "acme") == "owner   ada\n"
    assert registry_json(data, "member", "list", "--org", "acme") == [{"user": "ada", "role": "owner"}]
    assert re.search(
        r"admin  khub_.{4}\.\.\.  .* UTC  ada, until .*, never used, laptop", registry(data, "token", "list")
    )
    assert "acme/relu  gh/k ref=v*" in registry(data, "publisher", "list")
    actions = [event["action"] for event in reversed(registry_json(data, "audit"))]
    assert actions == ["user.add", "org.add", "member.set", "token.create", "publisher.add"]
    assert registry_json(data, "audit", "--since", "1h", "--action", "org.add")[0]["subject"] == "acme"
    assert registry_json(data, "audit", "--actor", "nobody") == []


def test_quota_when_set_and_taken_back_then_others_stay(data: Path) -> None:
    registry(data, "org", "add", "acme")
    assert "bytes 5368709120, max-file 2147483648" in registry(
        data, "org", "quota", "acme", "--bytes", "5G", "--max-file", "2G"
    )
    shown = registry_json(data, "org", "quota", "acme", "--bytes", "none")
    assert (shown["quota_bytes"], shown["max_file_bytes"], shown["used_bytes"]) == (None, 2 << 30, 0)
    registry(data, "org", "quota", "acme")
    assert len(registry_json(data, "audit", "--action", "org.quota")) == 2


def test_settings_when_shown_then_they_are_those_that_were_set(data: Path) -> None:
    registry(
        data, "settings", "--public-url", "https://hub.example/", "--rate-address", "20", "--max-file", "4G"
    )
    shown = registry_json(data, "settings")
    assert (shown["public_url"], shown["rate_address"], shown["rate_token"]) == (
        "https://hub.example",
        20.0,
        None,
    )
    assert shown["max_file_bytes"] == 4 << 30
    assert len(registry_json(data, "audit")) == 1


def test_audit_when_read_as_json_then_each_entry_has_every_field(data: Path) -> None:
    registry(data, "org", "add", "acme")
    (event,) = json.loads(registry(data, "audit", "--json"))
    assert set(event) == {"id", "at", "actor", "token_id", "address", "action", "subject", "status", "detail"}
    assert event["actor"].startswith("cli:") and event["at"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("1024", 1024), ("500M", 500 << 20), ("2g", 2 << 30), ("none", None)]
)  # fmt: skip
def test_size_when_well_formed_then_bytes(text: str, value: int | None) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "x", "١", "1" * 30])
def test_size_when_malformed_then_an_error(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size(text)


def test_duration_when_well_formed_then_so_long() -> None:
    assert [duration(text) for text in ("30m", "12h", "90d", "8w")] == [
        timedelta(minutes=30),
        timedelta(hours=12),
        timedelta(days=90),
        timedelta(weeks=8),
    ]
    for text in ("", "d", "90", "1.5h", "-1d", "1y", "999999d", "١d"):
        with pytest.raises(argparse.ArgumentTypeError):
            duration(text)
