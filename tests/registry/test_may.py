"""The decision who may do what: its rules, over every identity and action."""

from __future__ import annotations

import dataclasses
from itertools import product
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.accounts.identity import ANONYMOUS, Identity, Kind, Role, Scope
from registry.accounts.may import Action, Allowed, Cause, Refused, RepoFacts, may

ORGS, NAMES = ["acme", "umbrella"], ["relu", "gelu"]
CHANGES = [Action.WRITE, Action.CREATE, Action.MANAGE, Action.MANAGE_ORG]


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    kind = draw(st.sampled_from([Kind.USER, Kind.ORG, Kind.PUBLISHER]))
    scope = draw(st.sampled_from(Scope))
    only_org = draw(st.sampled_from([None, *ORGS]))
    only_repo = draw(st.sampled_from([None, *NAMES])) if only_org else None
    limits = {"scope": scope, "only_org": only_org, "only_repo": only_repo}
    if kind is Kind.USER:
        roles = draw(st.dictionaries(st.sampled_from(ORGS), st.sampled_from(Role)))
        operator = draw(st.booleans())
        return Identity(kind, "ada", roles=MappingProxyType(roles), operator=operator, **limits)
    org = draw(st.sampled_from(ORGS))
    role = Role.OWNER if kind is Kind.ORG else Role.WRITER
    return Identity(kind, org, roles=MappingProxyType({org: role}), **limits)


facts = st.builds(
    RepoFacts,
    org=st.sampled_from(ORGS),
    name=st.sampled_from([None, *NAMES]),
    private=st.booleans(),
    gated=st.booleans(),
    granted=st.booleans(),
)
actions = st.sampled_from([Action.READ, *CHANGES])


def allowed(identity: Identity, action: Action, repo: RepoFacts | None) -> bool:
    return isinstance(may(identity, action, repo), Allowed)


@given(action=actions, repo=facts)
def test_anonymous_may_read_what_is_public_and_nothing_else(action: Action, repo: RepoFacts) -> None:
    public = not repo.private and not repo.gated
    assert allowed(ANONYMOUS, action, repo) == (action is Action.READ and public)


@given(identity=identities(), action=actions, repo=facts)
def test_token_is_never_worth_less_than_none(identity: Identity, action: Action, repo: RepoFacts) -> None:
    assert allowed(identity, action, repo) or not allowed(ANONYMOUS, action, repo)


@given(identity=identities(), action=actions, repo=facts, scope=st.sampled_from(Scope))
def test_lower_scope_allows_nothing_more(
    identity: Identity, action: Action, repo: RepoFacts, scope: Scope
) -> None:
    lower = dataclasses.replace(identity, scope=min(scope, identity.scope))
    assert allowed(identity, action, repo) or not allowed(lower, action, repo)


@given(identity=identities(), action=actions, repo=facts, role=st.sampled_from([None, *Role]))
def test_lower_role_allows_nothing_more(
    identity: Identity, action: Action, repo: RepoFacts, role: Role | None
) -> None:
    held = identity.roles.get(repo.org)
    less = {org: have for org, have in identity.roles.items() if org != repo.org}
    if role is not None and held is not None:
        less[repo.org] = min(role, held)
    weaker = dataclasses.replace(identity, roles=MappingProxyType(less))
    assert allowed(identity, action, repo) or not allowed(weaker, action, repo)


@given(identity=identities(), action=actions, repo=facts)
def test_outside_of_its_limits_a_token_may_do_what_anonymous_may(
    identity: Identity, action: Action, repo: RepoFacts
) -> None:
    if not identity.reaches(repo.org, repo.name):
        assert allowed(identity, action, repo) == allowed(ANONYMOUS, action, repo)


@given(identity=identities(), action=st.sampled_from(CHANGES), repo=facts)
def test_change_takes_scope_and_role_or_an_operator(
    identity: Identity, action: Action, repo: RepoFacts
) -> None:
    if not allowed(identity, action, repo):
        return
    assert identity.scope >= (Scope.ADMIN if action is Action.MANAGE_ORG else Scope.WRITE)
    needed = Role.WRITER if action in (Action.WRITE, Action.CREATE) else Role.OWNER
    member = identity.roles.get(repo.org, 0) >= needed
    operates = identity.operator and identity.scope is Scope.ADMIN and needed is Role.OWNER
    assert member or operates


@given(identity=identities(), action=st.sampled_from(CHANGES), repo=facts, other=facts)
def test_refusal_to_change_tells_nothing_about_the_repository(
    identity: Identity, action: Action, repo: RepoFacts, other: RepoFacts
) -> None:
    same_name = dataclasses.replace(other, org=repo.org, name=repo.name)
    assert may(identity, action, repo) == may(identity, action, same_name)


@given(identity=identities(), repo=facts)
def test_private_repository_is_hidden_from_who_has_no_role(identity: Identity, repo: RepoFacts) -> None:
    private = dataclasses.replace(repo, private=True)
    verdict = may(identity, Action.READ, private)
    if isinstance(verdict, Refused):
        assert verdict.cause is Cause.HIDDEN
    else:
        assert repo.org in identity.roles or (identity.operator and identity.scope is Scope.ADMIN)


@given(identity=identities(), repo=facts)
def test_gated_repository_opens_to_members_and_to_whom_was_let_in(
    identity: Identity, repo: RepoFacts
) -> None:
    gated = dataclasses.replace(repo, private=False, gated=True)
    verdict = may(identity, Action.READ, gated)
    if isinstance(verdict, Refused):
        assert verdict.cause is Cause.GATED
        assert not repo.granted or not identity.reaches(repo.org, repo.name)
    assert allowed(ANONYMOUS, Action.READ, dataclasses.replace(gated, granted=True)) is False


@given(identity=identities())
def test_hub_is_managed_by_operators_alone(identity: Identity) -> None:
    expected = identity.operator and identity.scope is Scope.ADMIN and not identity.limit
    assert allowed(identity, Action.MANAGE_HUB, None) == expected


@given(identity=st.one_of(identities(), st.just(ANONYMOUS)), action=actions, repo=facts)
def test_refusal_is_a_sentence_that_names_the_organization(
    identity: Identity, action: Action, repo: RepoFacts
) -> None:
    verdict = may(identity, action, repo)
    if isinstance(verdict, Refused):
        assert repo.org in verdict.reason and verdict.reason.endswith(".")
        assert (verdict.cause is Cause.CREDENTIALS) == (identity.anonymous and action is not Action.READ)


# The table that the page shows: role or token -> the actions that it allows with a token of scope write.
_TABLE = {
    Role.READER: {Action.READ},
    Role.WRITER: {Action.READ, Action.WRITE, Action.CREATE},
    Role.OWNER: {Action.READ, Action.WRITE, Action.CREATE, Action.MANAGE},
}


@pytest.mark.parametrize(("role", "action"), list(product(Role, [Action.READ, *CHANGES])))
def test_member_with_a_write_token_may_do_what_the_table_says(role: Role, action: Action) -> None:
    member = Identity(Kind.USER, "ada", Scope.WRITE, MappingProxyType({"acme": role}))
    assert allowed(member, action, RepoFacts("acme", "relu", private=True)) == (action in _TABLE[role])


def test_facts_are_needed_for_all_but_the_hub() -> None:
    with pytest.raises(ValueError, match="needs the facts"):
        may(ANONYMOUS, Action.READ, None)
