"""trust_remote_code: what each value allows, on the public hub and on one's own, and that it is enforced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package, unique_id, write_package
from static_hub import StaticHub

import hub_loader
from hub_loader import PolicyError, UsageError, get_kernel
from hub_loader.policy import Policy, make_policy


@pytest.fixture
def public(hub: StaticHub, monkeypatch: pytest.MonkeyPatch) -> StaticHub:
    """The hub, taken for the public one, where nobody signs."""
    hub.signs = False
    monkeypatch.setattr("hub_loader.config._PUBLIC_HOSTS", ("127.0.0.1",))
    return hub


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize(
    ("trust", "everything", "named"),
    [
        (None, False, False),
        (True, True, False),
        (False, False, False),
        (["org/demo"], False, True),
        (("org/demo",), False, True),
    ],
)
def test_make_policy_of_each_value(trust: object, public: bool, everything: bool, named: bool) -> None:
    names = frozenset({"org/demo"}) if named else frozenset()
    assert make_policy(trust, public=public) == Policy(everything, names, hub_word=public)  # type: ignore[arg-type]


@pytest.mark.parametrize("trust", ["org/demo", 1, {"org/demo": True}, ["https://github.com/org"], [1]])
def test_make_policy_of_anything_else_is_an_error_and_never_ignored(trust: object) -> None:
    with pytest.raises(UsageError):
        make_policy(trust, public=False)  # type: ignore[arg-type]


def test_own_hub_then_unsigned_kernels_are_refused_before_any_code_is_fetched_and_its_word_does_not_count(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.signs = False
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub.trusted.add("org")
    for trust in (None, False, ["org/other"]):
        with pytest.raises(
            PolicyError, match=r"org/demo: it is not signed: .*trust_remote_code=\['org/demo'\]"
        ):
            get_kernel("org/demo", trust_remote_code=trust)
    assert not any("/build/" in path or "/organizations/" in path for path in hub.requests)
    with pytest.raises(PolicyError):
        hub_loader.has_kernel("org/demo")
    with pytest.raises(PolicyError):
        hub_loader.install_kernel("org/demo", trust_remote_code=["org/other"])
    assert get_kernel("org/demo", trust_remote_code=["org/demo"]).value() == 1


def test_kernel_that_is_loaded_already_is_still_refused_to_who_does_not_trust_it(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.signs = False
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", trust_remote_code=True)
    with pytest.raises(PolicyError):
        get_kernel("org/demo", trust_remote_code=False)


def test_public_hub_then_only_publishers_it_vouches_for_and_what_is_named(
    public: StaticHub, tmp_path: Path
) -> None:
    public.publish("known/demo", "v1", python_package(tmp_path / "known").folder)
    public.publish("org/demo", "v1", python_package(tmp_path / "org").folder)
    public.trusted.add("known")
    assert get_kernel("known/demo").value() == 1
    with pytest.raises(PolicyError, match="does not vouch for 'org'"):
        get_kernel("org/demo")
    assert get_kernel("org/demo", trust_remote_code=["org/demo"]).value() == 1
    assert get_kernel("org/demo", trust_remote_code=True).value() == 1


def test_publisher_that_the_hub_does_not_know_is_not_trusted(public: StaticHub, tmp_path: Path) -> None:
    public.publish("org/demo", "v1", python_package(tmp_path / "org").folder)
    public.status["/organizations/"] = (404, "")
    with pytest.raises(PolicyError, match="does not vouch"):
        get_kernel("org/demo")


def test_redirect_to_another_owner_is_judged_by_who_answers(public: StaticHub, tmp_path: Path) -> None:
    public.publish("evil/demo", "v1", python_package(tmp_path / "evil").folder)
    public.moved["known/demo"] = "evil/demo"
    public.trusted.add("known")
    for trust in (None, ["known/demo"]):
        with pytest.raises(PolicyError, match="evil/demo"):
            get_kernel("known/demo", trust_remote_code=trust)
        with pytest.raises(PolicyError, match="evil/demo"):
            get_kernel("known/demo", version=1, trust_remote_code=trust)
        with pytest.raises(PolicyError, match="evil/demo"):
            get_kernel("known/demo", revision=f"{1:040x}", trust_remote_code=trust)
    assert not any("/build/" in path for path in public.requests)


def test_what_a_kernel_depends_on_is_judged_too(public: StaticHub, tmp_path: Path) -> None:
    public.publish("evil/base", "v1", python_package(tmp_path / "base", name="base").folder)
    files = {"__init__.py": b""}
    needed = ({"repo-id": "evil/base", "version": 1},)
    top = write_package(
        tmp_path / "top", files, kernel_id=unique_id("top"), name="top", kernel_depends=needed
    )
    public.publish("known/top", "v1", top.folder)
    public.trusted.add("known")
    with pytest.raises(PolicyError, match="evil/base"):
        get_kernel("known/top")


def test_offline_then_the_remembered_word_counts_and_without_one_the_answer_is_no(
    public: StaticHub, tmp_path: Path
) -> None:
    for org in ("known", "org"):
        public.publish(f"{org}/demo", "v1", python_package(tmp_path / org).folder)
    public.trusted.add("known")
    hub_loader.install_kernel("known/demo", version=1)
    hub_loader.install_kernel("org/demo", version=1, trust_remote_code=True)
    code = (
        "import sys, hub_loader, hub_loader.config as c; c._PUBLIC_HOSTS = ('127.0.0.1',)\n"
        "print(hub_loader.get_kernel(sys.argv[1], version=1).value())"
    )
    for org, code_expected in (("known", 0), ("org", 1)):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code.replace("import sys,", "import sys, hub_loader,"),
                f"{org}/demo",
                public.endpoint,
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code_expected, done.stderr
        assert ("nobody could be asked whether 'org'" in done.stderr) == (org == "org")
