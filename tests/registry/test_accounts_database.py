"""Accounts on both databases: what two processes do at once, what may not be changed, what older folders had."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from shell_tokens import create_token, list_tokens
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from hub_loader.errors import UsageError
from registry.accounts import audit, directory, tokens
from registry.accounts.audit import Actor
from registry.accounts.identity import Identity, Kind, Role, Scope
from registry.accounts.may import Action, Allowed, RepoFacts, may
from registry.accounts.settings import change_settings, read_settings
from registry.accounts.tokens import NewToken
from registry.clock import utc_now
from registry.errors import RepoMovedError, RequestError
from registry.models import Audit
from registry.names import RepoName
from registry.oidc.configured import use_up
from registry.store import Store
from registry.tree import Add, File, blob_oid

OLD_SCHEMA = Path(__file__).with_name("schema-1.sql").read_text()
ACTOR = Actor("user:test", "10.0.0.1", 7)


@pytest.fixture
def store(tmp_path: Path, database: str | None) -> Iterator[Store]:
    store = Store(tmp_path / "data", database)
    yield store
    store.close()


def identify(store: Store, secret: str) -> Identity:
    with store.read() as session:
        return tokens.identify(session, f"Bearer {secret}", utc_now())


def test_audit_when_somebody_changes_or_removes_an_entry_then_the_database_refuses(store: Store) -> None:
    with store.write() as session:
        audit.record(session, ACTOR, "repo.delete", "acme/relu", status=200, why="test")
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(DatabaseError, match="append-only"), store.write() as session:
            session.execute(text(statement))
    with store.read() as session:
        (event,) = audit.events(session)
    assert (event.actor, event.address, event.token_id) == ("user:test", "10.0.0.1", 7)
    assert (event.action, event.subject, event.status, event.detail) == (
        "repo.delete",
        "acme/relu",
        200,
        {"why": "test"},
    )


def test_audit_when_old_entries_are_pruned_then_the_log_says_so_and_refuses_changes_as_before(
    store: Store,
) -> None:
    now = utc_now()
    with store.write() as session:
        for days in (500, 401, 399, 0):
            session.add(
                Audit(
                    at=now - timedelta(days=days),
                    actor="user:ada",
                    address="local",
                    action=f"x{days}",
                    subject="acme",
                    status=0,
                    detail="{}",
                )
            )
    before = now - timedelta(days=400)
    with store.write() as session:
        assert audit.prune(session, ACTOR, before) == 2
    with store.write() as session:
        assert audit.prune(session, ACTOR, before) == 0
    with store.read() as session:
        found = audit.events(session)
    assert sorted(event.action for event in found) == ["audit.prune", "x0", "x399"]
    assert (found[0].action, found[0].actor) == ("audit.prune", "user:test")
    assert found[0].detail == {"before": before.isoformat(), "entries": 2}
    with pytest.raises(DatabaseError, match="append-only"), store.write() as session:
        session.execute(text("DELETE FROM audit"))


def test_audit_when_a_change_fails_then_its_entry_is_gone_too(store: Store) -> None:
    with pytest.raises(UsageError), store.write() as session:
        directory.add_org(session, ACTOR, "acme")
        directory.add_org(session, ACTOR, "acme")
    with store.read() as session:
        assert audit.events(session) == [] and directory.list_orgs(session) == []


def test_audit_of_an_organization_is_not_that_of_one_whose_name_begins_alike(store: Store) -> None:
    subjects = ["acme", "acme/relu", "acme2/relu", "acmeX", "ac_e/relu", "other/acme"]
    with store.write() as session:
        for subject in subjects:
            audit.record(session, ACTOR, "x", subject)
    with store.read() as session:
        assert [event.subject for event in audit.events(session, org="acme")] == ["acme/relu", "acme"]
        assert [event.subject for event in audit.events(session, org="ac_e")] == ["ac_e/relu"]


def test_proof_when_used_by_several_at_once_then_one_has_it(store: Store) -> None:
    start = threading.Barrier(8)

    def use(_: int) -> bool:
        start.wait()
        try:
            with store.write() as session:
                use_up(session, "https://issuer.example", "id", utc_now() + timedelta(minutes=5))
        except RequestError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(use, range(8))) == [False] * 7 + [True]


def test_proof_when_it_has_expired_then_it_takes_no_more_room(store: Store) -> None:
    for jti, minutes in (("old", -1), ("new", 5)):
        with store.write() as session:
            use_up(session, "https://issuer.example", jti, utc_now() + timedelta(minutes=minutes))
    with store.read() as session:
        assert session.execute(text("SELECT count(*) FROM used_proofs")).scalar_one() == 1


def test_quota_when_commits_come_at_once_then_together_they_stay_below_it(store: Store) -> None:
    repos = [RepoName("acme", f"k{n}") for n in range(6)]
    with store.write() as session:
        directory.ensure_org(session, ACTOR, "acme").quota_bytes = 350
    for repo in repos:
        store.create_repo(repo, "acme")
    start = threading.Barrier(len(repos))

    def commit(repo: RepoName) -> bool:
        content = str(repo).encode()
        file = File(blob_oid(content), hashlib.sha256(content).hexdigest(), 100)
        start.wait()
        try:
            store.commit(repo, "main", [Add("x", file)], message="m", author="acme")
        except RequestError as error:
            assert error.code == "QuotaExceeded"
            return False
        return True

    with ThreadPoolExecutor(len(repos)) as pool:
        assert sum(pool.map(commit, repos)) == 3


def test_member_when_given_roles_then_the_last_one_counts(store: Store) -> None:
    with store.write() as session:
        directory.add_org(session, ACTOR, "acme")
        directory.add_user(session, ACTOR, "ada")
        user = directory.find_user(session, "ada")
        secret, _ = tokens.issue(session, NewToken(Scope.WRITE, user_id=user.id), utc_now())
    facts = RepoFacts("acme", "relu")
    assert not isinstance(may(identify(store, secret), Action.WRITE, facts), Allowed)
    for role, allowed in ((Role.WRITER, True), (Role.READER, False), (Role.OWNER, True)):
        with store.write() as session:
            directory.set_role(session, ACTOR, "acme", "ada", role)
        assert isinstance(may(identify(store, secret), Action.WRITE, facts), Allowed) is allowed
    with store.write() as session:
        directory.remove_user(session, ACTOR, "ada")
    assert identify(store, secret).anonymous


def test_organization_when_removed_then_its_tokens_end_and_its_repositories_need_a_word(store: Store) -> None:
    secret = create_token(store, "acme", can_write=True)
    store.create_repo(RepoName("acme", "relu"), "acme")
    with pytest.raises(UsageError, match="--with-repositories"), store.write() as session:
        directory.remove_org(session, ACTOR, "acme", with_repositories=False)
    assert identify(store, secret).name == "acme"
    with store.write() as session:
        directory.remove_org(session, ACTOR, "acme", with_repositories=True)
    assert identify(store, secret).anonymous and list_tokens(store) == []


def test_token_is_of_an_organization_or_of_a_user_and_never_of_both_or_neither(store: Store) -> None:
    with store.write() as session:
        org = directory.ensure_org(session, ACTOR, "acme").id
        directory.add_user(session, ACTOR, "ada")
        user = directory.find_user(session, "ada").id
    for new in (NewToken(Scope.READ), NewToken(Scope.READ, org_id=org, user_id=user)):
        with pytest.raises(DatabaseError), store.write() as session:
            tokens.issue(session, new, utc_now())


def test_secret_is_nowhere_in_the_database(store: Store) -> None:
    secret = create_token(store, "acme", can_write=False)
    with store.read() as session:
        row = session.execute(text("SELECT * FROM tokens")).mappings().one()
    assert secret not in str(dict(row)) and row["sha256"] == hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize(
    "header", ["", "Basic abc", "Bearer", "Bearer  ", "bearer x", "Bearer \x00", "Bearer é"]
)
def test_identify_when_the_header_is_no_token_then_anonymous_with_a_reason(store: Store, header: str) -> None:
    with store.read() as session:
        identity = tokens.identify(session, header, utc_now())
    assert identity.anonymous and identity.kind is Kind.ANONYMOUS and identity.unknown


def test_settings_when_changed_and_taken_back_then_others_stay(store: Store) -> None:
    with store.write() as session:
        change_settings(session, ACTOR, {"public_url": "https://hub.example", "rate_token": 5.0})
        change_settings(session, ACTOR, {"rate_token": None})
    with store.read() as session:
        settings = read_settings(session)
    assert (settings.public_url, settings.rate_token, settings.burst) == ("https://hub.example", None, 10.0)


def test_tokens_of_a_folder_older_than_accounts_work_as_they_did(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with sqlite3.connect(data / "registry.sqlite") as old:
        old.executescript(OLD_SCHEMA)
        old.execute("INSERT INTO orgs VALUES (1, 'acme')")
        for number, (secret, can_write) in enumerate((("khub_reads", 0), ("khub_writes", 1)), 1):
            digest = hashlib.sha256(secret.encode()).hexdigest()
            row = (number, 1, digest, secret[:9], can_write, "2026-01-02 03:04:05.000000")
            old.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)", row)
    old.close()
    store = Store(data)
    reads, writes = (identify(store, secret) for secret in ("khub_reads", "khub_writes"))
    assert (reads.name, reads.scope, writes.scope) == ("acme", Scope.READ, Scope.WRITE)
    for action in (Action.CREATE, Action.WRITE, Action.MANAGE):
        assert isinstance(may(writes, action, RepoFacts("acme", "relu")), Allowed)
        assert not isinstance(may(reads, action, RepoFacts("acme", "relu")), Allowed)
    assert [(token.org, token.can_write) for token in list_tokens(store)] == [("acme", False), ("acme", True)]
    store.close()


def test_login_when_it_ended_long_ago_then_it_takes_no_more_room(store: Store) -> None:
    now = utc_now()
    create_token(store, "acme", can_write=True)
    with store.write() as session:
        org = directory.find_org(session, "acme").id
        ends = [now - timedelta(days=31), now - timedelta(days=29), now + timedelta(hours=1), now]
        made = [
            tokens.issue(session, NewToken(Scope.READ, org_id=org, parent_id=1, expires_at=end), now)[1].id
            for end in ends
        ]
        tokens.forget_ended(session, made[-1], now)
    with store.read() as session:
        left = session.execute(text("SELECT id FROM tokens ORDER BY id")).scalars().all()
    assert left == [1, *made[1:]]


def test_names_when_they_differ_by_case_alone_then_the_second_is_refused_and_the_first_is_kept(
    store: Store,
) -> None:
    with store.write() as session:
        directory.add_org(session, ACTOR, "Acme")
        directory.add_user(session, ACTOR, "Ada")
    for add, name, said in (
        (directory.add_org, "ACME", "'Acme' is an organization"),
        (directory.add_org, "ada", "'Ada' is a user"),
        (directory.add_user, "ADA", "'Ada' is a user"),
        (directory.add_user, "acme", "'Acme' is an organization"),
    ):
        with pytest.raises(UsageError, match=said), store.write() as session:
            add(session, ACTOR, name)
    for org in ("aCME", "ada", "Ada"):
        with pytest.raises(RequestError, match="is taken by the") as refused:
            store.create_repo(RepoName(org, "relu"), "x")
        assert refused.value.status == 409
    assert store.create_repo(RepoName("Acme", "relu"), "x")
    with store.read() as session:
        assert [org.name for org in directory.list_orgs(session)] == ["Acme"]


def test_repository_when_asked_for_in_another_case_then_it_leads_to_the_one_of_that_name(
    store: Store,
) -> None:
    store.create_repo(RepoName("Acme", "ReLU"), "x")
    for org, name in (("acme", "relu"), ("ACME", "ReLU"), ("Acme", "relu")):
        with pytest.raises(RepoMovedError) as moved:
            store.resolve(RepoName(org, name), "main")
        assert (moved.value.org, moved.value.name) == ("Acme", "ReLU")
    store.create_repo(RepoName("Acme", "relu"), "x")  # names of repositories may differ by case alone
    assert store.repo(RepoName("Acme", "relu")).repo == RepoName("Acme", "relu")
    with pytest.raises(RequestError) as absent:
        store.repo(RepoName("acme", "RELU"))  # which of the two?
    assert absent.value.status == 404
