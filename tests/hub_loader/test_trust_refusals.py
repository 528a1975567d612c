"""What a hub can do to a signed kernel, each on a real hub over loopback: refused with the reason, nothing fetched."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packages import python_package
from signing import KEY, sign_package, trust_key
from static_hub import StaticHub

import hub_loader
import hub_loader.cli
from hub_loader import PolicyError, get_kernel, install_kernel
from hub_loader.config import load_config
from hub_loader.errors import DownloadError, MissingExtraError, SignatureError, UsageError
from hub_loader.pinned import pinned_version
from hub_loader.policy import Policy
from hub_loader.request import Request
from hub_loader.trust.dsse import ENVELOPE_NAME
from hub_loader.trust.gate import admit_source
from hub_loader.trust.keys import generate, public_of
from hub_loader.trust.statement import key_id
from hub_loader.trust.trusted import change_trust

OTHER = generate()
ID = key_id(public_of(KEY))
PROCESS = "import hub_loader; print(hub_loader.get_kernel('org/demo', version=1{}).value())"
NO_LIBRARY = "import sys; sys.modules['cryptography'] = None\n"

Put = Callable[..., str]


@pytest.fixture
def put(hub: StaticHub, tmp_path: Path) -> Put:
    """Publish a package of org/demo, signed as the arguments say; `at` is the signed time. Returns the commit."""
    numbers = iter(range(100))

    def put(
        value: int = 1,
        *,
        branch: str = "v1",
        repo_id: str = "org/demo",
        at: int = 100,
        sign: bool = True,
        **more: Any,
    ) -> str:
        hub.signs = False
        version = more.pop("version", int(branch[1:]) if branch[1:].isdigit() else 1)
        package = python_package(tmp_path / f"source{next(numbers)}", value=value, version=version)
        if sign:
            sign_package(package.folder, repo_id, signed=at, **more)
        return hub.publish("org/demo", branch, package.folder)

    trust_key(hub.endpoint, "org")
    return put


def forget_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process, which asks the hub again."""
    monkeypatch.setattr("hub_loader.entry._modules", {})
    monkeypatch.setattr("hub_loader.pinned._versions", {})
    monkeypatch.setenv("KHUB_REFRESH", "0")


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(hub: StaticHub, says: str, error: type[Exception] = SignatureError, **options: Any) -> None:
    """Refused with this sentence whatever the caller allows, and no file of a variant was asked for."""
    hub.clear()
    for trust in (None, True, ["org/demo"]):
        with pytest.raises(error, match=says):
            get_kernel("org/demo", trust_remote_code=trust, **options)
    assert not any("/build/" in path for path in hub.requests)


def test_signed_by_a_trusted_key_then_loads_and_says_so(
    hub: StaticHub, put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    put(7)
    caplog.set_level(logging.DEBUG, "hub_loader")
    assert get_kernel("org/demo", version=1).value() == 7
    assert f"signed by the key {ID[:16]} (tests)" in caplog.text


def test_unsigned_then_refused_unless_the_caller_names_it(hub: StaticHub, put: Put) -> None:
    put(7, sign=False)
    for trust in (None, False, ["org/other"]):
        with pytest.raises(
            PolicyError, match=r"org/demo: it is not signed: .*trust_remote_code=\['org/demo'\]"
        ):
            get_kernel("org/demo", version=1, trust_remote_code=trust)
    assert not any("/build/" in path for path in hub.requests)
    assert get_kernel("org/demo", version=1, trust_remote_code=["org/demo"]).value() == 7
    assert get_kernel("org/demo", version=1, trust_remote_code=True).value() == 7


def test_key_that_nobody_trusts_here_then_refused_unless_the_caller_names_it(
    hub: StaticHub, put: Put
) -> None:
    put(7, key=OTHER)
    with pytest.raises(
        PolicyError, match="which nobody trusts here: compare the key .*`khub trust add org KEY`"
    ):
        get_kernel("org/demo", version=1)
    assert get_kernel("org/demo", version=1, trust_remote_code=True).value() == 7


def test_key_of_another_organization_or_hub_does_not_count(hub: StaticHub, put: Put) -> None:
    put(7, key=OTHER)
    trust_key(hub.endpoint, "other", OTHER)
    trust_key("http://elsewhere.invalid", "org", OTHER)
    with pytest.raises(PolicyError, match="which nobody trusts here"):
        get_kernel("org/demo", version=1)


def test_signature_of_another_index_is_refused_always(hub: StaticHub, put: Put) -> None:
    commit = put(7)
    index = hub.files[commit] / "index.json"
    index.write_bytes(index.read_bytes().replace(b'"schema": 1', b'"schema":  1'))
    refused(hub, "index.json is not the one that was signed", version=1)


def test_changed_envelope_is_refused_always(hub: StaticHub, put: Put) -> None:
    commit = put(7)
    path = hub.files[commit] / ENVELOPE_NAME
    data = json.loads(path.read_bytes())
    data["payload"] = ("A" if data["payload"][0] != "A" else "B") + data["payload"][1:]
    path.write_text(json.dumps(data))
    refused(hub, "is not what the key|signs no release", version=1)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"payload": NaN}'])
def test_malformed_envelope_is_refused_always(hub: StaticHub, put: Put, data: bytes) -> None:
    put(7)
    hub.replaced[ENVELOPE_NAME] = data
    refused(hub, "is not a DSSE envelope", version=1)


def test_endless_envelope_is_cut_off(hub: StaticHub, put: Put) -> None:
    put(7)
    hub.endless.add(ENVELOPE_NAME)
    try:
        refused(hub, "expected at most 8388608 bytes, the hub sends more", DownloadError, version=1)
    finally:
        hub.endless.clear()


def test_signature_for_another_repository_is_refused_always(hub: StaticHub, put: Put) -> None:
    put(7, repo_id="org/other")
    refused(hub, "the signature is for org/other", version=1)


def test_version_shown_under_the_branch_of_another_is_refused_always(hub: StaticHub, put: Put) -> None:
    put(7, branch="v2", version=1)
    refused(hub, "the branch v2 shows what was signed as version 1", version=2)
    refused(hub, "the branch v2 shows what was signed as version 1")


def test_revoked_key_is_refused_always_also_for_what_was_loaded_before(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(7)
    assert get_kernel("org/demo", version=1).value() == 7
    change_trust(lambda trust: trust.revoke(hub.endpoint, "org", ID))
    forget_process(monkeypatch)
    refused(hub, f"signed by the key {ID[:16]}, which .* has revoked", version=1)


def test_removed_key_is_refused_at_once_also_offline(hub: StaticHub, put: Put) -> None:
    put(7)
    install_kernel("org/demo", version=1)
    offline = {"HF_HUB_OFFLINE": "1"}
    assert in_new_process(PROCESS.format(""), **offline).stdout == "7\n"
    change_trust(lambda trust: trust.remove(hub.endpoint, "org", ID))
    done = in_new_process(PROCESS.format(""), **offline)
    assert "PolicyError" in done.stderr
    assert "which nobody trusts here" in done.stderr
    trust_key(hub.endpoint, "org")
    assert in_new_process(PROCESS.format(""), **offline).stdout == "7\n"


def test_older_index_than_was_loaded_is_refused_always_until_it_is_forgotten(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = put(1, at=100)
    put(2, at=200)
    assert get_kernel("org/demo", version=1).value() == 2
    hub.refs["org/demo"]["v1"] = old
    forget_process(monkeypatch)
    refused(
        hub, "signed 100 seconds before what was loaded here last: .*`khub trust forget org/demo`", version=1
    )
    # Also where nothing is left in the cache: what was seen lies beside the trust file.
    shutil.rmtree(tmp_path / "cache")
    refused(hub, "an older one is shown again", version=1)
    hub.refs["org/demo"]["old"] = old
    assert get_kernel("org/demo", revision=old).value() == 1  # asked for by its hash
    assert hub_loader.cli.main(["trust", "forget", "org/demo"]) == 0
    assert get_kernel("org/demo", version=1).value() == 1


def test_newest_version_that_disappears_is_refused(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1)
    put(2, branch="v2")
    assert get_kernel("org/demo").value() == 2
    del hub.refs["org/demo"]["v2"]
    forget_process(monkeypatch)
    refused(hub, "its newest version is 1, and 2 was seen here before")
    assert get_kernel("org/demo", version=1).value() == 1  # by its number it may be loaded


def test_signature_that_disappears_is_refused_always(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1)
    assert get_kernel("org/demo", version=1).value() == 1
    put(2, sign=False)
    forget_process(monkeypatch)
    refused(
        hub, f"signed by the key {ID[:16]} when it was last loaded here, and is not signed now", version=1
    )


def test_yanked_then_refused_with_the_reason_also_when_the_yank_is_hidden_again(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = put(1, at=100)
    install_kernel("org/demo", version=1)
    sound = (hub.files[commit] / ENVELOPE_NAME).read_bytes()
    folder = hub.files[commit]
    sign_package(folder, "org/demo", signed=200, yanked="wrong for odd sizes")
    hub.publish("org/demo", "v1", folder)
    forget_process(monkeypatch)
    refused(hub, "the publisher has taken version 1 back: wrong for odd sizes", version=1)
    (folder / ENVELOPE_NAME).write_bytes(sound)
    hub.publish("org/demo", "v1", folder)
    forget_process(monkeypatch)
    refused(hub, "the publisher has taken version 1 back: wrong for odd sizes", version=1)
    sign_package(folder, "org/demo", signed=300)
    hub.publish("org/demo", "v1", folder)
    forget_process(monkeypatch)
    assert get_kernel("org/demo", version=1).value() == 1


def test_files_that_the_signed_index_does_not_name_are_refused(hub: StaticHub, put: Put) -> None:
    put(1)
    hub.replaced["numbers.py"] = b"VALUE = 6\n"
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.py"):
        get_kernel("org/demo", version=1)


def test_index_that_was_changed_in_the_cache_is_refused_though_its_signature_was_checked_before(
    hub: StaticHub, put: Put, tmp_path: Path
) -> None:
    put(1)
    install_kernel("org/demo", version=1)
    (path,) = (tmp_path / "cache").rglob("index.json")
    path.write_bytes(path.read_bytes() + b"\n")
    done = in_new_process(PROCESS.format(", trust_remote_code=True"), HF_HUB_OFFLINE="1")
    assert "SignatureError" in done.stderr
    assert "index.json is not the one that was signed" in done.stderr


def test_warm_load_needs_neither_a_request_nor_the_library(hub: StaticHub, put: Put) -> None:
    put(7)
    cold = in_new_process(NO_LIBRARY + PROCESS.format(""))
    assert "MissingExtraError" in cold.stderr
    assert "pip install 'kernel-hub[trust]'" in cold.stderr
    assert in_new_process(PROCESS.format("")).stdout == "7\n"
    hub.clear()
    code = "\nprint(sorted({'cryptography', 'huggingface_hub'} & {*__import__('sys').modules}))"
    assert in_new_process(PROCESS.format("") + code).stdout == "7\n[]\n"
    assert in_new_process(NO_LIBRARY + PROCESS.format("")).stdout == "7\n"
    assert hub.requests == []


def test_signed_kernel_without_the_library_is_refused_whatever_is_allowed(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(7)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    refused(hub, r"pip install 'kernel-hub\[trust\]'", MissingExtraError, version=1)


def test_unsigned_kernel_that_is_allowed_needs_no_library(hub: StaticHub, put: Put) -> None:
    put(7, sign=False)
    assert in_new_process(NO_LIBRARY + PROCESS.format(", trust_remote_code=True")).stdout == "7\n"


def test_signature_that_comes_after_the_index_was_cached_is_asked_for_before_the_kernel_is_refused(
    hub: StaticHub, put: Put
) -> None:
    commit = put(7, sign=False)
    assert "it is not signed" in in_new_process(PROCESS.format("")).stderr
    sign_package(hub.files[commit], "org/demo", signed=100)
    assert in_new_process(PROCESS.format("")).stdout == "7\n"


def test_public_hub_then_its_word_counts_until_the_user_knows_who_signs(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_loader.config._PUBLIC_HOSTS", ("127.0.0.1",))
    hub.trusted.add("org")
    put(7, sign=False)
    with pytest.raises(PolicyError, match="it is not signed"):
        get_kernel("org/demo", version=1)
    change_trust(lambda trust: trust.remove(hub.endpoint, "org", ID))
    assert get_kernel("org/demo", version=1).value() == 7


def test_source_that_nobody_signed_is_not_built_without_permission(hub: StaticHub, put: Put) -> None:
    put(7)
    config = load_config()
    version = pinned_version(config, Request("org/demo", 1, None))
    admit_source(config, Policy(everything=True), version)
    admit_source(config, Policy(repo_ids=frozenset({"org/demo"})), version)
    with pytest.raises(PolicyError, match="no signature covers the source"):
        admit_source(config, Policy(), version)


def test_trust_file_that_anybody_may_write_is_not_believed(hub: StaticHub, put: Put, tmp_path: Path) -> None:
    put(7)
    (tmp_path / "trust.json").chmod(0o666)
    with pytest.raises(UsageError, match="may be written by anybody"):
        get_kernel("org/demo", version=1)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": 2, "keys": []}', '{"schema": 1, "keys": [{"hub": 1}]}']
)
def test_trust_file_that_is_malformed_is_named(hub: StaticHub, put: Put, tmp_path: Path, text: str) -> None:
    put(7)
    (tmp_path / "trust.json").write_text(text)
    with pytest.raises(UsageError, match=r"trust\.json is malformed"):
        get_kernel("org/demo", version=1, trust_remote_code=True)


def test_record_that_is_damaged_is_named_and_one_that_cannot_be_written_is_done_without(
    hub: StaticHub,
    put: Put,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(7)
    install_kernel("org/demo", version=1)
    (record,) = (tmp_path / "trust.seen").rglob("demo.json")
    record.write_text("{")
    with pytest.raises(UsageError, match=r"demo\.json is damaged: delete it"):
        install_kernel("org/demo", version=1)
    shutil.rmtree(tmp_path / "trust.seen")
    (tmp_path / "trust.seen").write_text("a file where a folder is wanted")
    assert get_kernel("org/demo", version=1).value() == 7
    assert "signatures are checked at every load" in caplog.text


def test_lock_then_pins_the_signer_and_a_locked_load_enforces_it_without_the_library(
    hub: StaticHub, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = put(7)
    (tmp_path / "pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/demo" = 1\n')
    monkeypatch.chdir(tmp_path)
    assert hub_loader.cli.main(["lock"]) == hub_loader.cli.main(["sync"]) == 0
    assert json.loads(Path("kernels.lock").read_bytes())[0]["lock"]["signer"] == ID
    load = (
        NO_LIBRARY
        + "import hub_loader; print(hub_loader.load_kernel('org/demo', lockfile='kernels.lock').value())"
    )
    alone = {"KHUB_TRUST_FILE": str(tmp_path / "none.json"), "HF_ENDPOINT": "http://elsewhere.invalid"}
    done = in_new_process(load, **alone)
    assert (done.stdout, done.stderr) == ("7\n", "")
    change_trust(lambda trust: trust.revoke(hub.endpoint, "org", ID))
    assert f"has the signer {ID[:16]}, which" in in_new_process(load).stderr
    # The same bytes under the signature of another.
    (tmp_path / "trust.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    sign_package(hub.files[commit], "org/demo", OTHER)
    with pytest.raises(SignatureError, match=f"kernels.lock wants {ID[:16]}"):
        hub_loader.get_locked_kernel("org/demo", lockfile="kernels.lock")
    shutil.rmtree(tmp_path / "cache")
    (hub.files[commit] / ENVELOPE_NAME).unlink()
    with pytest.raises(SignatureError, match="is missing, and .*kernels.lock has a signer"):
        hub_loader.get_locked_kernel("org/demo", lockfile="kernels.lock")


def test_lock_of_what_is_not_signed_is_refused_without_permission(
    hub: StaticHub, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(7, sign=False)
    (tmp_path / "pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/demo" = 1\n')
    monkeypatch.chdir(tmp_path)
    assert hub_loader.cli.main(["lock"]) == PolicyError.exit_code
    assert hub_loader.cli.main(["lock", "--trust-remote-code", "org/demo"]) == 0
    assert "signer" not in json.loads(Path("kernels.lock").read_bytes())[0]["lock"]


def test_explain_says_who_has_signed_and_never_refuses(
    hub: StaticHub, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(7)
    said = hub_loader.explain("org/demo", version=1)
    assert (said.signer, "signed by the key" in said.signed) == (ID, True)
    put(8, at=200, repo_id="org/other")
    forget_process(monkeypatch)
    said = hub_loader.explain("org/demo", version=1)
    assert (said.signer, said.chosen) == (None, "torch-cpu")
    assert "the signature is for org/other" in said.signed


def test_many_processes_at_once_remember_what_they_saw(hub: StaticHub, put: Put, tmp_path: Path) -> None:
    put(7)
    code = PROCESS.format("")
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(6)]
    assert [process.communicate(timeout=120)[0] for process in started] == [b"7\n"] * 6
    (record,) = (tmp_path / "trust.seen").rglob("demo.json")
    data = json.loads(record.read_bytes())
    assert (data["highest"], data["refs"]["v1"]["signed"], len(data["proofs"])) == (1, 100, 1)
