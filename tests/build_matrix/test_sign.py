"""`khub keygen`, `sign`, `trust`, `publish --sign-key` and `yank` as people type them, on a real hub."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from khub_process import ROOT, Hub, khub_command

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package

from hub_loader.errors import MissingExtraError, PolicyError, SignatureError, UsageError
from hub_loader.trust.dsse import ENVELOPE_NAME
from hub_loader.trust.judge import prove

LOAD = "import sys, hub_loader; print(hub_loader.get_kernel(sys.argv[1], version=1).value())"


@dataclass(frozen=True)
class Desk:
    """A publisher and a user with a home, a key and a trust file of their own; `repo` is a new repository."""

    folder: Path
    hub: Hub
    repo: str

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_", "KHUB_"))}
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "home"), "HF_TOKEN": self.token}
        own |= {"XDG_CONFIG_HOME": str(self.folder / "config"), "PYTHONPATH": str(ROOT), "KHUB_REFRESH": "0"}
        return kept | own | extra

    @property
    def token(self) -> str:
        path = self.folder / "token"
        if not path.exists():
            path.write_text(self.hub.token(self.repo.partition("/")[0]))
        return path.read_text()

    def khub(self, *arguments: str | Path, code: int = 0, **extra: str) -> str:
        """What `khub` prints, errors last; it has to end with `code`."""
        done = subprocess.run(
            khub_command(*arguments),
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def load(self) -> str:
        """The value of the kernel in a new process, or what it says instead."""
        command = [sys.executable, "-c", LOAD, self.repo]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=120)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture
def desk(hub: Hub, tmp_path: Path) -> Desk:
    made = Desk(tmp_path, hub, "signers/" + tmp_path.name.replace("_", "-").strip("-"))
    made.khub("keygen", tmp_path / "release.key", "--comment", "Signers, Inc.")
    return made


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return python_package(tmp_path / "dist", value=7).folder


def test_publisher_signs_and_user_trusts_then_loads_and_sees_who_signed(desk: Desk, package: Path) -> None:
    key = desk.folder / "release.key"
    said = json.loads(desk.khub("publish", package, desk.repo, "--sign-key", key, "--json"))
    assert "nobody trusts here" in desk.load()
    assert "nobody trusts here" in desk.khub("explain", desk.repo)
    desk.khub("trust", "add", "signers", f"{key}.pub")
    assert desk.load() == "7"
    assert f"signed by the key {said['signed_by'][:16]} (Signers, Inc.)" in desk.khub("explain", desk.repo)
    assert said["signed_by"] in desk.khub("explain", desk.repo, "--json")
    assert said["signed_by"][:16] in desk.khub("trust", "list")
    verified = desk.khub("verify")
    assert "verified: " in verified
    assert f"signed by the key {said['signed_by'][:16]} (Signers, Inc.)" in verified
    again = json.loads(desk.khub("publish", package, desk.repo, "--sign-key", key, "--json"))
    assert (again["written"], again["commit"]) == (0, said["commit"])


def test_sign_then_publish_uploads_that_signature_and_no_other(desk: Desk, package: Path) -> None:
    key = desk.folder / "release.key"
    desk.khub("sign", package, desk.repo, "--key", key)
    proof = prove((package / ENVELOPE_NAME).read_bytes(), origin="x")
    assert (proof.repo_id, proof.version) == (desk.repo, 1)
    assert json.loads(desk.khub("publish", package, desk.repo, "--json"))["signed_by"] == proof.key_id
    desk.khub("sign", package / "index.json", "signers/other", "--key", key)
    assert "signs another index.json or repository" in desk.khub(
        "publish", package, desk.repo, code=SignatureError.exit_code
    )
    (package / ENVELOPE_NAME).unlink()
    assert "not signed" in desk.khub("publish", package, desk.repo)


def test_key_in_the_environment_signs_and_the_passphrase_is_never_an_argument(
    desk: Desk, package: Path
) -> None:
    key, secret = desk.folder / "locked.key", {"KHUB_KEY_PASSPHRASE": "correct horse"}
    said = json.loads(desk.khub("keygen", key, "--passphrase", "--json", **secret))
    assert b"ENCRYPTED" in key.read_bytes()
    held = {"KHUB_SIGNING_KEY": key.read_text()}
    assert "has a passphrase" in desk.khub("sign", package, desk.repo, code=UsageError.exit_code, **held)
    wrong = {**held, "KHUB_KEY_PASSPHRASE": "wrong"}
    assert "holds no private key" in desk.khub("sign", package, desk.repo, code=UsageError.exit_code, **wrong)
    signed = json.loads(desk.khub("sign", package, desk.repo, "--json", **held, **secret))
    assert signed["key"] == said["id"]


def test_private_key_is_its_owners_alone_and_is_never_overwritten(desk: Desk, package: Path) -> None:
    key = desk.folder / "release.key"
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "exists" in desk.khub("keygen", key, code=UsageError.exit_code)
    assert key.read_bytes() == before
    key.chmod(0o640)
    assert "chmod 600" in desk.khub("sign", package, desk.repo, "--key", key, code=UsageError.exit_code)
    desk.khub("sign", package, desk.repo, code=UsageError.exit_code)
    pem = desk.folder / "rsa.key"
    subprocess.run(["openssl", "genrsa", "-out", pem, "1024"], check=True, capture_output=True)
    pem.chmod(0o600)
    assert "another kind" in desk.khub("sign", package, desk.repo, "--key", pem, code=UsageError.exit_code)


def test_yank_then_refused_with_the_reason_and_publishing_again_does_not_undo_it(
    desk: Desk, package: Path
) -> None:
    key = desk.folder / "release.key"
    desk.khub("trust", "add", "signers", f"{key}.pub")
    desk.khub("publish", package, desk.repo, "--sign-key", key)
    assert desk.load() == "7"
    yank = ("yank", desk.repo, "v1", "--sign-key", key)
    assert "is taken back: wrong sums" in desk.khub(*yank, "--reason", "wrong sums")
    assert "SignatureError" in desk.load()
    assert "the publisher has taken version 1 back: wrong sums" in desk.load()
    desk.khub("get", desk.repo, code=SignatureError.exit_code)
    refused = desk.khub("publish", package, desk.repo, "--sign-key", key, code=SignatureError.exit_code)
    assert f"khub yank {desk.repo} v1 --undo" in refused
    desk.khub(*yank, "--undo")
    assert desk.load() == "7"


def test_yank_of_what_is_not_signed_or_not_there_says_what_to_do(desk: Desk, package: Path) -> None:
    key = desk.folder / "release.key"
    desk.khub("publish", package, desk.repo)
    yank = ("yank", desk.repo, "--sign-key", key, "--reason", "x")
    assert "publish it with --sign-key" in desk.khub(*yank, "v1", code=SignatureError.exit_code)
    assert "has no v2" in desk.khub(*yank, "v2", code=UsageError.exit_code)
    assert "write it like v1" in desk.khub(*yank, "main", code=UsageError.exit_code)


def test_trust_is_listed_revoked_and_removed_by_id_comment_or_file(desk: Desk, package: Path) -> None:
    key = desk.folder / "release.key"
    line = Path(f"{key}.pub").read_text().strip()
    desk.khub("publish", package, desk.repo, "--sign-key", key)
    desk.khub("trust", "add", "signers", line)
    desk.khub("trust", "add", "signers", line, "--hub", "https://hub.example/")
    listed = json.loads(desk.khub("trust", "list", "--json"))
    assert listed["file"] == str(desk.folder / "config/kernel-hub/trust.json")
    assert [(one["hub"], one["key"], one["revoked"]) for one in listed["keys"]] == [
        (desk.hub.url, line, False),
        ("https://hub.example", line, False),
    ]
    desk.khub("trust", "revoke", "signers", listed["keys"][0]["id"][:8])
    assert "has revoked" in desk.load()
    desk.khub("trust", "add", "signers", f"{key}.pub")
    assert desk.load() == "7"
    desk.khub("trust", "remove", "signers", "Signers, Inc.")
    assert "nobody trusts here" in desk.load()
    assert "has 0 keys" in desk.khub("trust", "remove", "signers", f"{key}.pub", code=UsageError.exit_code)
    assert "not a public key" in desk.khub("trust", "add", "signers", str(key), code=UsageError.exit_code)
    desk.khub("trust", "add", "no org", line, code=UsageError.exit_code)


def test_unsigned_package_is_refused_by_get_with_what_to_do(desk: Desk, package: Path) -> None:
    desk.khub("publish", package, desk.repo)
    said = desk.khub("get", desk.repo, code=PolicyError.exit_code)
    assert f"trust_remote_code=['{desk.repo}']" in said
    assert "verified" in desk.khub("get", desk.repo, "--trust-remote-code", desk.repo)


def test_without_the_library_every_command_that_needs_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['cryptography'] = None; from hub_loader.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "keygen", tmp_path / "key"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == MissingExtraError.exit_code
    assert "pip install 'kernel-hub[trust]'" in done.stderr


@pytest.mark.slow
def test_stock_kernels_client_loads_a_signed_package_as_before(desk: Desk, stock_python: Path) -> None:
    package = python_package(desk.folder / "stock", value=7, variants=("torch-universal",)).folder
    desk.khub("publish", package, desk.repo, "--sign-key", desk.folder / "release.key")
    code = "import sys, kernels; print(kernels.get_kernel(sys.argv[1], version=1, trust_remote_code=True).value())"
    environment = desk.environment()
    del environment["PYTHONPATH"]
    done = subprocess.run(
        [stock_python, "-c", code, desk.repo], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
